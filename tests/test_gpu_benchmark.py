"""Proves that benchmarks/gpu.py survives what a GPU does to it, and, slowly, that all of it runs on a CPU."""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys

import pytest
from helpers import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"

WORKER = """
import json, os, sys, time
parts = json.loads(sys.argv[1]) or ["good", "crashes", "hangs", "breaks the GPU", "last", "too late"]
events = open(sys.argv[2], "a")
tell = lambda event: print(json.dumps(event), file=events, flush=True)
tell({"pending": parts, "machine": {"pid": os.getpid()}})
for part in parts:
    if part == "crashes":
        os.abort()
    if part in ("hangs", "too late"):
        time.sleep(60)
    tell({"part": part, "ok": part != "breaks the GPU", "seconds": 0.0, "figure": 1.5})
    if part == "breaks the GPU":
        sys.exit(3)
"""


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_part_costs_itself_alone(gpu, tmp_path, monkeypatch, capsys):
    def start_worker(name, parts, args, log):
        events = args.output / f"{name}.jsonl"
        return subprocess.Popen([sys.executable, "-c", WORKER, json.dumps(parts), events], stderr=log)

    monkeypatch.setattr(gpu, "start_worker", start_worker)

    class UntilLast(gpu.StageRun):
        """Its time is over after a part, not after seconds, which may be few on a busy machine."""

        def hear(self, event):
            super().hear(event)
            if "last" in self.parts:
                self.deadline = gpu.time.monotonic()

    monkeypatch.setattr(gpu, "PART_SECONDS", 3)
    run = UntilLast("checks", argparse.Namespace(output=tmp_path), gpu.time.monotonic() + 300, {"stages": {}})
    run.run()
    parts = json.loads((tmp_path / "results.json").read_text())["stages"]["checks"]["parts"]
    assert parts == run.parts
    assert list(parts) == ["good", "crashes", "hangs", "breaks the GPU", "last", "too late"]
    assert [part["ok"] for part in parts.values()] == [True, False, False, False, True, False]
    assert parts["crashes"]["reason"].startswith("ended the worker with -6")
    assert parts["hangs"]["reason"].startswith("killed after ")
    assert "ok     good" in capsys.readouterr().out


def test_a_worker_that_does_not_start(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "start_worker", lambda *_: subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]))
    results = {"stages": {}}
    gpu.StageRun("profile", argparse.Namespace(output=tmp_path), gpu.time.monotonic() + 60, results).run()
    assert results["stages"]["profile"]["parts"]["(start)"]["reason"].startswith("ended the worker with 7")


def test_every_stage_has_parts(gpu, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    bench = importlib.import_module("gpu_stages.bench").Bench("cuda", False, tmp_path)
    for stage in gpu.STAGES:
        parts = importlib.import_module(f"gpu_stages.{stage}").parts(bench)
        assert len(parts) >= 3
        assert all(map(callable, parts.values()))


@pytest.mark.slow
def test_everything_on_a_cpu(tmp_path):
    command = [sys.executable, SCRIPT, "--accelerator=cpu", "--small", f"--output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    stages = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert list(stages) == ["checks", "throughput", "stories", "generation", "profile"]
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", *(f"{stage}.log" for stage in stages)}
