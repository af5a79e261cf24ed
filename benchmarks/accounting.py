"""What `lm account --probe` predicts of a run, against what `lm fit` then takes: memory, time, the checkpoint's size.

  python benchmarks/accounting.py                 the table of docs/accounting.md; needs `make data`
  python benchmarks/accounting.py --seconds 60    with longer runs

One configuration after another, over width, depth, context, batch, vocabulary, precision (the processor's native one
unless the name says fp32), and the ways of computing.
Both are processes as a user would start them; the runs are to take about as many seconds as are asked for, with two
validations and saves. Whatever is compiled is compiled from nothing. "formula" is the peak that `lm fit` expects
before its first step, from shapes alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lm.machine.resources import native_precision

ROOT = Path(__file__).parent.parent
LIMITS = {"memory": 0.1, "formula memory": 0.1, "time": 0.15, "processor": 0.15, "checkpoint": 0.01}
BATCH, NATIVE, FULL = "data.batch_size", native_precision("cpu"), "32-true"


def shape(
    vocab: int, d_model: int, layers: int, context: int, batch: int, precision: str = NATIVE, **more: Any
) -> dict[str, Any]:
    model = {"vocab_size": vocab, "d_model": d_model, "num_layers": layers, "num_heads": max(2, d_model // 64)}
    model |= {"context_length": context, "compile": False} | more
    settings = {f"model.{name}": value for name, value in model.items()}
    return settings | {BATCH: batch, "trainer.precision": precision}


RUNS = {
    "base": shape(2048, 192, 4, 256, 8),
    "fp32": shape(2048, 192, 4, 256, 8, FULL),
    "plain": shape(2048, 192, 4, 256, 8, fast=False),
    "plain, fp32": shape(2048, 192, 4, 256, 8, FULL, fast=False),
    "recompute": shape(2048, 192, 4, 256, 8, recompute_activations=True),
    "silu": shape(2048, 192, 4, 256, 8, feed_forward="silu"),
    "accumulate 4": shape(2048, 192, 4, 256, 8) | {"trainer.accumulate_grad_batches": 4},
    "compiled": shape(2048, 192, 4, 256, 8, compile=True),
    "narrow": shape(2048, 64, 2, 64, 32),
    "narrow, batch 1": shape(2048, 128, 2, 64, 1, FULL),
    "deep": shape(2048, 64, 8, 256, 8),
    "context 512, fp32": shape(2048, 128, 4, 512, 8, FULL),
    "context 1024": shape(2048, 128, 2, 1024, 4),
    "context 1024, sdpa": shape(2048, 256, 4, 1024, 4, attention="sdpa"),
    "context 1024, plain": shape(2048, 256, 2, 1024, 2, fast=False),
    "width 256": shape(2048, 256, 4, 256, 16),
    "post-norm": shape(2048, 256, 4, 256, 8, norm_position="post"),
    "10k": shape(10_000, 256, 4, 256, 32),
    "10k, plain, fp32": shape(10_000, 256, 4, 256, 8, FULL, fast=False),
    "10k, deep": shape(10_000, 384, 6, 128, 16),
    "10k, width 512": shape(10_000, 512, 4, 256, 8),
    "10k, 512, fp32": shape(10_000, 512, 4, 64, 32, FULL),
    "10k, 512, batch 1": shape(10_000, 512, 2, 128, 1),
    "10k, compiled": shape(10_000, 512, 4, 256, 16, compile=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=25, help="that a run is to take, roughly (default: 25)")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help=f"of {', '.join(RUNS)}")
    args = parser.parse_args()
    heads = ["run", "steps", "GB", "predicted", "error", "formula", "error", "seconds", "predicted", "error"]
    heads += ["CPU s", "predicted", "error"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    errors: dict[str, list[float]] = {name: [] for name in LIMITS}
    for name in args.only or RUNS:
        arguments, steps = run_arguments(RUNS[name], args.seconds)
        predicted = predict(arguments)
        measured = fit(arguments)
        row = {key: predicted[key] / measured[key.removeprefix("formula ")] - 1 for key in predicted}
        memory, seconds = measured["memory"], measured["time"]
        print(
            f"| {name} | {steps} | {memory:.2f} | {predicted['memory']:.2f} | {row['memory']:+.0%}"
            f" | {predicted['formula memory']:.2f} | {row['formula memory']:+.0%}"
            f" | {seconds:.0f} | {predicted['time']:.0f} | {row['time']:+.0%}"
            f" | {measured['processor']:.0f} | {predicted['processor']:.0f} | {row['processor']:+.0%} |",
            flush=True,
        )
        for key in errors:
            errors[key].append(abs(row[key]))
    print()
    for key, values in errors.items():
        limit, within = LIMITS[key], sum(value <= LIMITS[key] for value in values)
        middle, worst = statistics.median(values), max(values)
        print(f"{key}: median error {middle:.1%}, largest {worst:.1%}; within {limit:.0%}: {within} of {len(values)}")


def run_arguments(settings: dict[str, Any], seconds: float) -> tuple[list[str], int]:
    """For both commands; the run's steps by a guess at a quarter of the machine's peak, and no more than 2,000."""
    from lm.accounting.activations import make_model
    from lm.accounting.costs import training_flops_per_token
    from lm.machine.peaks import peak_flops

    model = {name.removeprefix("model."): value for name, value in settings.items() if name.startswith("model.")}
    accumulate = settings.get("trainer.accumulate_grad_batches", 1)
    tokens = model["context_length"] * settings[BATCH] * accumulate
    flops = tokens * training_flops_per_token(make_model(model))
    steps = max(12, min(2000, int(seconds * peak_flops("cpu", settings["trainer.precision"]).now / 4 / flops)))
    settings = settings | {
        "trainer.max_steps": steps,
        "trainer.val_check_interval": max(1, steps // 2) * accumulate,
        "trainer.limit_val_batches": 10,
        "model.warmup_steps": 5,
    }
    words = {True: "true", False: "false"}
    flags = [f"--{name}={words[value] if isinstance(value, bool) else value}" for name, value in settings.items()]
    return ["-c", str(ROOT / "configs/experiments/adamw.yaml"), *flags], steps


def predict(arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "lm", "account", *arguments, "--probe", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    found = json.loads(done.stdout)
    probed = found["prediction"]
    sizes = {"memory": probed["peak_bytes"] / 1e9, "formula memory": found["peak_bytes"] / 1e9}
    return sizes | {
        "time": probed["seconds"],
        "processor": probed["processor_seconds"],
        "checkpoint": probed["checkpoint_bytes"],
    }


def fit(arguments: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
        command = [sys.executable, "-m", "lm", "fit", *arguments, f"--trainer.default_root_dir={folder}/run"]
        start = time.time()
        with subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.time() - start
        if process.returncode:
            sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
        size = Path(folder, "run/last.ckpt").stat().st_size
    processor = usage.ru_utime + usage.ru_stime  # of compilers, too, which have ended
    return {"memory": usage.ru_maxrss * 1024 / 1e9, "time": seconds, "processor": processor, "checkpoint": size}


if __name__ == "__main__":
    main()
