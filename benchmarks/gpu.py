"""What only a GPU can show, in minutes and from one command, on a machine without a network.

  python benchmarks/gpu.py --output gpu-results                      everything
  python benchmarks/gpu.py --stages checks,profile --budget 120      these, in two minutes at most
  python benchmarks/gpu.py --stages throughput --parts "fit 128"     of a stage, what has this in its name
  python benchmarks/gpu.py --accelerator cpu --small                 the script itself tried out, in seconds

  checks      fast = plain, compiled = eager, resume, skipped steps, generation, export, no waiting inside a step
  throughput  tokens/s, MFU and peak memory of configs/tinystories.yaml, and of transformers' GPT-2 and Llama
  stories     the stories that come with the repository: tokenizer, training, a story
  generation  tokens/s, batch 1 and 64, float32 and bfloat16
  profile     ten training steps: where the time goes, how often the GPU is waited for

Every stage has a time limit and consists of parts, which a worker process takes one after another. A part that hangs,
crashes or breaks the GPU's state costs itself alone: another worker goes on with the next. results.json in the output
folder is written anew after each part, and all that the parts print is in STAGE.log.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PART_SECONDS = 90  # at most, for any part


# Seconds at most. Each is a module of gpu_stages, whose parts(bench) are its parts by name, the most important first.
STAGES = {"checks": 100, "throughput": 170, "stories": 135, "generation": 45, "profile": 75}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="(default: gpu-results)")
    parser.add_argument("--stages", default=",".join(STAGES), help="(default: all)")
    parser.add_argument("--parts", default="", help="only those with this in their name")
    parser.add_argument("--budget", type=float, default=600, help="seconds for everything (default: 600)")
    parser.add_argument("--accelerator", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few steps")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # a JSON list of parts: what a worker does
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # for its token files and runs
    args = parser.parse_args()
    stages = args.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if args.work is not None:
        return work(stages[0], json.loads(args.work), args)
    args.output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + args.budget
    results: dict[str, Any] = {"command": sys.argv, "begun": time.strftime("%Y-%m-%d %H:%M:%S"), "stages": {}}
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        args.folder = Path(folder)
        for name in stages:
            StageRun(name, args, min(deadline, time.monotonic() + STAGES[name]), results).run()
    parts = [part for stage in results["stages"].values() for part in stage["parts"].values()]
    failed = sum(not part["ok"] for part in parts)
    print(f"\n{args.output / 'results.json'}: of {len(parts)} parts {failed} failed or were not begun")
    return min(failed, 1)


# --- the parent: workers and their time ------------------------------------------------------------------------------


class StageRun:
    """One stage: its parts by name, each with its figures as soon as it has ended in whatever way."""

    def __init__(self, name: str, args: argparse.Namespace, deadline: float, results: dict[str, Any]):
        self.name, self.args, self.deadline, self.results = name, args, deadline, results
        self.begun = time.monotonic()
        self.pending: list[str] | None = None  # not known before the first worker has listed them
        self.events = args.output / f"{name}.jsonl"
        self.log = args.output / f"{name}.log"
        self.parts: dict[str, dict[str, Any]] = {}
        results["stages"][name] = {"parts": self.parts}

    def run(self) -> None:
        print(f"\n--- {self.name}: at most {self.deadline - self.begun:.0f} s", flush=True)
        self.log.unlink(missing_ok=True)
        while self.pending != [] and time.monotonic() < self.deadline:
            self.employ_worker()
        for part in self.pending or []:
            self.take(part, {"ok": False, "reason": "not begun: the time was over"})

    def employ_worker(self) -> None:
        """Until it has done everything, or has to be replaced."""
        self.events.unlink(missing_ok=True)
        with open(self.log, "a") as log:
            worker = start_worker(self.name, self.pending, self.args, log)
        read, since, late, code = 0, time.monotonic(), False, None
        while code is None and not late:
            time.sleep(0.1)
            code = worker.poll()  # before its events are read: what it has told is told
            lines = self.events.read_text().splitlines() if self.events.exists() else []
            for line in lines[read:]:
                self.hear(json.loads(line))
                since = time.monotonic()
            read, late = len(lines), time.monotonic() > min(self.deadline, since + PART_SECONDS)
        if code is None:
            worker.kill()
            worker.wait()
        self.events.unlink(missing_ok=True)
        if code == BROKEN or self.pending == []:
            return
        reason = f"killed after {time.monotonic() - since:.0f} s" if late else f"ended the worker with {code}"
        if self.pending is None:
            self.pending = ["(start)"]
        self.take(self.pending.pop(0), {"ok": False, "reason": f"{reason}; see {self.log}"})

    def hear(self, event: dict[str, Any]) -> None:
        if "pending" in event:
            self.pending = event["pending"]
            self.results["machine"] = event["machine"]
            return
        part = event.pop("part")
        assert self.pending is not None
        self.pending.remove(part)
        self.take(part, event)

    def take(self, part: str, figures: dict[str, Any]) -> None:
        self.parts[part] = figures
        self.results["stages"][self.name]["seconds"] = round(time.monotonic() - self.begun, 1)
        temporary = self.args.output / ".results.tmp"
        temporary.write_text(json.dumps(self.results, indent=1))
        os.replace(temporary, self.args.output / "results.json")
        print(describe(part, figures), flush=True)


def start_worker(name: str, parts: list[str] | None, args: argparse.Namespace, log: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, f"--stages={name}", f"--work={json.dumps(parts)}", f"--parts={args.parts}"]
    command += [f"--{option}={getattr(args, option)}" for option in ("output", "folder", "accelerator")]
    command += ["--small"] * args.small
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if name == "checks":
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # or deterministic algorithms are refused
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def describe(part: str, values: dict[str, Any]) -> str:
    """One line of the table."""
    state = "ok" if values["ok"] else "FAILED"
    figures = {name: value for name, value in values.items() if name not in ("ok", "seconds", "reason", "long")}
    words = [
        f"{name} {value:,.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    ]
    reason = [str(values["reason"])] if values.get("reason") else []
    table = f"\n{values['long']}" if values.get("long") else ""
    return f"{state:<7}{part:<28}{values.get('seconds', 0):>6.1f} s  {'; '.join(reason + words)}{table}"


# --- the worker ------------------------------------------------------------------------------------------------------

BROKEN = 3  # exit code: the part has failed and been reported, but the GPU is not to be trusted any more


def work(name: str, wanted: list[str] | None, args: argparse.Namespace) -> int:
    from gpu_stages.bench import Bench, describe_machine, fresh

    bench = Bench(args.accelerator, args.small, args.folder / name)
    bench.folder.mkdir(exist_ok=True)
    parts = importlib.import_module(f"gpu_stages.{name}").parts(bench)
    names = [part for part in parts if (part in wanted if wanted is not None else args.parts in part)]
    with open(args.output / f"{name}.jsonl", "a") as events:

        def tell(event: dict[str, Any]) -> None:
            events.write(f"{json.dumps(event)}\n")
            events.flush()

        tell({"pending": names, "machine": describe_machine(bench.device)})
        for part in names:
            print(f"\n=== {part}", flush=True)
            begun = time.monotonic()
            try:
                fresh(bench.device)
                found = {"ok": True} | (parts[part]() or {})
            except BaseException as error:  # SystemExit among them, by which `lm fit` ends
                traceback.print_exc()
                found = {"ok": False, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            tell({"part": part, "seconds": round(time.monotonic() - begun, 2)} | found)
            if "CUDA error" in found.get("reason", ""):
                return BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
