"""Trains models with this package, with an older version of it and with others, step by step in turn.

  python benchmarks/training.py --old FOLDER      the tables of docs/performance.md; FOLDER: a checkout of e3ae780, made
                                                  by `git worktree add FOLDER e3ae780`; without --old no older version
  python benchmarks/training.py --ladder          what each step of the fast path gives, one after another

Each contestant is a process of its own, so that its peak memory is its own. All are started, compile, and drop their
first steps; then each makes one step at a time, in turn, while the others wait: a machine is not equally fast all the
time, and only ratios within a round mean anything. All train in bfloat16 where the processor has it.

  lm fit         the command, with Trainer, callbacks and logging, compiled; "eager" without torch.compile
  old            the same of the older version                  bare loop   our model and optimizer without the command
  lm fit plain   with model.fast false                          llama, gpt2 transformers' models, compiled, with torch's
  litgpt         if it is installed; compiled                               fused AdamW and cross_entropy

gpt2 stands in for nanoGPT, whose architecture and training loop it repeats; litgpt pins versions that exclude ours and
needs an environment of its own. "+ memory" gives the others our allocator settings (lm/machine/resources.py).
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
VOCAB_SIZE, CONTEXT, D_MODEL, D_FF, LAYERS, HEADS = 10_000, 256, 512, 1344, 4, 16
WARMUP = 3  # steps that are not counted
SHAPES: dict[str, dict[str, Any]] = {  # settings of a model, and windows in a batch
    "base": {"vocab_size": 10_000, "d_model": 512, "num_layers": 4, "num_heads": 16, "d_ff": 1344, "batch_size": 32},
    "adamw": {"vocab_size": 2048, "d_model": 192, "num_layers": 4, "num_heads": 3, "d_ff": 512, "batch_size": 8},
    "fast": {"vocab_size": 2048, "d_model": 128, "num_layers": 3, "num_heads": 2, "d_ff": 320, "batch_size": 8},
}
GROUPS = {  # a heading: the shape, the rounds, and who takes turns; not all at once, for the sake of memory
    "The handout's base model": ("base", 10, ["lm fit", "lm fit eager", "old", "llama", "gpt2", "litgpt"]),
    "The same, others with our allocator settings": (
        "base",
        10,
        ["lm fit", "llama + memory", "gpt2 + memory", "litgpt + memory"],
    ),
    "configs/experiments/adamw.yaml's shape": ("adamw", 40, ["lm fit", "lm fit eager", "old", "old eager"]),
    "configs/tinystories-fast.yaml's shape, with Muon": ("fast", 40, ["lm fit", "lm fit eager", "old", "old eager"]),
}
LADDER = {  # each adds to the one before it
    "float32, plain": "float32",
    "bfloat16": "",
    "memory stays": "memory",
    "attention in blocks": "memory attention",
    "loss without logits": "memory attention loss",
    "kernels": "memory attention loss kernels",
    "compiled": "memory attention loss kernels compile",
    "recomputed": "memory attention loss kernels compile recompute",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="a checkout of the older version")
    parser.add_argument("--rounds", type=int, help="steps of each contestant (default: 10, or 40 of small models)")
    parser.add_argument("--shape", choices=SHAPES, help="this shape alone")
    parser.add_argument("--only", nargs="+", help="these contestants")
    parser.add_argument("--ladder", action="store_true", help="the steps of the fast path instead of the others")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process measures
    args = parser.parse_args()
    if args.one is not None:
        sys.path.insert(0, str(args.old if args.one.startswith("old") else ROOT))
        measure(args.one, args.shape)
        return
    sys.path.insert(0, str(ROOT))
    groups = {"The steps of the fast path": ("base", 5, list(LADDER))} if args.ladder else GROUPS
    for heading, (shape, rounds, names) in groups.items():
        names = [name for name in names if is_there(name, args)]
        if (args.shape is None or args.shape == shape) and len(names) > 1:
            report(heading, shape, take_turns(names, shape, args.rounds or rounds, args), args.ladder)


def is_there(name: str, args: argparse.Namespace) -> bool:
    missing = (name.startswith("old") and not args.old) or (
        name.startswith("litgpt") and not importlib.util.find_spec("litgpt")
    )
    return not missing and (args.only is None or name in args.only)


# --- the parent ------------------------------------------------------------------------------------------------------


def take_turns(names: list[str], shape: str, rounds: int, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Lets each contestant make a step in turn; returns what each has measured."""
    workers = {}
    results: dict[str, list[dict]] = {name: [] for name in names}
    try:
        for name in names:
            command = [sys.executable, __file__, "--one", name, "--shape", shape]
            command += ["--old", str(args.old.resolve())] if args.old else []
            workers[name] = subprocess.Popen(
                command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            say(f"{shape}: {name} starts")
            start = time.monotonic()
            for _ in range(WARMUP):
                ask(name, workers[name])
            results[name].append({"start": time.monotonic() - start})
        for number in range(rounds):
            for name in names:
                say(f"{shape}: round {number + 1} of {rounds}: {name}")
                results[name].append(ask(name, workers[name]))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
        say("")
    return results


def say(words: str) -> None:
    print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def ask(name: str, worker: subprocess.Popen) -> dict:
    """Lets a contestant make a step; returns its seconds, those of its processors, and its peak memory in GB."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"\n{name} has ended; to see why: echo | {' '.join(map(str, worker.args))}")  # type: ignore[arg-type]
    found: dict = json.loads(line)
    return found


def report(heading: str, shape: str, results: dict[str, list[dict]], ladder: bool) -> None:
    """Prints medians over the rounds, of speeds and of the ratios to the first contestant within each round."""
    from lm.machine.identity import cpu_model
    from lm.machine.peaks import peak_flops
    from lm.machine.resources import native_precision

    precision = native_precision("cpu")
    peak, source, _ = peak_flops("cpu", precision)
    first, tokens = next(iter(results)), SHAPES[shape]["batch_size"] * CONTEXT
    starts = {name: runs[0]["start"] for name, runs in results.items()}
    rounds = {name: runs[1:] for name, runs in results.items()}
    print(f"\n{heading}: {SHAPES[shape]['batch_size']} x {CONTEXT} tokens, {precision}, {cpu_model()}, load")
    print(f"{os.getloadavg()[0]:.1f}, {len(rounds[first])} rounds; peak {peak / 1e9:.0f} GFLOP/s ({source})\n")
    ratio = "x the first" if ladder else f"{first} is faster by"
    print(f"| | tokens/s | MFU | CPU s a step | peak GB | start s | {ratio} | by CPU time |")
    print("|---|---|---|---|---|---|---|---|")
    for name, steps in rounds.items():
        speed = tokens / statistics.median(step["seconds"] for step in steps)
        processor = statistics.median(step["processor"] for step in steps)
        ratios = []
        for key in ("seconds", "processor"):
            pairs = zip(rounds[first], steps, strict=True)
            ratios.append(statistics.median((b[key] / a[key]) ** (-1 if ladder else 1) for a, b in pairs))
        figures = f"{speed:,.0f} | {speed * flops_per_token(shape) / peak:.0%} | {processor:.3f}"
        memory = f"{steps[-1]['memory']:.2f} | {starts[name]:.0f}"
        print(f"| {name} | {figures} | {memory} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


def flops_per_token(shape: str) -> int:
    from lm.accounting.costs import training_flops_per_token
    from lm.model.transformer import TransformerLM

    settings = {name: value for name, value in SHAPES[shape].items() if name != "batch_size"}
    return training_flops_per_token(TransformerLM(context_length=CONTEXT, device="meta", **settings))


# --- a contestant ----------------------------------------------------------------------------------------------------


class Turns:
    """Steps that are made when the parent asks for them; what the program itself prints goes nowhere."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        self.began: tuple[float, float] | None = None

    def next(self) -> None:
        """Answers how long it took since the last turn began, and waits for the next one."""
        if self.began:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            seconds, processor = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            answer = {"seconds": seconds, "processor": processor, "memory": peak}
            print(json.dumps(answer), file=self.answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.began = time.perf_counter(), time.process_time()

    def __iter__(self) -> Iterator[int]:
        for number in range(1 << 30):
            self.next()
            yield number


def measure(name: str, shape: str) -> None:
    """Trains in a process of its own, a step whenever the parent asks for one."""
    turns, theirs = Turns(), name.startswith(("llama", "gpt2", "litgpt"))
    parts = set(LADDER[name].split()) if name in LADDER else {"memory", "attention", "loss", "kernels", "compile"}
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith(("lm fit", "old")):
            make_data(Path(folder))
            lm_fit(Path(folder), name, shape, turns)
        if "memory" in (name if theirs else parts):
            from lm.machine.resources import keep_large_blocks

            keep_large_blocks()  # before torch is imported
        if theirs:
            their_loop(name.split()[0], turns)
        make_data(Path(folder))
        our_loop(Path(folder), parts, turns)


def make_data(folder: Path) -> None:
    """Makes a token file of random tokens, as `tokenization encode` writes it; the speed is that of any text."""
    import numpy as np

    from tokenization import END_OF_TEXT, Tokenizer

    Tokenizer({i: bytes([i]) for i in range(256)} | {256: END_OF_TEXT.encode()}, [], [END_OF_TEXT]).save(folder / "tok")
    tokenizer = Tokenizer.load(folder / "tok")
    letters = np.random.default_rng(0).integers(97, 123, 400_000, dtype=np.uint8)
    (folder / "text.txt").write_bytes(letters.tobytes())
    tokenizer.encode_files([folder / "text.txt"], folder / "text.bin", num_processes=1)


def lm_fit(folder: Path, name: str, shape: str, turns: Turns) -> None:
    """Runs the command, of whichever version is on the path; a turn ends where the next training step begins."""
    from lm.__main__ import main as lm

    try:
        from lm.training.module import LanguageModel
    except ModuleNotFoundError:  # e3ae780
        from lm.module import LanguageModel

    step = LanguageModel.training_step

    def training_step(self: Any, *arguments: Any) -> Any:
        turns.next()
        return step(self, *arguments)

    LanguageModel.training_step = training_step
    steps = 100_000
    model = {key: value for key, value in SHAPES[shape].items() if key != "batch_size"}
    settings = {
        "trainer.default_root_dir": folder / "run",
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
        "trainer.limit_val_batches": 1,
        "checkpoints.every_n_steps": steps,
        "data.train_path": folder / "text.bin",
        "data.val_path": folder / "text.bin",
        "data.tokenizer": folder / "tok",
        "data.batch_size": SHAPES[shape]["batch_size"],
        "samples.max_new_tokens": 0,
        "model.compile": str(not name.endswith(("plain", "eager"))).lower(),
        "model.fast": str(not name.endswith("plain")).lower(),
        "model.optimizer": "muon" if shape == "fast" else "adamw",
    } | {f"model.{key}": value for key, value in model.items()}
    lm(["fit", "-c", str(ROOT / "configs/tinystories-cpu.yaml"), *(f"--{k}={v}" for k, v in settings.items())])


def our_loop(folder: Path, parts: set[str], turns: Turns) -> None:
    import torch

    from lm.data.windows import RandomWindows
    from lm.machine.compiling import compile_graph
    from lm.machine.resources import native_precision
    from lm.model.fast import speed_up
    from lm.model.transformer import TransformerLM
    from lm.optim.adamw import AdamW
    from lm.optim.clipping import clip_gradients
    from tokenization import TokenFile

    torch.manual_seed(0)
    model = TransformerLM(VOCAB_SIZE, CONTEXT, D_MODEL, LAYERS, num_heads=HEADS, d_ff=D_FF)
    kernels = "kernels" in parts
    if "attention" in parts:
        speed_up(model, "blocks", keep_logits="loss" not in parts, kernels=kernels)
    model.recompute = "recompute" in parts
    if "compile" in parts:
        model.compile(backend=compile_graph)
    optimizer = AdamW(model.parameters(), kernel=kernels)
    half = "float32" not in parts and native_precision("cpu") == "bf16-mixed"
    windows = RandomWindows(TokenFile.open(folder / "text.bin").tokens, CONTEXT, 32, 0, 1000)
    for number in turns:
        inputs, targets = windows[number % 1000]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(inputs, targets=targets)
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def their_model(
    name: str,
    vocab_size: int = VOCAB_SIZE,
    context_length: int = CONTEXT,
    d_model: int = D_MODEL,
    num_layers: int = LAYERS,
    num_heads: int = HEADS,
    d_ff: int = D_FF,
):
    """A model that gives logits for token ids, of the same shape as ours; and how to call it."""
    if name == "litgpt":
        from litgpt import GPT, Config

        return GPT(
            Config(
                block_size=context_length,
                vocab_size=vocab_size,
                padded_vocab_size=vocab_size,
                n_layer=num_layers,
                n_head=num_heads,
                n_embd=d_model,
                intermediate_size=d_ff,
                mlp_class_name="LLaMAMLP",
                norm_class_name="RMSNorm",
                rotary_percentage=1.0,
                bias=False,
                parallel_residual=False,
            )
        )
    import transformers

    if name == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=d_model,
                intermediate_size=d_ff,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                max_position_embeddings=context_length,
                use_cache=False,
            )
        )
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab_size,
            n_positions=context_length,
            n_embd=d_model,
            n_layer=num_layers,
            n_head=num_heads,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            use_cache=False,
        )
    )


def their_loop(name: str, turns: Turns) -> None:
    import torch

    from lm.machine.compiling import compile_graph
    from lm.machine.resources import native_precision

    torch.manual_seed(0)
    model = their_model(name)
    compiled: Callable = torch.compile(model, backend=compile_graph)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(VOCAB_SIZE, (SHAPES["base"]["batch_size"], CONTEXT + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    for _ in turns:
        with torch.autocast("cpu", torch.bfloat16, enabled=native_precision("cpu") == "bf16-mixed"):
            output = compiled(inputs)
            logits = output if isinstance(output, torch.Tensor) else output.logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
