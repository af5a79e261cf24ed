"""Trains models with this package, with an older version of it and with others, step by step in turn.

  python benchmarks/training.py --old FOLDER      the tables of docs/performance.md; FOLDER: a checkout of e3ae780, made
                                                  by `git worktree add FOLDER e3ae780`; without --old no older version
  python benchmarks/training.py --ladder          what each step of the fast path gives, one after another

Each contestant is a process of its own, so that its peak memory is its own. All are started, compile, and drop their
first steps; then in each round every contestant makes one step, in a random order, while the others wait: a machine is
not equally fast all the time, and only ratios within a round mean anything. All train in bfloat16 where the processor
has it.

  lm fit         the command, with Trainer, callbacks and logging, as it is shipped; "compiled" with torch.compile
  old            the older version, compiled, or "eager"
  llama, gpt2    transformers' models, compiled, with torch's fused AdamW and cross_entropy; litgpt's, if installed

gpt2 stands in for nanoGPT, whose architecture and training loop it repeats; litgpt pins versions that exclude ours and
needs an environment of its own. "+ memory" gives the others our allocator settings (lm/machine/resources.py).
"""

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training_stages.others import their_loop
from training_stages.ours import lm_fit, make_data, our_loop
from training_stages.shapes import LADDER, SHAPES
from training_stages.tables import report
from training_stages.turns import Turns

ROOT = Path(__file__).parent.parent
WARMUP = 3  # steps that are not counted
SPINS = 300_000  # GNU OpenMP's default; where it is set, `lm fit` does not take the turns of others for another program
GROUPS = {  # a heading: the shape, the rounds, and who takes turns; not all at once, for the sake of memory
    "The handout's base model": ("base", 10, ["lm fit", "lm fit compiled", "old", "llama", "gpt2", "litgpt"]),
    "The same, others with our allocator settings": (
        "base",
        10,
        ["lm fit", "llama + memory", "gpt2 + memory", "litgpt + memory"],
    ),
    "configs/experiments/adamw.yaml's shape": ("adamw", 40, ["lm fit", "lm fit compiled", "old", "old eager"]),
    "configs/tinystories-fast.yaml's shape, with Muon": ("fast", 40, ["lm fit", "lm fit compiled", "old", "old eager"]),
}
STEPS = {
    "The first steps of the fast path": ("base", 5, list(LADDER)[:4]),
    "The next steps, after the last of those": ("base", 5, list(LADDER)[3:]),
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
    groups = STEPS if args.ladder else GROUPS
    for heading, (shape, rounds, names) in groups.items():
        names = [name for name in names if is_there(name, args)]
        if (args.shape is None or args.shape == shape) and len(names) > 1:
            report(heading, shape, take_turns(names, shape, args.rounds or rounds, args), args.ladder)


def is_there(name: str, args: argparse.Namespace) -> bool:
    missing = (name.startswith("old") and not args.old) or (
        name.startswith("litgpt") and not importlib.util.find_spec("litgpt")
    )
    return not missing and (args.only is None or name in args.only)


def take_turns(names: list[str], shape: str, rounds: int, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Lets each contestant make a step in turn; returns what each has measured."""
    workers = {}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for name in names:
            command = [sys.executable, __file__, "--one", name, "--shape", shape]
            command += ["--old", str(args.old.resolve())] if args.old else []
            workers[name] = subprocess.Popen(
                command,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"GOMP_SPINCOUNT": str(SPINS)} | os.environ,
            )
            say(f"{shape}: {name} starts")
            start = time.monotonic()
            for _ in range(WARMUP):
                ask(name, workers[name])
            results[name].append({"start": time.monotonic() - start})
        for number in range(rounds):
            for name in random.Random(number).sample(names, len(names)):  # who comes after whom must not matter
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


def ask(name: str, worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Lets a contestant make a step; returns its seconds, those of its processors, and its peak memory in GB."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"\n{name} has ended; to see why: echo | {' '.join(map(str, worker.args))}")  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(line)
    return found


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


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
