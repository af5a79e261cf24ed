"""How the cost of training grows with the context, the width and the batch, on this machine, one at a time.

  python benchmarks/scaling.py       the table of docs/performance.md; four minutes with AMX

Around the handout's base model (vocabulary 10,000, context 256, d_model 512, 4 layers, heads of 32, 32 windows): the
fast path as `lm fit` chooses it for a short run, with kernels of our own or, where there can be none, compiled, in
bfloat16 where the processor has it. The context grows at a constant number of tokens a batch. Each point is a process
of its own, so that its peak memory is its own; the medians of a few steps. The MFU is of the model's FLOPs as the
handout counts them, every query with every key.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BASE = {"context_length": 256, "d_model": 512, "batch_size": 32}
TOKENS = BASE["context_length"] * BASE["batch_size"]
WARMUP = 2  # steps that are not timed
SWEEPS = {
    "context_length": [
        {"context_length": n, "batch_size": TOKENS // n} for n in (128, 256, 512, 1024, 2048, 4096, 8192)
    ],
    "d_model": [{"d_model": n} for n in (64, 128, 256, 512, 768, 1024)],
    "batch_size": [{"batch_size": n} for n in (1, 2, 4, 8, 16, 32, 64)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="that are timed (default: 5)")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process measures
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(BASE | json.loads(args.one), args.steps)))
        return
    print(f"{'':<22}{'attention':>10}{'tokens/s':>10}{'peak GB':>9}{'MFU':>7}")
    for name, points in SWEEPS.items():
        for point in points:
            result, label = run(point, args.steps), f"{name} {point[name]}"
            speed, memory, mfu = result["speed"], result["memory"], result["mfu"]
            print(f"{label:<22}{result['attention']:>10}{speed:>10,.0f}{memory:>9.2f}{mfu:>7.0%}", flush=True)


def run(point: dict[str, int], steps: int) -> dict[str, Any]:
    print(f"\r\033[K{point}", end="", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, f"--one={json.dumps(point)}", f"--steps={steps}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"\n{point} failed:\n{done.stderr[-2000:]}")
    print("\r\033[K", end="", file=sys.stderr)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(settings: dict[str, int], steps: int) -> dict[str, Any]:
    from lm.machine.resources import keep_large_blocks

    keep_large_blocks()
    import torch

    from lm.accounting.costs import training_flops_per_token
    from lm.machine.compiling import compile_graph
    from lm.machine.peaks import peak_flops
    from lm.machine.resources import native_precision
    from lm.model.fast import speed_up, why_no_kernels
    from lm.model.fast_attention import choose_attention
    from lm.model.transformer import TransformerLM
    from lm.optim.adamw import AdamW
    from lm.optim.clipping import clip_gradients

    context_length, d_model, batch_size = (settings[name] for name in BASE)
    torch.manual_seed(0)
    model = TransformerLM(10_000, context_length, d_model, num_layers=4, num_heads=d_model // 32)
    attention, kernels = choose_attention("cpu", context_length), not why_no_kernels()
    speed_up(model, attention, kernels=kernels)
    if not kernels:
        model.compile(backend=compile_graph)
    optimizer, precision = AdamW(model.parameters(), kernel=kernels), native_precision("cpu")
    tokens = torch.randint(10_000, (batch_size, context_length + 1))
    seconds = []
    for _ in range(WARMUP + steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = model(tokens[:, :-1], targets=tokens[:, 1:])
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    speed = batch_size * context_length / sorted(seconds[WARMUP:])[steps // 2]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    mfu = speed * training_flops_per_token(model) / peak_flops("cpu", precision)[0]
    return {"speed": speed, "memory": memory, "mfu": mfu, "attention": attention}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
