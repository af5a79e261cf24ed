"""Trains the demo's model beside other programs: how much of its speed is left, and what a step costs the processor.

  python benchmarks/shared_machine.py                 the table of docs/performance.md; six minutes with AMX
  python benchmarks/shared_machine.py --rounds 1      a first look; settings of `lm fit` can be given, too

Each measurement is `lm fit`, as it is shipped, as a process of its own; other programs are busy loops; all cases take
turns.

    quiet         nothing beside it                        1, 3 loops    that many busy loops, begun before it
    1 later       one busy loop, begun when it is under way; steps in which it may not have noticed are not counted
    OMP_NUM_THREADS=1    the run has one thread, as it advises beside other programs on two cores
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import Callback

ROOT = Path(__file__).parent.parent
BEGUN, WARMUP = 5, 30  # steps after which a later program begins, and steps that are not counted
LATER_WARMUP = 150  # steps: more than five seconds, after which it has been noticed
MOST_CPU = 1.3  # times the quiet processor seconds of a step
RESULT = "SHARED_MACHINE_RESULT"  # the environment's name of the file for the clock's figures
LOOP_CODE = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(1_000_000): pass"
LOOP = [sys.executable, "-c", LOOP_CODE]  # ends with whoever began it


class Case(NamedTuple):
    """What runs beside a training."""

    loops: int
    later: bool = False  # begun when it is under way
    goal: float = 0.0  # of the quiet speed, at least
    threads: int | None = None  # of the training


CASES = {
    "quiet": Case(0),
    "1 loop": Case(1, goal=0.65),
    "3 loops": Case(3, goal=0.3),
    "1 later": Case(1, later=True),
    "1 loop, OMP_NUM_THREADS=1": Case(1, goal=0.65, threads=1),
    "3 loops, OMP_NUM_THREADS=1": Case(3, goal=0.3, threads=1),
}


class Clock(Callback):
    """Measures the steps after the warmup by the clock and by the processor, in the process that trains."""

    def __init__(self, warmup: int) -> None:
        self.result, self.warmup = Path(os.environ[RESULT]), warmup

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        now = time.perf_counter(), time.process_time()
        if trainer.global_step == BEGUN:
            self.result.with_suffix(".begun").touch()
        elif trainer.global_step == self.warmup:
            self.start = now
        elif trainer.global_step == trainer.max_steps:
            steps = trainer.max_steps - self.warmup
            seconds, cpu = (end - start for start, end in zip(self.start, now, strict=True))
            self.result.write_text(json.dumps({"speed": steps / seconds, "cpu": cpu / steps}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="that are timed (default: 30)")
    parser.add_argument("--rounds", type=int, default=3, help="of all cases in turn (default: 3)")
    args, more = parser.parse_known_args()  # the rest are settings of `lm fit`
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for number in range(args.rounds):
            for name, case in CASES.items():
                print(f"\r\033[Kround {number + 1} of {args.rounds}: {name}", end="", file=sys.stderr, flush=True)
                results[name].append(measure(case, Path(folder), args.steps, more))
    print("\r\033[K", end="", file=sys.stderr)
    report(results)


def make_data(folder: Path) -> None:
    """Encodes the demo's stories, as `make demo` does."""
    from tokenization.__main__ import main as tokenization

    data = ROOT / "data"
    assert not tokenization(
        ["train", str(data / "tinystories-train.txt.gz"), "--vocab-size=2048", f"--output={folder / 'tok'}"]
    )
    for name in ("train", "valid"):
        text, output = str(data / f"tinystories-{name}.txt.gz"), f"--output={folder / name}.bin"
        assert not tokenization(["encode", text, f"--tokenizer={folder / 'tok'}", output])


@contextlib.contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Runs this many programs that each want a core."""
    loops = [subprocess.Popen(LOOP) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(case: Case, folder: Path, steps: int, more: list[str]) -> dict[str, float]:
    """Trains once; returns steps a second and processor seconds a step."""
    result = folder / "result.json"
    warmup = LATER_WARMUP if case.later else WARMUP
    for path in (result, result.with_suffix(".begun")):
        path.unlink(missing_ok=True)
    settings = {
        "trainer.default_root_dir": folder / "run",
        "trainer.max_steps": warmup + steps,
        "trainer.val_check_interval": warmup + steps,
        "trainer.limit_val_batches": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks+": "shared_machine.Clock",
        "trainer.callbacks.warmup": warmup,
        "model.warmup_steps": 1,
        "data.train_path": folder / "train.bin",
        "data.val_path": folder / "valid.bin",
        "data.tokenizer": folder / "tok",
        "samples.max_new_tokens": 0,
    }
    command = [sys.executable, "-m", "lm", "fit", "-c", str(ROOT / "configs/demo.yaml")]
    command += [*(f"--{name}={value}" for name, value in settings.items()), *more]
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = os.environ | {RESULT: str(result), "PYTHONPATH": paths}
    if case.threads is not None:
        environment["OMP_NUM_THREADS"] = str(case.threads)
    with busy_loops(0 if case.later else case.loops):
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while case.later and run.poll() is None and not result.with_suffix(".begun").exists():
            time.sleep(0.05)
        with busy_loops(case.loops if case.later else 0):
            _, errors = run.communicate()
    shutil.rmtree(folder / "run", ignore_errors=True)
    if run.returncode:
        sys.exit(f"\nlm fit failed:\n{errors[-2000:]}")
    figures: dict[str, float] = json.loads(result.read_text())
    return figures


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """Prints medians over the rounds; ratios to quiet are medians of each round's."""
    print(f"{'':<28}{'steps/s':>10}{'of quiet':>10}{'CPU s/step':>12}{'of quiet':>10}")
    for name, runs in results.items():
        row, ratios = f"{name:<28}", []
        for figure, width, digits in (("speed", 10, 2), ("cpu", 12, 3)):
            pairs = zip(results["quiet"], runs, strict=True)
            ratio = statistics.median(run[figure] / quiet[figure] for quiet, run in pairs)
            row += f"{statistics.median(run[figure] for run in runs):>{width}.{digits}f}{ratio:>10.2f}"
            ratios.append(ratio)
        if goal := CASES[name].goal:
            reached = ratios[0] >= goal and ratios[1] <= MOST_CPU
            row += f"  {'reached' if reached else 'missed'}: at least {goal}, at most {MOST_CPU}"
        print(row)


if __name__ == "__main__":
    main()
