"""Proves that benchmarks/generation.py compares like with like: its tables from made-up results, and its refusal to
report contestants that write other texts; slowly, that all of it runs."""

import importlib
import json
import subprocess
import sys

import pytest
from helpers import ROOT

SCRIPT = ROOT / "benchmarks" / "generation.py"
CASE, DRAWN = [1, 32, 200, 0], [1, 32, 200, 0.8]


@pytest.fixture
def stages(monkeypatch):
    """The module generation_stages.tables."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("generation_stages.tables")


def row(who, precision, threads, speed, **more):
    return {"who": who, "precision": precision, "threads": threads, "case": CASE, "speed": speed} | more


def results(rows):
    memory = [row("memory", "", 1, 8e9), row("memory", "", 2, 11e9), row("memory", "", 2, 9e9)]
    about = {"when": "today", "code": "0.1.0", "machine": "a machine", "versions": ["theirs 1.0"], "losses": {}}
    return about | {"rows": memory + rows, "other_programs": 0.25, "weights": 10_000_000, "cases": [CASE]}


def test_medians_of_the_better_number_of_threads(stages):
    rows = [row("ours", "fp32", 1, speed) for speed in (90, 100, 500)]
    rows += [row("ours", "fp32", 2, speed) for speed in (99, 98, 97)]
    rows += [row("Hugging Face", "fp32", 1, 40), row("Hugging Face", "fp32", 2, 50)]
    rows += [row("llama.cpp", "fp32", 2, 80, same=0.75)]
    made = " ".join(stages.tables(results(rows)).split())
    assert "| fp32 | 1 x 32 + 200 | 100 (1) | 50 (2) | 80 (2) | 2.00, 1.25 |" in made
    assert "- 10.0 GB/s from memory with 2 threads would allow 250 tokens/s in fp32, of which 40% were reached." in made
    assert "In float32 it wrote at least 75% of our likeliest tokens" in made
    rows[-1]["same"] = 1
    assert "In float32 it wrote all of our likeliest tokens" in " ".join(stages.tables(results(rows)).split())
    assert "other programs took 0.2 cores" in made
    drawn = [row("ours", "fp32", 1, 70) | {"case": DRAWN}]
    assert "| fp32 | 1 x 32 + 200, drawn | 70 (1) |" in stages.tables(results(drawn) | {"cases": [CASE, DRAWN]})


def test_precisions_are_compared(stages):
    found = results([row("ours", "bf16", 1, 100), row("ours", "int8", 2, 160)])
    made = " ".join(stages.tables(found | {"losses": {"fp32": 2.5, "int8": 2.5004}}).split())
    assert "int8 is 1.60 times as fast as bf16" in made
    assert "2.5000 in fp32, 2.5004 in int8" in made


def test_other_texts_are_not_reported(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("benchmarks_generation", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = [row("ours", "fp32", 1, 1, texts=[[1, 2]]), row("llama.cpp", "fp32", 1, 1, texts=[[1, 3]])]
    rows += [row("Hugging Face", "bf16", 1, 1, texts=[[4, 5]])]
    drawn = row("Hugging Face", "fp32", 1, 1, texts=[[4, 5]]) | {"case": DRAWN}
    benchmark.check_agreement([*rows, drawn])
    assert [each.get("same") for each in (*rows, drawn)] == [1, 0.5, None, None]
    rows = [row("ours", "fp32", 1, 1, texts=[[1, 2]]), row("Hugging Face", "fp32", 1, 1, texts=[[1, 3]])]
    with pytest.raises(SystemExit, match="writes other texts than ours"):
        benchmark.check_agreement(rows)


@pytest.mark.slow
def test_all_of_it(tmp_path):
    command = [sys.executable, SCRIPT, "--small", "--rounds=1", "--threads", "1", f"--json={tmp_path / 'all.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert {row["who"] for row in rows} >= {"memory", "ours", "Hugging Face"}
    assert all(row["speed"] > 0 for row in rows)
