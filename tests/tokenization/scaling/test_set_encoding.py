"""Proves that the shards of a token set, one after another, are the one token file of all inputs; that an interrupted
encoding goes on with what is done, and only with that; and that nothing else in the folder is lost."""

import contextlib
import gzip
import itertools
import json
import os
import random
import threading
import time
from pathlib import Path

import pytest
from helpers.processes import kill_until

from tokenization import END_OF_TEXT, InputError, TokenFile, Tokenizer
from tokenization.__main__ import main
from tokenization.scaling import set_encoding, tasks
from tokenization.scaling.engines import Part
from tokenization.scaling.plan import Source, cut_into_groups
from tokenization.scaling.set_encoding import SetEncoding, complete, replacing
from tokenization.scaling.tasks import RECORDS, Reading
from tokenization.tokens.token_index import INDEX, PLAN

TEXTS = [
    "a cat",
    "",
    f"the rain{END_OF_TEXT}",
    "  \n",
    f"one{END_OF_TEXT}\n\ntwo",
    f"{END_OF_TEXT}",
    "É 漢字 😀 " * 9,
    json.dumps({"text": f"a record {END_OF_TEXT}"}) + "\n" + json.dumps({"text": "another"}),
    json.dumps({"text": ""}),
]
PLAIN = Reading(num_processes=1)


def write_texts(folder: Path, texts: list[str]) -> list[Path]:
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / (f"{number}.jsonl" if text.startswith("{") else f"{number}.txt"))
        paths[-1].write_text(text, encoding="utf-8", newline="")
    return paths


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return write_texts(tmp_path, [f"The cat number {n} and the rain. " * (n + 1) for n in range(5)])


def encode(tokenizer: Tokenizer, paths: list[Path], folder: Path, shard_bytes: int = 1) -> TokenFile:
    return SetEncoding(tokenizer, paths, folder, shard_bytes, PLAIN).run()


def joined(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.bin")))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shard_bytes", [1, 40, 10**9])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6, 7, 8), (8, 7, 3, 6, 0, 1, 5), (2, 0, 8), (1, 1, 0, 3), (5,)])
@pytest.mark.parametrize("separator", [True, False])
def test_the_shards_are_the_one_file(tmp_path, small, shard_bytes, order, separator):
    tokenizer = small if separator else Tokenizer(small.vocab, small.merges, [])
    paths = [path for number in order for path in write_texts(tmp_path, TEXTS)[number : number + 1]]
    one = tokenizer.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    file = encode(tokenizer, paths, tmp_path / "set.tokens", shard_bytes)
    assert joined(tmp_path / "set.tokens") == (tmp_path / "one.bin").read_bytes()
    assert file.description == one.description
    assert not (tmp_path / "set.tokens" / PLAN).exists()


def test_groups_are_of_consecutive_files_of_the_wanted_size(tmp_path):
    sizes = (3, 4, 2, 9, 1, 0, 10, 5, 5, 1)
    paths = write_texts(tmp_path, ["x" * size for size in sizes])
    sources = [Source.of(path) for path in paths]
    assert [[source.size for source in part] for part in cut_into_groups(sources, 10)] == [
        [3, 4, 2],
        [9, 1],
        [10],
        [5, 5],
        [1],
    ]
    assert [len(part) for part in cut_into_groups(sources, 1)] == [1] * 9
    assert cut_into_groups(sources[5:6], 10) == [sources[5:6]]


def test_no_text_at_all_leaves_nothing(tmp_path, small):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.txt.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="no text to encode"):
        encode(small, [tmp_path / "empty.txt.gz", tmp_path / "empty.txt"], tmp_path / "new" / "set.tokens")
    assert names(tmp_path) == ["empty.txt", "empty.txt.gz"]


class Interruption:
    """Lets some shards be encoded, and raises in the next one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int):
        self.encoded: list[str] = []
        encode_files = tasks.encode_files

        def encode(tokenizer, inputs, output, *arguments):
            if len(self.encoded) == after:
                raise KeyboardInterrupt
            file = encode_files(tokenizer, inputs, output, *arguments)
            self.encoded.append(output.name)
            return file

        monkeypatch.setattr(tasks, "encode_files", encode)


def interrupt(monkeypatch, after: int, tokenizer: Tokenizer, paths: list[Path], folder: Path) -> None:
    """Begins an encoding that is interrupted when so many shards are done."""
    with monkeypatch.context() as patch:
        Interruption(patch, after)
        with pytest.raises(KeyboardInterrupt):
            encode(tokenizer, paths, folder)


@pytest.mark.parametrize("after", range(5))
def test_an_interrupted_encoding_goes_on(tmp_path, small, paths, monkeypatch, after):
    folder = tmp_path / "set.tokens"
    one = small.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    interrupt(monkeypatch, after, small, paths, folder)
    assert folder.exists() is bool(after)
    if after:
        with pytest.raises(InputError, match="interrupted; the same `tokenization encode` command resumes it"):
            TokenFile.open(folder)
    second = Interruption(monkeypatch, 9)
    assert encode(small, paths, folder).description == one.description
    assert second.encoded == [f"{number:05}.bin" for number in range(after, 5)]
    assert names(folder) == sorted(
        [*(f"{n:05}.bin{beside}" for n in range(5) for beside in ("", ".documents", ".json")), INDEX]
    )


def test_what_is_done_is_verified_and_what_has_changed_is_made_anew(tmp_path, small, paths, monkeypatch):
    folder = tmp_path / "set.tokens"
    interrupt(monkeypatch, 4, small, paths, folder)
    (folder / "00001.bin").write_bytes(bytes((folder / "00001.bin").stat().st_size))
    paths[2].write_text("another text")
    second = Interruption(monkeypatch, 9)
    file = encode(small, paths, folder)
    assert second.encoded == ["00001.bin", "00002.bin", "00004.bin"]
    one = small.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    assert file.description == one.description


@pytest.mark.parametrize("change", ["tokenizer", "errors", "fewer", "larger"])
def test_other_settings_begin_anew(tmp_path, small, paths, monkeypatch, change):
    folder, plain = tmp_path / "set.tokens", Tokenizer(small.vocab, small.merges[:20], small.special_tokens)
    interrupt(monkeypatch, 4, small, paths, folder)
    settings = Reading(1, "replace" if change == "errors" else "strict")
    inputs = paths[2:] if change == "fewer" else paths
    tokenizer = plain if change == "tokenizer" else small
    encoding = SetEncoding(tokenizer, inputs, folder, 10**9 if change == "larger" else 1, settings)
    assert encoding.done == []
    assert len(encoding.outdated) == 4
    assert encoding.run().description == tokenizer.encode_files(inputs, tmp_path / "one.bin", 1).description
    assert joined(folder) == (tmp_path / "one.bin").read_bytes()


def test_the_number_of_processes_does_not_matter(tmp_path, small, paths):
    SetEncoding(small, paths, tmp_path / "set.tokens", 10**9, Reading(2)).run()
    small.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    assert joined(tmp_path / "set.tokens") == (tmp_path / "one.bin").read_bytes()


# --- parts and several hosts -----------------------------------------------------------------------------------------


def encode_part(tokenizer: Tokenizer, paths: list[Path], folder: Path, part: str) -> SetEncoding:
    number, count = map(int, part.split("/"))
    encoding = SetEncoding(tokenizer, paths, folder, 1, PLAIN, Part(number, count))
    assert encoding.run() is None
    return encoding


@pytest.mark.parametrize("order", [("0/3", "1/3", "2/3"), ("2/3", "2/3", "0/3", "1/3"), ("1/2", "0/9", "0/2")])
def test_parts_and_an_index_are_the_one_file(tmp_path, small, paths, order):
    folder = tmp_path / "set.tokens"
    for part in order:
        encode_part(small, paths, folder, part)
        with pytest.raises(InputError, match="encoding was interrupted"):
            TokenFile.open(folder)
    assert main(["index", str(folder)]) == 0
    one = small.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    assert joined(folder) == (tmp_path / "one.bin").read_bytes()
    assert TokenFile.open(folder).description == one.description
    assert len(names(folder)) == 3 * 5 + 1


def test_an_index_is_refused_until_all_parts_are_done(tmp_path, small, paths, capsys):
    folder = tmp_path / "set.tokens"
    encode_part(small, paths, folder, "0/2")
    assert main(["index", str(folder)]) == 2
    assert "2 of 5 shards are not done (00001.bin, 00003.bin); run their parts again" in capsys.readouterr().err
    assert not (folder / INDEX).exists()
    one = small.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    last = SetEncoding(small, paths, folder, 1, PLAIN)
    assert last.done == ["00000.bin", "00002.bin", "00004.bin"]
    assert last.run().description == one.description


def test_parts_whose_last_files_hold_no_text_are_completed_by_the_command(tmp_path, small, capsys):
    texts = ["a cat", "the rain", "  ", f"{END_OF_TEXT}"]
    paths, folder = write_texts(tmp_path, texts), tmp_path / "set.tokens"
    gzip.open(tmp_path / "9.txt.gz", "wb").close()
    paths.append(tmp_path / "9.txt.gz")
    encode_part(small, paths, folder, "0/1")
    assert main(["index", str(folder)]) == 2
    assert "the last files hold no text; complete the set with the same" in capsys.readouterr().err
    one = small.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    assert SetEncoding(small, paths, folder, 1, PLAIN).run().description == one.description
    assert joined(folder) == (tmp_path / "one.bin").read_bytes()


@pytest.mark.parametrize("change", ["file", "tokenizer"])
def test_a_part_with_other_inputs_is_refused(tmp_path, small, paths, change):
    folder = tmp_path / "set.tokens"
    encode_part(small, paths, folder, "0/2")
    before = contents(folder / RECORDS)
    tokenizer = small if change == "file" else Tokenizer(small.vocab, small.merges[:20], small.special_tokens)
    if change == "file":
        paths[3].write_text("another text")
    reason = r"3\.txt has changed" if change == "file" else "settings have changed"
    with pytest.raises(InputError, match=rf"plan\.json: is of other inputs or settings \(.*{reason}\)"):
        encode_part(tokenizer, paths, folder, "1/2")
    assert contents(folder / RECORDS) == before


def test_a_shard_of_another_host_with_other_inputs_never_slips_in(tmp_path, small, paths):
    """A host that is lost in an older plan writes its shard when all others are done."""
    folder = tmp_path / "set.tokens"
    encode_part(small, paths, folder, "0/1")
    small.encode_files([paths[0]], folder / "00003.bin", num_processes=1)
    with pytest.raises(InputError, match=r"00003\.bin: another command has replaced it meanwhile"):
        complete(folder)
    assert not (folder / INDEX).exists()
    last = SetEncoding(small, paths, folder, 1, PLAIN)
    one = small.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    assert last.run().description == one.description
    assert last.mended == ["00003.bin"]


@pytest.mark.parametrize("number", range(4))
def test_hosts_at_once_on_one_folder(tmp_path, small, paths, number):
    one = small.encode_files(paths, tmp_path / "one.bin", num_processes=1)
    encodings = [SetEncoding(small, paths, tmp_path / "set.tokens", 1, PLAIN) for _ in range(3)]
    found = []

    def run(encoding):
        time.sleep(random.uniform(0, 0.02 * number))
        found.append(encoding.run().description)

    hosts = [threading.Thread(target=run, args=(encoding,)) for encoding in encodings]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join()
    assert found == [one.description] * 3
    assert not {PLAN, RECORDS} & set(names(tmp_path / "set.tokens"))


@pytest.mark.parametrize("moment", ["encoding", "recording"])
def test_a_host_that_is_late_does_not_spoil_what_another_has_completed(tmp_path, small, paths, monkeypatch, moment):
    """The other completes the set while this one encodes its last shard, or is about to record it."""
    folder = tmp_path / "set.tokens"
    late, other = (SetEncoding(small, paths, folder, 1, PLAIN) for _ in range(2))
    step = {"encoding": "encode_files", "recording": "write_text"}[moment]
    do_step = getattr(tasks, step)

    def wait(*arguments):
        if "00004.bin" in str(arguments):
            monkeypatch.setattr(tasks, step, do_step)
            assert other.run() is not None
            if moment == "recording":
                raise FileNotFoundError  # as when the folder of records is deleted just then
        return do_step(*arguments)

    monkeypatch.setattr(tasks, step, wait)
    assert late.run().description == small.encode_files(paths, tmp_path / "one.bin", num_processes=1).description
    assert not {PLAN, RECORDS} & set(names(folder))


def test_nothing_half_written_is_ever_listed(tmp_path, small, paths, monkeypatch):
    """Ended before each of its renames, the command leaves a whole set, or none and the same command completes it."""
    one = small.encode_files(paths[:2], tmp_path / "one.bin", num_processes=1)
    rename, moments = os.replace, itertools.count()
    for moment in moments:
        folder, left = tmp_path / f"{moment}.tokens", itertools.count(moment, -1)

        def end(source, target, left=left):
            if next(left) == 0:
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", end)
            encode(small, paths[:2], folder)
            break
        if not (folder / INDEX).exists():
            encode(small, paths[:2], folder)
        assert TokenFile.open(folder).description == one.description
        assert joined(folder) == (tmp_path / "one.bin").read_bytes()
        assert not [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert next(moments) > 8


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, paths, small, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small.save("tok")
    return tmp_path


def run(line: str) -> int:
    return main(["encode", *line.split(), "--tokenizer", "tok", "--processes", "1"])


@pytest.mark.parametrize("output", ["new/set.tokens", "set/", "set.tokens/"])
def test_a_name_decides_what_is_written(work, small, capsys, output):
    assert run(f"0.txt 1.txt 2.txt --output {output} --shard-size 100") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"written: {Path(output)} and index.json"
    one = small.encode_files(["0.txt", "1.txt", "2.txt"], "one.bin", num_processes=1)
    assert TokenFile.open(output).description == one.description
    assert f"3 documents -> {len(one):,} uint16 tokens" in out
    assert len(list(Path(output).glob("*.bin"))) == 2


def test_the_command_says_what_is_done(work, capsys, monkeypatch):
    line = "0.txt 1.txt 2.txt --output set.tokens --shard-size 1"
    with monkeypatch.context() as patch:
        Interruption(patch, 1)
        assert run(line) == 130
    assert "1 of 3 shards are done; the same command resumes with the next" in capsys.readouterr().err
    os.utime("0.txt", ns=(1, 1))
    with monkeypatch.context() as patch:
        Interruption(patch, 2)
        assert run(line) == 130
    assert "shards of other inputs or settings, made again: 1" in capsys.readouterr().out
    assert run(line) == 0
    out = capsys.readouterr().out
    assert "resuming: 2 of 3 shards are done" in out
    assert "made again" not in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.txt --output x.bin --shard-size 5MB", "--shard-size: is for a token set; x.bin is one file"),
        ("0.txt --output x.tokens --shard-size 0", "'0' is not a size"),
        ("0.txt --output x.tokens --shard-size 1.5GB", "'1.5GB' is not a size"),
        ("0.txt --output x.tokens --shard-size -1", "'-1' is not a size"),
        ("0.txt --output done.tokens", "done.tokens: holds a token set already"),
        ("0.txt --output tok/", "tok: holds other files"),
        ("0.txt --output 0.txt/", "0.txt: cannot be written"),
        ("0.txt --output 0.txt/deeper/", "cannot be written"),
        ("0.txt --output foreign.tokens", "foreign.tokens/plan.json: is not the plan"),
        ("0.txt --output evil.tokens", "evil.tokens/plan.json: is not the plan"),
        ("0.txt x*/* --output x.tokens", "would from then on be read as text of x*/*"),
        (
            "0.txt --output x.tokens --text-field body",
            "--text-field body: only .jsonl, .ndjson",
        ),
        ("bad.txt --output x.tokens", "bad.txt: not UTF-8 at byte 0"),
        ("none.txt --output x.tokens", "none.txt: no such file"),
        ("0.txt --output x.bin --part 0/2", "--part: is for a token set; x.bin is one file"),
        ("0.txt --output x.bin --engine ray", "--engine: is for a token set"),
        ("0.txt --output x.tokens --part 3/2", "--part 3/2: must be I/N"),
        ("0.txt --output done.tokens --part 0/2 --overwrite", "--overwrite: not with --part"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_changes(work, capsys, line, message):
    (work / "bad.txt").write_bytes(b"\xff")
    (work / "xx").mkdir()
    (work / "xx" / "a.txt").write_text("a text")
    assert run("1.txt --output done.tokens") == 0
    evil = {"work": "encoding", "groups": {"../../0.bin": {"digest": "x", "files": []}}}
    for name, plan in (("foreign", "[]"), ("evil", json.dumps(evil))):
        (work / f"{name}.tokens").mkdir()
        (work / f"{name}.tokens" / PLAN).write_text(plan)
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(line) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
    assert not (work / "x.tokens").exists()


def test_fields_may_be_named_where_some_files_have_none(work):
    (work / "r.jsonl").write_text('{"body": "a record"}')
    assert run("0.txt r.jsonl 1.txt --output x.tokens --text-field body --shard-size 1") == 0
    assert TokenFile.open("x.tokens").description.documents == 3


@pytest.mark.slow
def test_a_killed_command_goes_on_and_comes_to_the_same_end(work, small):
    """kill -9 at random moments, in processes of their own, until one comes to its end."""
    for name in range(5):
        Path(f"{name}.txt").write_text("The cat and the rain. " * 20_000)
    one = small.encode_files([f"{n}.txt" for n in range(5)], "one.bin", num_processes=1)
    line = "encode 0.txt 1.txt 2.txt 3.txt 4.txt --tokenizer tok --output k.tokens --shard-size 1 --processes 1"
    kills = kill_until(line, Path("k.tokens", INDEX), random.Random(1))
    assert TokenFile.open("k.tokens").description == one.description
    assert joined(Path("k.tokens")) == Path("one.bin").read_bytes()
    assert kills
    assert not [name for name in names(Path("k.tokens")) if name.startswith(".")]


# replacing a set


@pytest.fixture
def replace(tmp_path, paths, small, monkeypatch):
    """replace(number of texts) -> the exit code of encoding so many of them over set.tokens, which holds two."""
    monkeypatch.chdir(tmp_path)
    small.save("tok")
    encode(small, paths[:2], Path("set.tokens"))

    def run(count: int) -> int:
        line = "--tokenizer tok --output set.tokens --shard-size 1 --processes 1 --overwrite"
        return main(["encode", *map(str, paths[:count]), *line.split(" ")])

    return run


def test_a_set_is_replaced(replace, paths, small, tmp_path):
    assert replace(4) == 0
    encode(small, paths[:4], tmp_path / "fresh.tokens")
    assert contents(tmp_path / "set.tokens") == contents(tmp_path / "fresh.tokens")
    assert not list(tmp_path.glob(".set*"))
    assert main(["encode", "0.txt", "--tokenizer", "tok", "--output", "new.tokens", "--overwrite"]) == 0


def test_the_old_set_is_whole_until_the_new_one_is(replace, paths, tmp_path, capsys):
    before = contents(tmp_path / "set.tokens")
    text = paths[2].read_bytes()
    paths[2].write_bytes(b"\xff")
    assert replace(4) == 2
    assert "2.txt: not UTF-8" in capsys.readouterr().err
    assert contents(tmp_path / "set.tokens") == before
    paths[2].write_bytes(text)
    assert replace(4) == 0
    assert "resuming: 2 of 4 shards are done" in capsys.readouterr().out
    assert len(TokenFile.open("set.tokens").tokens) > 0
    assert len(contents(tmp_path / "set.tokens")) == 13  # 4 shards of three files, and the index


def test_killed_between_its_renames_the_old_set_is_put_back(replace, tmp_path, monkeypatch):
    before, rename = contents(tmp_path / "set.tokens"), os.rename

    def die(source, target):
        if Path(source).name == ".set.tokens.new":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(set_encoding.os, "rename", die)
        assert replace(4) == 130
    assert not Path("set.tokens").exists()
    with contextlib.suppress(KeyError), replacing(Path("set.tokens")):
        assert contents(tmp_path / "set.tokens") == before
        raise KeyError
    assert replace(4) == 0
    assert not list(tmp_path.glob(".set*"))


def test_what_is_no_part_of_the_set_is_not_lost(replace, tmp_path, capsys):
    (tmp_path / "set.tokens/notes.txt").write_text("mine")
    before = contents(tmp_path / "set.tokens")
    assert replace(3) == 2
    assert "notes.txt: is not part of the token set to be replaced; move it away" in capsys.readouterr().err
    assert contents(tmp_path / "set.tokens") == before


@pytest.mark.parametrize("verify", [True, False])
def test_a_reader_of_the_old_set_never_takes_a_shard_of_the_new_one(replace, paths, tmp_path, verify):
    reader = TokenFile.open("set.tokens", verify)
    first = reader.tokens[:3].tolist()
    paths[1].write_text("another text")
    assert replace(2) == 0
    assert reader.tokens[:3].tolist() == first
    with pytest.raises(InputError, match=r"00001\.bin: is not the file that index\.json lists"):
        reader.tokens[-1]
