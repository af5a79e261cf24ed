"""Proves that the command does what its help says from text to token file and back, and that whatever it is given
wrongly gets one line, exit code 2 and nothing half-written; Ctrl-C ends it with 130 and no file."""

import errno
import gzip
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT

from tokenization import END_OF_TEXT, TokenFile, Tokenizer, train_bpe
from tokenization.__main__ import COMMANDS, HELP, main
from tokenization.plots import plain

TEXT = f"The cat's tale.\nThe cat saw the other cat, and the other cat saw her.{END_OF_TEXT}\nA hat! É 漢字 😀\n" * 20


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, small) -> Path:
    """The working folder: text.txt, empty.txt, latin.txt (not UTF-8), tok/ (a tokenizer), text.bin (made with it)."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8", newline="")
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes(b"un caf\xe9 au lait")
    small.save("tok")
    small.encode_files(["text.txt"], "text.bin", num_processes=1)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run(line: str) -> int:
    return main(line.split(" "))


def command(line: str) -> list[str]:
    return [sys.executable, "-m", "tokenization", *line.split()]


ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def test_from_text_to_tokens_and_back(capsys):
    assert run("train text.txt --vocab-size 290 --output new/tok --processes 1") == 0
    out = capsys.readouterr().out
    assert "vocabulary      290 tokens" in out
    assert re.search(r"time .* reading .*, pre-tokenizing .*, initial counts .*, merges ", out)
    assert "longest token" in out
    assert "written         new/tok" in out
    tokenizer = Tokenizer.load("new/tok")
    assert (tokenizer.vocab, tokenizer.merges) == train_bpe("text.txt", 290, [END_OF_TEXT], num_processes=1)

    assert run("encode text.txt --tokenizer new/tok --output new/data/text.bin --processes 1") == 0
    file = TokenFile.open("new/data/text.bin")
    assert file.tokens.tolist() == tokenizer.encode(TEXT)
    assert file.description.tokenizer_sha256 == tokenizer.digest
    out = capsys.readouterr().out
    assert f"21 documents -> {len(file):,} uint16 tokens" in out
    assert "written: new/data/text.bin, text.bin.json and text.bin.documents" in out

    assert run("decode new/data/text.bin --tokenizer new/tok") == 0
    assert capsys.readouterr().out == TEXT


@pytest.mark.parametrize(("start", "limit"), [(0, 5), (3, 4), (10, None), (10**6, 5), (0, 10**6), (2, 0)])
def test_decoding_a_part(capsys, small, start, limit):
    arguments = f"decode text.bin --tokenizer tok --start {start}" + (f" --limit {limit}" if limit is not None else "")
    assert run(arguments) == 0
    tokens = TokenFile.open("text.bin").tokens
    out, err = capsys.readouterr()
    assert out == small.decode(tokens[start:].tolist()[:limit])
    assert err == (
        "" if start < len(tokens) else f"text.bin: has {len(tokens):,} tokens, none from --start 1,000,000 on\n"
    )


def test_inspecting(capsys, small):
    assert run("inspect tok --count 3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tok: 300 tokens, 43 merges"
    assert lines[1] == f"special tokens: {END_OF_TEXT}"
    first, last = lines.index("first merges:"), lines.index("last merges:")
    longest = [int(line.split()[0]) for line in lines[lines.index("longest tokens:") + 1 : first]]
    assert (
        longest == sorted((len(token) for token_id, token in small.vocab.items() if token_id != 256), reverse=True)[:3]
    )
    shown = [tuple(map(repr, (left.decode(), right.decode()))) for left, right in small.merges]
    assert lines[first + 1 : last] == [f"  {left} + {right}" for left, right in shown[:3]]
    assert lines[last + 1 :] == [f"  {left} + {right}" for left, right in shown[-3:]]


def test_comparing_gives_the_table_of_tokenizers_against_texts(capsys, small, monkeypatch):
    clock = SimpleNamespace(perf_counter=partial(next, itertools.count(0, 0.001)))
    monkeypatch.setattr("tokenization.commands.compare.time", clock)
    Tokenizer({n: bytes([n]) for n in range(256)}, [], []).save("bytes")
    Path("more.txt").write_text("the cat and the rain " * 50)
    assert run("compare tok bytes --text text.txt more.txt") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        ["tok", "text.txt"],
        ["bytes", "text.txt"],
        ["tok", "more.txt"],
        ["bytes", "more.txt"],
    ]
    num_bytes, num_tokens = len(TEXT.encode()), len(small.encode(TEXT))
    assert rows[0][2:4] == [f"{num_bytes / num_tokens:.3f}", f"{num_tokens / num_bytes:.4f}"]
    assert rows[1][2:4] == rows[3][2:4] == ["1.000", "1.0000"]
    timed = [num_bytes * math.ceil(4e6 / len(TEXT)), 1050 * math.ceil(4e6 / 1050)]  # repeated until they are large
    speeds = [timed[0] * 1000, timed[0] * 1000, timed[1] * 1000, timed[1] * 1000]  # bytes a second, at 1 ms a text
    assert [row[4:] for row in rows] == [[f"{speed / 1e6:.2f}", f"{825e9 / speed / 3600:.1f}"] for speed in speeds]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_inspecting_and_comparing_on_a_terminal_without_utf8(encoding, monkeypatch):
    Tokenizer({n: bytes([n]) for n in range(256)}, [], ["漢"], "漢|.").save("漢字")
    Path("😀.txt").write_text("a few words", encoding="utf-8")
    for arguments in (["inspect", "漢字"], ["compare", "漢字", "--text", "😀.txt"]):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(arguments) == 0
        assert rb"\u6f22" in stdout.buffer.getvalue()


def test_comparing_takes_only_the_beginning(capsys):
    Path("text.txt").write_text("a" * 1000 + "\x00" * 1000)
    Tokenizer({n: bytes([n]) for n in range(256)} | {256: b"aa"}, [(b"a", b"a")], []).save("pairs")
    assert run("compare pairs --text text.txt --megabytes 0.001") == 0
    assert "2.000" in capsys.readouterr().out


def test_special_tokens_are_taken_from_the_command_line():
    arguments = ["train", "text.txt", "--vocab-size", "270", "--output", "t", "--processes", "1"]
    assert main([*arguments, "--special-token", "<|a b|>", "--special-token", "漢"]) == 0
    assert Tokenizer.load("t").special_tokens == ["<|a b|>", "漢"]
    assert Tokenizer.load("t").encode("漢<|a b|>") == [257, 256]


def test_a_pattern_that_backtracks_for_ever_is_stopped(work, small, capsys, monkeypatch):
    monkeypatch.setattr("tokenization.pretokenization.PATTERN_SECONDS", 0.05)
    Path("letters.txt").write_text("a" * 60 + "!")
    Tokenizer(small.vocab, small.merges, [], "(a|aa)+$").save("hostile")
    before = contents(work)
    for arguments in (
        "train letters.txt --vocab-size 300 --pattern (a|aa)+$ --output t",
        "encode letters.txt --tokenizer hostile --output t.bin --processes 1",
        "compare hostile --text letters.txt",
    ):
        capsys.readouterr()
        assert run(arguments) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"tokenization \w+: the split pattern '.*' backtracks .* nested repetitions\n", err)
    assert contents(work) == before


def test_fewer_pairs_than_asked_for_are_said(capsys):
    Path("short.txt").write_text("abab")
    assert run("train short.txt --vocab-size 1000 --output t --processes 1") == 0
    assert "the text has no more pairs to merge: 259 tokens, not 1,000" in capsys.readouterr().out


def test_a_tokenizer_is_replaced_only_when_asked(capsys):
    arguments = "train text.txt --vocab-size 270 --output tok --processes 1"
    before = Tokenizer.load("tok").digest
    assert run(arguments) == 2
    assert "tok: already holds a tokenizer" in capsys.readouterr().err
    assert Tokenizer.load("tok").digest == before
    assert run(f"{arguments} --overwrite") == 0
    assert Tokenizer.load("tok").vocab_size == 270


def test_a_token_file_is_replaced_only_when_asked(capsys, small):
    Path("other.txt").write_text("another text")
    before = contents(Path())
    for output in ("text.bin", "./text.bin"):
        assert run(f"encode other.txt --tokenizer tok --output {output} --processes 1") == 2
        assert (
            "text.bin: exists already; choose another name, or replace it with --overwrite\n" in capsys.readouterr().err
        )
    assert contents(Path()) == before
    assert run("encode other.txt --tokenizer tok --output text.bin --processes 1 --overwrite") == 0
    assert small.decode(TokenFile.open("text.bin").tokens) == "another text"


def test_the_json_that_a_killed_encode_left_is_no_obstacle(small):
    """It takes its name first: where it stands alone, or beside older ids, the token file is made again."""
    Path("text.bin").unlink()
    assert run("encode text.txt --tokenizer tok --output text.bin --processes 1") == 2
    assert run("encode text.txt --tokenizer tok --output text.bin --processes 1 --overwrite") == 0
    assert small.decode(TokenFile.open("text.bin").tokens) == TEXT


def test_exports_make_folders_and_are_replaced_only_when_asked(capsys):
    for name in ("new/deeper/tokenizer.json", "new/mine.tiktoken"):
        assert run(f"export tok --output {name}") == 0
        before = Path(name).read_bytes()
        Path(name).write_bytes(before + b"\n")
        assert run(f"export tok --output {name}") == 2
        assert f"{name}: exists already" in capsys.readouterr().err
        assert run(f"export tok --output {name} --overwrite") == 0
        assert Path(name).read_bytes() == before


def test_folders_say_what_is_read_and_what_is_not(capsys):
    Path("texts").mkdir()
    for name in ("a.txt", "b.TXT", "c.rst", "d.csv"):
        Path(f"texts/{name}").write_text("the cat and the rain " * 5)
    reading = (
        "reading 2 files; skipping 2 (no .txt, .md, .jsonl, .ndjson, .parquet; name a file to have it read): c.rst,"
        " d.csv\n"
    )
    for arguments in ("train texts --vocab-size 260 --output t", "encode texts --tokenizer tok --output t.bin"):
        assert run(f"{arguments} --processes 1") == 0
        assert capsys.readouterr().out.startswith(reading)
    assert run("encode text.txt --tokenizer tok --output u.bin --processes 1") == 0
    assert "reading" not in capsys.readouterr().out  # of files that were named


def test_the_files_of_another_program_are_not_taken_for_a_tokenizer(capsys):
    Path("theirs").mkdir()
    Path("theirs/tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    for flag in ("", " --overwrite"):
        assert run(f"train text.txt --vocab-size 270 --output theirs --processes 1{flag}") == 2
        assert re.search("theirs: (already )?holds .*tokenizer_config.json", capsys.readouterr().err)
    assert Path("theirs/tokenizer_config.json").read_text() == '{"tokenizer_class": "LlamaTokenizer"}'


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
        (OSError("libllvmlite.so: failed to map segment"), "libllvmlite.so: failed to map segment"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x/y"), "x/y: No such file or directory"),
        (MemoryError(), "there is not enough memory; raise its limit, or use fewer --processes"),
    ],
)
def test_what_the_system_refuses_is_not_laid_at_another_door(monkeypatch, capsys, error, line):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(Tokenizer, "load", fail)
    assert run("inspect tok") == 2
    assert capsys.readouterr().err == f"tokenization inspect: {line}\n"


def test_replacing_what_is_not_utf8(small):
    assert run("encode latin.txt --tokenizer tok --output l.bin --errors replace --processes 1") == 0
    assert small.decode(TokenFile.open("l.bin").tokens.tolist()) == "un caf\ufffd au lait"


BAD_INPUT = {
    "train none.txt --vocab-size 300 --output t": r"none\.txt: no such file, folder or pattern",
    "train text.txt no*.txt --vocab-size 300 --output t": r"no\*\.txt: no such file",
    "train tok --vocab-size 300 --output t": r"tok: no \.txt, \.md, \.jsonl, \.ndjson, \.parquet file in this folder",
    "train empty.txt --vocab-size 300 --output t": r"empty\.txt: no text to learn from; the input is empty",
    "train latin.txt --vocab-size 300 --output t": r"latin\.txt: not UTF-8 at byte 6 \(0xe9\).*--errors replace",
    "train text.txt latin.txt --vocab-size 300 --output t": r"latin\.txt: not UTF-8 at byte 6",
    "train text.txt --vocab-size 256 --output t": "vocab_size 256 is too small.* need 257",
    "train text.txt --vocab-size -5 --output t": "vocab_size -5 is too small",
    "train text.txt --vocab-size 300 --output text.txt": r"text\.txt: cannot be written",
    "train text.txt --vocab-size 300 --output text.txt/t": r"text\.txt/t: cannot be written",
    "train text.txt --vocab-size 300 --output t --processes 0": "--processes 0: at least one",
    "train text.txt --vocab-size 300 --output t --special-token \udcff": "special token '.udcff' is not UTF-8",
    "train bad.gz --vocab-size 300 --output t": r"bad\.gz: damaged \.gz file",
    "encode none.txt --tokenizer tok --output t.bin": r"none\.txt: no such file",
    "encode empty.txt --tokenizer tok --output t.bin": r"empty\.txt: no text to encode; the input is empty",
    "encode latin.txt --tokenizer tok --output t.bin": "not UTF-8 at byte 6",
    "encode bad.gz --tokenizer tok --output t.bin": r"bad\.gz: damaged \.gz file",
    "encode text.txt --tokenizer none --output t.bin": "none: no such tokenizer folder",
    "encode text.txt --tokenizer text.txt --output t.bin": r"text\.txt: no such tokenizer folder",
    "encode text.txt --tokenizer half --output t.bin": "1 of the 256 single bytes have no token",
    "encode text.txt --tokenizer tok --output tok": "tok: is a folder or a device",
    "encode text.txt --tokenizer tok --output text.txt/t.bin": r"text\.txt/t\.bin: cannot be written",
    "encode text.txt --tokenizer tok --output t.bin --processes -1": "--processes -1: at least one",
    "encode text.txt --tokenizer tok --output text.txt": r"text\.txt: is one of the inputs; choose another output",
    "encode text.txt --tokenizer tok --output latin.txt": r"latin\.txt: exists, and is not a token file",
    "encode text.txt --tokenizer tok --output tok/vocab": r"tok/vocab\.json: is one of the inputs",
    "encode . --tokenizer tok --output new.txt": r"new\.txt: would from then on be read as text of \.",
    "train text.txt --vocab-size 300 --output s3://b/tok": "--output: s3://b/tok is a URL, .*; name one on a disk",
    "train text.txt --vocab-size 300 --output t --work s3://b/work": "--work: s3://b/work is a URL",
    "encode text.txt --tokenizer tok --output s3://b/t.tokens": "--output: s3://b/t.tokens is a URL",
    "index s3://b/t.tokens": "folder: s3://b/t.tokens is a URL",
    "check text.txt --json s3://b/report.json": "--json: s3://b/report.json is a URL",
    "export tok --output text.txt": r"text\.txt: exists, and is not a tokenizer\.json",
    "export tok --output tok/vocab.json": r"tok/vocab\.json: is one of the inputs",
    "import tok/vocab.json --output tok --overwrite": r"tok/vocab\.json: is one of the inputs",
    "decode none.bin --tokenizer tok": r"none\.bin: no such token file",
    "decode text.txt --tokenizer tok": r"text\.txt: is not a token file, for .*text\.txt\.json is missing",
    "decode text.bin --tokenizer other": r"text\.bin: was encoded by another tokenizer, not other",
    "decode odd.bin --tokenizer tok": r"odd\.bin: \d+ bytes are not a whole number",
    "decode high.bin --tokenizer tok": "token id 65535 lies outside its vocabulary of 300 tokens",
    "decode changed.bin --tokenizer tok": r"changed\.bin: has changed since it was made",
    "decode text.bin --tokenizer tok --start -1": "--start -1: must not be negative",
    "decode text.bin --tokenizer tok --limit -1": "--limit -1: must not be negative",
    "train text.txt --vocab-size 1_000 --output t": "argument --vocab-size: '1_000' is not a whole number; write",
    "train text.txt --vocab-size ٣٠٠ --output t": "argument --vocab-size: '٣٠٠' is not a whole number",
    "train text.txt --vocab-size 300 --group-size ٢MB --output t": "'٢MB' is not a size",
    "compare tok --text text.txt --megabytes 1_0": "argument --megabytes: '1_0' is not a number; write a number",
    "encode text.txt --tokenizer tok --output t.tokens --part ٢/٣": "--part ٢/٣: must be I/N",
    "inspect none": "none: no such tokenizer folder",
    "inspect half": "1 of the 256 single bytes have no token",
    "inspect tok --count 0": "--count 0: at least one",
    "inspect tok --count -1": "--count -1: at least one",
    "compare tok none --text text.txt": "none: no such tokenizer folder",
    "compare tok --text none.txt": r"none\.txt: no such file",
    "compare tok --text empty.txt": r"empty\.txt: is empty",
    "compare tok --text latin.txt": "not UTF-8 at byte 6",
    "compare tok --text text.txt --megabytes 0": "--megabytes 0.0: must be more than 0",
    "compare tok --text text.txt --megabytes -1": "--megabytes -1.0: must be more than 0",
    "compare tok --text text.txt --megabytes nan": "--megabytes nan: must be more than 0",
    "compare tok --text text.txt --megabytes inf": "--megabytes inf: must be more than 0",
}


@pytest.fixture
def damaged(work):
    """Inputs that are wrong each in its own way."""
    Path("bad.gz").write_bytes(gzip.compress(TEXT.encode())[:-4])
    Tokenizer({n: bytes([n]) for n in range(256)}, []).save("other")
    Tokenizer({n: bytes([n]) for n in range(255)}, []).save("half")
    data = Path("text.bin").read_bytes()
    for name, damaged in {"odd": data[:-1], "high": b"\xff\xff" + data[2:], "changed": b"\x01\x00" + data[2:]}.items():
        Path(f"{name}.bin").write_bytes(damaged)
        Path(f"{name}.bin.json").write_bytes(Path("text.bin.json").read_bytes())


@pytest.mark.parametrize("arguments", BAD_INPUT)
def test_bad_input_gets_one_line_and_nothing_is_written(work, damaged, capsys, arguments):
    before = contents(work)
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"tokenization {arguments.split()[0]}: .*{BAD_INPUT[arguments]}.*\n", err)
    assert out == ""
    assert contents(work) == before


def test_the_files_of_the_commands_are_the_commands_of_the_help(capsys):
    files = {path.stem for path in (ROOT / "tokenization/commands").glob("*.py")} - {"__init__"}
    assert set(COMMANDS.values()) == files
    assert re.match(r"usage: tokenization {([\w,]+)}", HELP)[1].split(",") == list(COMMANDS)
    for name in COMMANDS:
        assert f"\n  tokenization {name} " in HELP
        with pytest.raises(SystemExit, match=r"^0$"):
            run(f"{name} --help")
        out = capsys.readouterr().out
        assert out.startswith(f"usage: tokenization {name} [-h]")
        assert f"\n  tokenization {name} " in out  # an example
    assert run("--help") == 0
    assert capsys.readouterr().out == HELP


def test_the_help_imports_nothing_that_takes_time():
    program = "import sys; from tokenization.__main__ import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "tokenization.errors" in loaded
    assert not {"llvmlite", "numpy", "regex", "torch", "tqdm"} & set(loaded)


def test_a_misspelt_command_or_option_gets_a_suggestion(capsys):
    for arguments, meant in (("ecnode text.txt", "encode"), ("inspect tok --cuont=3", "--count")):
        assert run(arguments) == 2
        assert f"; did you mean {meant}?; `tokenization " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", ["", "unknown", "train text.txt --output t", "train text.txt --vocab-size x --output t", "inspect"]
)
def test_a_wrong_command_line_gets_one_line_too(work, capsys, arguments):
    before = contents(work)
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert not out
    assert re.fullmatch(
        r"tokenization.*: .*(required|invalid|not a whole).*`tokenization.* --help` lists what there is\n", err
    )
    assert contents(work) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "train latin.txt --vocab-size 300 --output t",
        "encode text.txt latin.txt --tokenizer tok --output t.bin --processes 2",
    ],
)
def test_as_a_program_bad_input_exits_with_2_and_no_traceback(work, arguments):
    before = contents(work)
    done = subprocess.run(command(arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"tokenization \w+: latin\.txt: not UTF-8 at byte 6 .*\n", done.stderr)
    assert done.stdout == ""
    assert contents(work) == before


def test_as_a_program_the_text_on_stdout_is_utf8_whatever_the_locale():
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command("decode text.bin --tokenizer tok"), env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, TEXT, b"")


def test_a_reader_that_leaves_early_is_no_error(work, small):
    Path("long.txt").write_text("the cat and the hat " * 20_000)  # more than a pipe and its buffers hold
    small.encode_files(["long.txt"], "long.bin", num_processes=1)
    with subprocess.Popen(
        command("decode long.bin --tokenizer tok"), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.read(7) == b"the cat"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141  # as a program that the signal SIGPIPE ends


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", ["decode text.bin --tokenizer tok", "inspect tok --count 300"])
def test_a_full_disk_under_the_output_is_said_once(arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(arguments), env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, check=False)
    remedy = "free some space, or choose another place"
    line = f"tokenization {arguments.split()[0]}: standard output: No space left on device; {remedy}\n"
    assert (done.returncode, done.stderr.decode()) == (2, line)


@pytest.fixture(scope="module")
def endless(tmp_path_factory) -> Path:
    """A small file of a gigabyte of text: the same member of a .gz again and again. Nobody gets to its end."""
    path = tmp_path_factory.mktemp("endless") / "endless.txt.gz"
    path.write_bytes(gzip.compress(("The cat saw the other cat, said the cat.\n" * 100_000).encode()) * 250)
    return path


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize(
    "arguments", ["encode {} --tokenizer tok --output out.bin", "train {} --vocab-size 300 --output out"]
)
def test_ctrl_c_ends_with_130_and_no_file(work, endless, arguments, num_processes):
    before = contents(work)
    line = f"{arguments.format(endless)} --processes {num_processes}"
    process = subprocess.Popen(
        command(line), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    shown = b""
    while b"%" not in shown and (character := process.stderr.read(1)):  # the progress bar: the work is under way
        shown += character
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and its processes
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert (
        err.decode().splitlines()[-1] == f"tokenization {arguments.split()[0]}: interrupted; no unfinished file is left"
    )
    assert b"Traceback" not in err
    assert out == b""
    assert contents(work) == before


def test_the_help_of_every_command_shows_how_to_call_it(capsys):
    for name in ("train", "encode", "decode", "inspect", "compare"):
        with pytest.raises(SystemExit) as error:
            main([name, "--help"])
        assert error.value.code == 0
        assert f"\n  tokenization {name} " in capsys.readouterr().out


def test_the_json_beside_the_tokens_is_what_other_tools_read():
    about = json.loads(Path("text.bin.json").read_text())
    assert about["tokens"] * 2 == Path("text.bin").stat().st_size
    assert about["bytes"] == len(TEXT.encode())


@pytest.mark.parametrize("special", ["\xb6", "\xe9", "\u0120the"])
def test_a_special_token_that_reads_like_another_is_refused_before_the_text_is_read(special, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("all the things")
    arguments = ["train", str(text), "--vocab-size", "300", "--output", str(tmp_path / "new")]
    assert main([*arguments, "--special-token", special]) == 2
    assert "may read like an ordinary token in vocab.json; give it another name" in capsys.readouterr().err
    assert main([*arguments, "--special-token", "<|d\xe9but|>"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_name_that_is_not_utf8_is_reported(tmp_path, capsys):
    text = os.fsencode(tmp_path / "a") + b"\xff.txt"
    with open(text, "w") as file:
        file.write("hello \0 world\n")
    assert main(["check", os.fsdecode(text), "--json", str(tmp_path / "report.json")]) == 1  # it has a NUL
    assert "a\ufffd.txt" in (tmp_path / "report.json").read_text(encoding="utf-8")
    assert plain(os.fsdecode(b"a\xff")) == "a\ufffd"


def test_a_resumed_token_set_claims_no_speed(tmp_path, small, capsys):
    small.save(tmp_path / "small")
    (tmp_path / "text.txt").write_text("Once upon a time. " * 1000)
    arguments = ["encode", str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "small")]
    arguments += ["--output", f"{tmp_path / 'set.tokens'}{os.sep}", "--shard-size", "5KB"]
    assert main([*arguments, "--part", "0/1"]) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "MB/s" not in out
    assert "computed by an earlier command\n" in out
