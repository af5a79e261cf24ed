"""Proves that the tokenizer's benchmarks compare only who gives the same ids, and refuse wrong input with one line."""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def documents(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tokenizer_stages.documents")


def test_all_of_it_in_small(tmp_path):
    """tiktoken is there, gigabpe is not asked for: what is absent is named only of those that are."""
    command = [sys.executable, BENCHMARKS / "tokenizer.py", "--small", "--only", "tiktoken", "--json", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out").read_text())
    assert list(results["versions"]) == ["tokenization", "tiktoken"]
    rows = results["rows"]
    assert {row["section"] for row in rows} == {"documents", "kinds", "start", "train", "files"}
    assert {row["form"] for row in rows if "form" in row} == {
        *("list", "array", "batch", "stream", "decode", "cold", "warm")
    }
    races = [row for row in rows if "seconds" in row]
    assert all(row["seconds"].keys() == {"tokenization", "tiktoken"} for row in races)
    assert all(row["left_out"] == {} for row in races)
    assert all(0 < size < 1 for row in races for size in row["megabytes"])
    started = {row["library"]: row["digest"] for row in rows if row["section"] == "start"}
    assert started.keys() == {"tokenization", "tiktoken", "tokenization, the first time"}
    assert len(set(started.values())) == 1
    assert [row["library"] for row in rows if row["section"] == "files"] == ["tokenization", "tiktoken"]
    assert "| 100 B | " in done.stdout
    assert "| gpt2, english | " in done.stdout
    assert "**gpt2: encode a file**, 0.1 MB of English" in done.stdout


def test_tables_are_put_between_the_marks_of_a_document(documents):
    marks = importlib.import_module("marks")
    begin, end = marks.marks("tokenizer.py")
    document = f"# Title\n\n{begin}\n\nold\n\n{end}\n\nThe rest.\n"
    expected = f"# Title\n\n{begin}\n\n| new |\n\n{end}\n\nThe rest.\n"
    for made in ("| new |", "| new |\n"):
        assert marks.into_document(made, document, "tokenizer.py") == expected
        assert marks.into_document(made, expected, "tokenizer.py") == expected
        for unmarked in ("", "# Title\n", begin, end, document.replace("tokenizer.py", "generation.py")):
            assert marks.into_document(made, unmarked, "tokenizer.py") == "| new |\n"
    for script, page in (("tokenizer.py", "tokenizer-speed.md"), ("generation.py", "generation.md")):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert all(text.count(mark) == 1 for mark in marks.marks(script))


def test_it_is_listed_where_others_are_ahead(documents):
    tables = importlib.import_module("tokenizer_stages.tables")
    race = {"section": "documents", "vocabulary": "gpt2", "form": "list", "megabytes": [1, 1, 1], "left_out": {}}
    ours, slower, faster = [1.0, 2.0, 3.0], [1.1, 2.1, 0.1], [0.9, 1.9, 9.0]
    rows = [
        race | {"row": "100 B", "seconds": {"tokenization": ours, "one": slower, "two": faster}},
        race | {"row": "1 kB", "seconds": {"tokenization": ours, "one": ours, "two": [0.5, None, None]}},
        race | {"row": "lines", "form": "batch", "seconds": {"tokenization": ours, "two": faster}},
        race | {"row": "cjk", "form": "warm", "section": "kinds", "seconds": {"tokenization": ours, "one": faster}},
    ]
    start = {"section": "start", "vocabulary": "gpt2"}
    rows += [start | {"library": "tokenization", "process": 0.3}, start | {"library": "one", "process": 0.4}]
    rows += [
        start | {"library": "one", "process": 0.2},
        start | {"library": "tokenization, the first time", "process": 0},
    ]
    file = {"section": "files", "vocabulary": "gpt2", "threads": 2}
    rows += [file | {"library": name, "cold": 1, "warm": warm} for name, warm in (("tokenization", 0.5), ("two", 0.4))]
    rows += [file | {"threads": 1, "library": "two", "cold": 0, "warm": 0}]  # nothing to compare it with
    assert list(tables.list_ahead(rows)) == [
        "**Where others are ahead of tokenization**",
        "",
        "- two: to a list (gpt2 100 B, gpt2 1 kB); lines in one call (gpt2); a file again (gpt2 with 2 threads)",
        "- one: met again (gpt2 cjk); until the first ids are there (gpt2)",
        "",
    ]
    assert list(tables.list_ahead([rows[0] | {"seconds": {"tokenization": ours, "one": slower}}])) == [""]


# --- the race --------------------------------------------------------------------------------------------------------


def codes(text: str) -> list[int]:
    return list(map(ord, text))


def test_who_gives_other_ids_is_left_out(documents):
    calls = {
        "tokenization": {"list": codes},
        "array": {"list": lambda text: np.array(codes(text))},
        "other": {"list": lambda text: codes(text)[:-1]},
        "without": {"decode": "".join},
    }
    row = documents.race("list", calls, [["ab", "c"], ["déf"]])
    assert row["seconds"].keys() == {"tokenization", "array"}
    assert row["left_out"] == {"other": "other ids"}
    assert row["megabytes"] == [3e-6, 4e-6]


def test_nothing_is_reported_where_ours_are_wrong(documents):
    ours, right = {"list": lambda text: [0], "decode": str, "stream": lambda lines: [0]}, {"list": codes}
    with pytest.raises(SystemExit, match=r"^our ids differ from the reference's; nothing is reported$"):
        documents.race("list", {"tokenization": ours, "tiktoken": right}, [["ab"]])
    with pytest.raises(SystemExit, match=r"^our ids differ from the reference's; nothing is reported$"):
        documents.race("decode", {"tokenization": ours}, [[[97, 98]]], texts=[["ab"]])
    with pytest.raises(SystemExit, match=r"^our ids of a stream differ from those of the whole text"):
        documents.check_stream(ours | right, ["a", "b"])


def test_a_slow_library_sits_out_when_its_seconds_are_used_up(documents, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(documents.time, "process_time", lambda: clock[0])

    def takes(seconds: float):
        def encode(text: str) -> list[int]:
            clock[0] += seconds
            return codes(text)

        return {"list": encode}

    row = documents.race("list", {"tokenization": takes(0.25), "slow": takes(2.5)}, [["ab"], ["cd"], ["ef"]])
    assert row["seconds"] == {"tokenization": [0.25, 0.25, 0.25], "slow": [2.5, None, None]}
    assert documents.speed(row, "tokenization") == 2e-6 / 0.25
    assert documents.ratio(row, "slow") == 10


def test_documents_are_of_the_size_asked_for_and_other_ones_each_round(documents):
    text = "".join(f"{number:04} é漢\n" for number in range(500)).encode()
    first, second = documents.cut(text, 100, 5, 2)
    assert len(first) == len(second) == 5
    assert not set(first) & set(second)
    assert all(95 <= len(document.encode()) <= 100 for document in first + second)
    assert all(document in text.decode() for document in first + second)
    assert documents.num_bytes("10 kB") == 10_000


# --- wrong input -----------------------------------------------------------------------------------------------------


def refusal(script: str, arguments: list[str], monkeypatch, capsys) -> str:
    """Runs a benchmark in this process; it must end with 2 and one line, which is returned."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    out, err = capsys.readouterr()
    assert (leaving.value.code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--data", "none"], "--data none: no such folder; name one with english*.txt and so on, or leave it out"),
        (["--only", "tiktokn"], "--only tiktokn: no such library; there are fastokens, gigabpe, gigatoken, "),
        (["--json", "none/out.json"], "--json none/out.json: in a folder that does not exist; make it first"),
        (["--markdown", "none/a.md"], "--markdown none/a.md: in a folder that does not exist; make it first"),
        (["--megabytes", "0"], "--megabytes 0: must be more than 0"),
        (["--vocab-size", "100"], "--vocab-size 100: 256 bytes and <|endoftext|> need 257"),
        (["--repeat", "0"], "--repeat 0: at least one is needed"),
        (["--threads", "2", "-1"], "--threads -1: at least one is needed"),
    ],
)
def test_wrong_input_of_the_benchmark(arguments, line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert refusal("tokenizer.py", arguments, monkeypatch, capsys).startswith(f"tokenizer.py: {line}")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"old": "none"}, "none: is no checkout of this package; make one with `git worktree add none COMMIT`"),
        ({"--new": "empty"}, "empty: is no checkout of this package"),
        ({"text": "none.txt"}, "none.txt: no such file"),
        ({"--vocab": "empty"}, "empty: no such file"),
        ({"--pairs": "0"}, "--pairs 0: at least one is needed"),
        ({"old": "broken"}, "broken: RuntimeError: an older one"),
    ],
)
def test_wrong_input_of_the_comparison_of_versions(changed, line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("broken/tokenization").mkdir(parents=True)
    Path("broken/tokenization/__init__.py").write_text("raise RuntimeError('an older one')")
    Path("empty").mkdir()
    Path("file").touch()
    given = {"old": str(ROOT), "text": "file", "--vocab": "file", "--merges": "file", "--pairs": "1"} | changed
    options = [part for name, value in given.items() if name.startswith("--") for part in (name, value)]
    err = refusal("tokenizer_versions.py", [given["old"], given["text"], *options], monkeypatch, capsys)
    assert err.startswith(f"tokenizer_versions.py: {line}")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"text": "none.txt"}, "none.txt: no such file"),
        ({"--tokenizer": "empty"}, "empty: holds no tokenizer; make one with `tokenization train`"),
        ({"--groups": "0"}, "--groups 0: at least one is needed"),
    ],
)
def test_wrong_input_of_the_comparison_of_groups(changed, line, small, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    small.save("tok")
    Path("empty").mkdir()
    Path("file").touch()
    given = {"text": "file", "--tokenizer": "tok"} | changed
    options = [part for name, value in given.items() if name.startswith("--") for part in (name, value)]
    err = refusal("tokenizer_groups.py", [given["text"], *options], monkeypatch, capsys)
    assert err.startswith(f"tokenizer_groups.py: {line}")


@pytest.mark.parametrize("groups", ["1", "3"])
def test_counting_and_encoding_in_groups_are_timed(groups, small, monkeypatch, capsys, tmp_path):
    small.save(tmp_path / "tok")
    arguments = [str(ROOT / "README.md"), "--tokenizer", str(tmp_path / "tok"), "--vocab-size", "260"]
    options = ["--groups", groups, "--files", "3", "--pairs", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["tokenizer_groups.py", *arguments, *options])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(BENCHMARKS / "tokenizer_groups.py"), run_name="__main__")
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["train", "direct", "clock", "CPU", "encode", "direct", "clock", "CPU"]


def test_the_courses_experiments_in_small(monkeypatch, capsys):
    """Five ways to learn and six to encode give the same, which the script itself checks."""
    small = ("--merges", "3", "5", "--vocab-size", "300", "--characters", "300", "--seconds", "0")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["cs336.py", "--text", str(ROOT / "tests/fixtures/README.md"), *small])
    runpy.run_path(str(BENCHMARKS / "cs336.py"), run_name="__main__")
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [7, 7, 3, 7]
