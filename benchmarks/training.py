"""Trains the handout's base model (22.7M parameters, context 256) with this package and with others, all in one run.

  python benchmarks/training.py                   the table of docs/performance.md
  python benchmarks/training.py --ladder          what each step of the fast path gives, one after another

Each measurement is a process of its own, so that its peak memory is its own, and all take turns, several times, because
a machine is not equally fast all the time. Every process trains in bfloat16 where the processor has it, from the same
settings, and drops its first steps, in which compilation happens.

  lm fit       the command, with Trainer, callbacks and logging      bare loop   our model and optimizer without them
  lm fit plain the same with model.fast false                        llama, gpt2 transformers' models, compiled, with
  litgpt       if it is installed; compiled                                      torch's fused AdamW and cross_entropy

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
from pathlib import Path

ROOT = Path(__file__).parent.parent
VOCAB_SIZE, CONTEXT, D_MODEL, D_FF, LAYERS, HEADS = 10_000, 256, 512, 1344, 4, 16
WARMUP = 3  # steps that are not counted
CONTESTANTS = ["lm fit", "bare loop", "lm fit plain", "llama", "gpt2", "litgpt", "llama + memory", "gpt2 + memory"]
CONTESTANTS += ["litgpt + memory"]
LADDER = {  # each adds to the one before it
    "float32, plain": "float32",
    "bfloat16": "",
    "memory stays": "memory",
    "attention in blocks": "memory attention",
    "loss without logits": "memory attention loss",
    "compiled": "memory attention loss compile",
    "joint products": "memory attention loss compile joint",
    "recomputed": "memory attention loss compile recompute",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32, help="windows (default: 32)")
    parser.add_argument("--steps", type=int, default=8, help="that are timed (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="of all contestants in turn (default: 3)")
    parser.add_argument("--only", nargs="+", help="these contestants")
    parser.add_argument("--ladder", action="store_true", help="the steps of the fast path instead of the others")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process measures
    args = parser.parse_args()
    if args.one is not None:
        measure(args.one, args)
        return
    names = list(LADDER) if args.ladder else args.only or CONTESTANTS
    if not importlib.util.find_spec("litgpt"):
        names = [name for name in names if not name.startswith("litgpt")]
    results: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names:
            print(f"\r\033[Kround {number + 1} of {args.rounds}: {name}", end="", file=sys.stderr, flush=True)
            command = [
                sys.executable,
                __file__,
                "--one",
                name,
                f"--steps={args.steps}",
                f"--batch-size={args.batch_size}",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"\n{name} failed:\n{done.stderr[-2000:]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    print("\r\033[K", end="", file=sys.stderr)
    report(results, args)


def report(results: dict[str, list[dict]], args: argparse.Namespace) -> None:
    """Medians over the rounds; the ratio to the first, or of the first to the others, is the median of each round's."""
    from lm.machine.peaks import peak_flops
    from lm.machine.resources import native_precision

    precision = native_precision("cpu")
    peak, source, _ = peak_flops("cpu", precision)
    first = next(iter(results))
    print(f"batch {args.batch_size} x {CONTEXT}, {precision}; peak {peak / 1e9:.0f} GFLOP/s ({source})")
    heading = f"x {first}" if args.ladder else f"{first} / it"
    print(f"{'':<24}{'tokens/s':>10}{'MFU':>7}{'peak GB':>9}{'start s':>9}{heading:>20}")
    for name, runs in results.items():
        speed = statistics.median(run["speed"] for run in runs)
        pairs = zip(results[first], runs, strict=True)
        ratio = statistics.median((b["speed"] / a["speed"]) ** (1 if args.ladder else -1) for a, b in pairs)
        memory, compile_time = (statistics.median(run[key] for run in runs) for key in ("memory", "first"))
        mfu = speed * base_flops_per_token() / peak
        print(f"{name:<24}{speed:>10,.0f}{mfu:>7.0%}{memory:>9.2f}{compile_time:>9.1f}{ratio:>20.2f}")
    for runs in (runs for runs in results.values() if "pipeline" in runs[0]):
        seconds = statistics.median(run["pipeline"] for run in runs)
        share = seconds * runs[0]["speed"] / args.batch_size / CONTEXT
        print(f"a batch takes {seconds * 1e3:.2f} ms to gather, {share:.3%} of a step")
        break


def base_flops_per_token() -> int:
    from lm.accounting.costs import training_flops_per_token
    from lm.model.transformer import TransformerLM

    model = TransformerLM(VOCAB_SIZE, CONTEXT, D_MODEL, LAYERS, num_heads=HEADS, d_ff=D_FF, device="meta")
    return training_flops_per_token(model)


def measure(name: str, args: argparse.Namespace) -> None:
    """In a process of its own: prints tokens/s, peak memory in GB and the seconds until it was at work, as JSON."""
    from lm.machine.resources import keep_large_blocks

    theirs = name.startswith(("llama", "gpt2", "litgpt"))
    parts = set(LADDER[name].split()) if name in LADDER else {"memory", "attention", "loss", "compile"}
    if "memory" in (name if theirs else parts):
        keep_large_blocks()  # before torch is imported
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        if name.startswith("lm fit"):
            result = lm_fit(Path(folder), name, args)
        elif theirs:
            result = their_loop(name.split()[0], args)
        else:
            result = our_loop(Path(folder), parts, args)
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(result))


def make_data(folder: Path) -> None:
    """A token file of random tokens, in the form that `tokenization encode` writes; the speed is that of any text."""
    import numpy as np

    from tokenization import END_OF_TEXT, Tokenizer

    Tokenizer({i: bytes([i]) for i in range(256)} | {256: END_OF_TEXT.encode()}, [], [END_OF_TEXT]).save(folder / "tok")
    tokenizer = Tokenizer.load(folder / "tok")
    letters = np.random.default_rng(0).integers(97, 123, 400_000, dtype=np.uint8)
    (folder / "text.txt").write_bytes(letters.tobytes())
    tokenizer.encode_files([folder / "text.txt"], folder / "text.bin", num_processes=1)


def lm_fit(folder: Path, name: str, args: argparse.Namespace) -> dict:
    """From the curves that the run itself has written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lm.__main__ import main as lm

    run, every = folder / "run", 2
    settings = {
        "trainer.default_root_dir": run,
        "trainer.max_steps": WARMUP + 1 + args.steps,
        "trainer.val_check_interval": WARMUP + 1 + args.steps,
        "trainer.limit_val_batches": 1,
        "trainer.log_every_n_steps": every,
        "model.warmup_steps": 1,
        "model.fast": str(name != "lm fit plain").lower(),
        "model.compile": str(name != "lm fit plain").lower(),
        "data.train_path": folder / "text.bin",
        "data.val_path": folder / "text.bin",
        "data.tokenizer": folder / "tok",
        "data.batch_size": args.batch_size,
        "samples.max_new_tokens": 0,
    }
    start = time.perf_counter()
    code = lm(["fit", "-c", str(ROOT / "configs/tinystories-cpu.yaml"), *(f"--{k}={v}" for k, v in settings.items())])
    assert code == 0
    events = EventAccumulator(str(run))
    events.Reload()
    speeds = [event.value for event in events.Scalars("train/tokens_per_second")][(WARMUP + 1) // every :]
    rate = statistics.median(speeds)
    elapsed = time.perf_counter() - start
    return {"speed": rate, "first": elapsed - args.steps * args.batch_size * CONTEXT / rate}


def timed(step, batches, args: argparse.Namespace) -> dict:
    """step(inputs, targets) over the batches -> median tokens/s, and the seconds of the first."""
    seconds = []
    for index in range(WARMUP + args.steps):
        start = time.perf_counter()
        step(*batches(index))
        seconds.append(time.perf_counter() - start)
    rate = args.batch_size * CONTEXT / statistics.median(seconds[WARMUP:])
    return {"speed": rate, "first": seconds[0]}


def our_loop(folder: Path, parts: set[str], args: argparse.Namespace) -> dict:
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
    if "attention" in parts:
        speed_up(model, "blocks", joint_products="joint" in parts, keep_logits="loss" not in parts)
    model.recompute = "recompute" in parts
    if "compile" in parts:
        model.compile(backend=compile_graph)
    optimizer = AdamW(model.parameters())
    half = "float32" not in parts and native_precision("cpu") == "bf16-mixed"

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(inputs, targets=targets)
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    windows = RandomWindows(TokenFile.open(folder / "text.bin").tokens, CONTEXT, args.batch_size, 0, 1000)
    result = timed(step, windows.__getitem__, args)
    start = time.perf_counter()
    for index in range(200):
        windows[index]
    return result | {"pipeline": (time.perf_counter() - start) / 200}


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


def their_loop(name: str, args: argparse.Namespace) -> dict:
    import torch

    from lm.machine.compiling import compile_graph
    from lm.machine.resources import native_precision

    torch.manual_seed(0)
    model = their_model(name)
    compiled = torch.compile(model, backend=compile_graph)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(VOCAB_SIZE, (args.batch_size, CONTEXT + 1))

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=native_precision("cpu") == "bf16-mixed"):
            output = compiled(inputs)
            logits = output if isinstance(output, torch.Tensor) else output.logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, lambda index: (tokens[:, :-1], tokens[:, 1:]), args)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
