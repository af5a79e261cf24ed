"""Proves that token files of other programs are recognised by their content and taken in id by id, that whatever is
ambiguous, damaged or of another vocabulary is refused in one line, and that nothing is half-written or replaced."""

import io
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tokenization import END_OF_TEXT, TokenFile, Tokenizer, adopting
from tokenization.__main__ import main
from tokenization.adopting import Vocabulary, recognise

IDS = [256, 7, 299, 0, 256, 65, 66, 256, 3]
LLMC_1, LLMC_7 = (20240520, 1, "<u2"), (20240801, 7, "<u4")


def llmc(ids, kind=LLMC_1, tokens: int | None = None, version: int | None = None) -> bytes:
    """As dev/data/data_common.py of llm.c writes it."""
    magic, known, dtype = kind
    header = struct.pack("<256i", magic, version or known, len(ids) if tokens is None else tokens, *[0] * 253)
    return header + np.array(ids, dtype).tobytes()


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, small) -> Path:
    """A folder with tok/, a tokenizer of 300 tokens with <|endoftext|> at 256."""
    monkeypatch.chdir(tmp_path)
    small.save("tok")
    return tmp_path


def run(line: str) -> int:
    return main(["adopt", *line.split()])


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


FILES = {
    "llm.c's uint16": llmc(IDS),
    "llm.c's uint32": llmc(IDS, LLMC_7),
    **{f"NumPy's {dtype}": npy(np.array(IDS, dtype)) for dtype in ("<u2", ">u2", "<i4", ">i8", "u8", "int16")},
    "raw uint16": np.array(IDS, "<u2").tobytes(),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_becomes_what_an_independent_reading_gives(name, small, capsys):
    Path("theirs").write_bytes(FILES[name])
    assert run("theirs --tokenizer tok --output new/ours.bin") == 0
    whose, _, dtype = name.rpartition(" ")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"theirs: {whose} {np.dtype(dtype).name} ids -> 9 uint16 tokens, 3 documents, 0.0 MB of text"
    assert out[1] == "written: new/ours.bin, ours.bin.json and ours.bin.documents"
    assert Path("new/ours.bin").read_bytes() == struct.pack("<9H", *IDS)
    about = TokenFile.open("new/ours.bin").description
    assert about.tokenizer_sha256 == small.digest
    assert (about.vocab_size, about.documents, about.bytes) == (300, 3, len(small.decode_bytes(IDS)))


@pytest.mark.parametrize("block", [1, 2, 1 << 20])
def test_ids_of_a_text_become_its_token_file(small, monkeypatch, block):
    monkeypatch.setattr(adopting, "SCAN_TOKENS", block)
    Path("text.txt").write_text(f"The cat{END_OF_TEXT}the rain{END_OF_TEXT}É 漢字", encoding="utf-8")
    small.encode_files(["text.txt"], "one.bin", num_processes=1)
    np.save("ids.npy", np.fromfile("one.bin", "<u2").astype(np.int64))
    assert run("ids.npy --tokenizer tok --output ours.bin") == 0
    assert TokenFile.open("ours.bin").description == TokenFile.open("one.bin").description


@pytest.mark.parametrize(
    ("ids", "documents"),
    [([5, 6, 9], 1), ([5, 9, 6, 9], 2), ([9, 5, 9, 6], 2), ([5, 9, 6], 2), ([5], 1), ([9], 1)],
)
def test_documents_are_counted_by_the_named_separator(ids, documents):
    """Behind each document, as in nanoGPT, or in front of it, as in llm.c."""
    Path("theirs.npy").write_bytes(npy(np.array(ids)))
    assert run("theirs.npy --vocab-size 10 --separator-id 9 --output ours.bin") == 0
    assert TokenFile.open("ours.bin").description.documents == documents


def test_without_a_tokenizer_nothing_is_known_of_text():
    Path("theirs.bin").write_bytes(np.array([1, 2, 3, 40_000], "<u2").tobytes())
    assert run("theirs.bin --vocab-size 50257 --output ours.bin") == 0
    about = TokenFile.open("ours.bin").description
    assert (about.tokenizer_sha256, about.documents, about.bytes, about.vocab_size) == ("", 0, 0, 50257)


def test_it_is_decoded_only_with_the_tokenizer_that_was_named(capsys):
    Path("theirs.bin").write_bytes(np.array(IDS, "<u2").tobytes())
    assert run("theirs.bin --vocab-size 300 --output lost.bin") == 0
    assert run("theirs.bin --tokenizer tok --output ours.bin") == 0
    assert main(["decode", "ours.bin", "--tokenizer", "tok"]) == 0
    capsys.readouterr()
    assert main(["decode", "lost.bin", "--tokenizer", "tok"]) == 2
    assert "lost.bin: was adopted without a tokenizer" in capsys.readouterr().err


# --- what a raw file is ----------------------------------------------------------------------------------------------


def brute_force(data: bytes, vocab_size: int) -> set[str]:
    """The dtypes by which all ids lie in the vocabulary."""
    found = set()
    for name, width in (("uint16", 2), ("uint32", 4)):
        ids = [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]
        if len(data) % width == 0 and max(ids) < vocab_size:
            found.add(name)
    return found


@pytest.mark.parametrize("vocab_size", [300, 50_257, 65_535, 65_536, 128_256])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
@pytest.mark.parametrize("seed", range(3))
def test_a_raw_file_shows_its_dtype_or_it_is_asked_for(vocab_size, dtype, size, seed, capsys):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, min(vocab_size, 1 << 16) if dtype == "<u2" else vocab_size, size).astype(dtype).tobytes()
    Path("theirs.bin").write_bytes(data)
    possible = brute_force(data, vocab_size)
    certain = len(possible) == 1 and vocab_size < 65_536
    assert run(f"theirs.bin --vocab-size {vocab_size} --output ours.bin") == (0 if certain else 2)
    if certain:
        assert f"raw {possible.pop()} ids" in capsys.readouterr().out
    else:
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "has no header, and its ids could be" in err
        assert "give --dtype" in err
    name = {"<u2": "uint16", "<u4": "uint32"}[dtype]
    assert run(f"theirs.bin --vocab-size {vocab_size} --output ours.bin --overwrite --dtype {name}") == 0
    assert TokenFile.open("ours.bin").tokens.tolist() == np.frombuffer(data, dtype).tolist()


def test_a_wide_vocabulary_is_written_as_uint32():
    Path("theirs.bin").write_bytes(llmc([128_255, 5], LLMC_7))
    assert run("theirs.bin --vocab-size 128256 --output ours.bin") == 0
    assert Path("ours.bin").read_bytes() == struct.pack("<2I", 128_255, 5)


# --- what is refused -------------------------------------------------------------------------------------------------


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("ids", bytes(8))
    return file.getvalue()


REFUSED = {
    "too large": (np.array([1, 2, 300, 301], "<u2").tobytes() + b"\1\0", "", "token 2 is 300, which is not in the voc"),
    "negative": (npy(np.array([1, -1])), "", "token 1 is -1, which is not in the vocabulary of 300 tokens"),
    "in a header's file": (llmc([1, 2, 300]), "", "token 2 is 300, which is not in the vocabulary of 300"),
    "not of this vocabulary": (b"\xff" * 8, "", "as uint16, token 0 is 65535, .*; as uint32, token 0 is 4294967295"),
    "odd": (b"\0\0\1", "", "as uint16, 3 bytes are not a whole number of ids; as uint32, 3 bytes"),
    "odd for the dtype": (bytes(6), "--dtype uint32", "6 bytes are not a whole number of uint32 ids"),
    "empty": (b"", "", "theirs: is empty"),
    "another dtype, llm.c": (
        llmc(IDS),
        "--dtype uint32",
        "holds uint16 ids, according to its header; leave out --dtype",
    ),
    "another dtype, NumPy": (npy(np.array(IDS)), "--dtype uint16", "holds int64 ids, according to its header"),
    "another version": (llmc(IDS, version=2), "", "is a file of llm.c's of version 2; only version 1 is read"),
    "llama of version 1": (llmc(IDS, LLMC_7, version=1), "", "of version 1; only version 7 is read"),
    "a cut llm.c": (llmc(IDS)[:-2], "", "should have 9 uint16 ids by its header, but has 16 bytes of them"),
    "a long llm.c": (llmc(IDS) + b"\0", "", "should have 9 uint16 ids"),
    "a count below 0": (llmc(IDS, tokens=-1), "", "should have -1 uint16 ids"),
    "half a header": (llmc(IDS)[:500], "", "ends within its header"),
    "no ids, llm.c": (llmc([]), "", "holds no ids"),
    "an evaluation": (llmc(IDS, (20240522, 1, "<u2")), "", "multiple-choice questions"),
    "two dimensions": (npy(np.zeros((2, 3), np.uint16)), "", r"has the shape \(2, 3\); one dimension is needed"),
    "no dimension": (npy(np.uint16(3)), "", r"has the shape \(\)"),
    "floats": (npy(np.zeros(4)), "", "holds float64; token ids are whole numbers"),
    "truths": (npy(np.zeros(4, bool)), "", "holds bool; token ids are whole numbers"),
    "objects": (npy(np.array([1, "a"], object)), "", "is not a whole .npy file of numbers"),
    "fields": (npy(np.zeros(3, [("a", "u2")])), "", "token ids are whole numbers"),
    "a cut .npy": (npy(np.array(IDS))[:-1], "", "is not a whole .npy file"),
    "a cut header": (npy(np.array(IDS))[:20], "", "is not a whole .npy file"),
    "a long .npy": (npy(np.array(IDS)) + b"abc", "", "has 3 bytes after its ids"),
    "no ids, .npy": (npy(np.zeros(0, np.uint16)), "", "holds no ids|is not a whole .npy"),
    "compressed": (b"\x1f\x8b\x08\0" * 4, "", "is compressed; decompress it first"),
    "an archive": (archive(), "", "is a zip archive, as .npz and .pt are"),
    "a pickle": (b"\x80\x04\x95\0", "", "is a pickle; save the ids"),
    "Parquet": (b"PAR1" * 4, "", "is a Parquet file"),
    "a Megatron index": (b"MMIDIDX\0\0\0", "", "is the index of a Megatron data set"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_or_not_whole_is_refused(name, capsys):
    data, more, message = REFUSED[name]
    Path("theirs").write_bytes(data)
    before = contents()
    assert run(f"theirs --tokenizer tok --output ours.bin {more}") == 2
    out, err = capsys.readouterr()
    assert re.search(message, err), err
    assert (out, len(err.splitlines())) == ("", 1)
    assert contents() == before


def test_an_id_that_stands_for_no_token_is_refused(capsys):
    """As the ids between a vocabulary's tokens and its special ones."""
    vocab = {number: bytes([number]) for number in range(256)} | {300: END_OF_TEXT.encode()}
    Tokenizer(vocab, [], [END_OF_TEXT]).save("holes")
    np.save("ids.npy", np.array([1, 300, 2, 299], np.uint64))
    assert run("ids.npy --tokenizer holes --output ours.bin") == 2
    assert "token 3 is 299, which is not in the vocabulary of 301 tokens" in capsys.readouterr().err
    np.save("ids.npy", np.array([1, 300, 2], np.uint64))
    assert run("ids.npy --tokenizer holes --output ours.bin") == 0
    assert TokenFile.open("ours.bin").description.bytes == 2 + len(END_OF_TEXT)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("theirs.bin --output ours.bin", "one of the arguments --tokenizer --vocab-size is required"),
        ("theirs.bin --tokenizer tok --vocab-size 300 --output ours.bin", "not allowed with argument"),
        ("theirs.bin --vocab-size 0 --output ours.bin", "--vocab-size 0: must be from 1"),
        ("theirs.bin --vocab-size 300 --separator-id 300 --output ours.bin", "--separator-id 300: is not in the voc"),
        ("theirs.bin --tokenizer tok --dtype int8 --output ours.bin", "invalid choice: 'int8'"),
        ("none.bin --tokenizer tok --output ours.bin", "none.bin: no such file"),
        ("tok --tokenizer tok --output ours.bin", "tok: is not a file"),
        ("theirs.bin --tokenizer none --output ours.bin", "none: no such tokenizer folder"),
        ("theirs.bin --tokenizer tok --output theirs.bin", "theirs.bin: is one of the inputs"),
        ("theirs.bin --tokenizer tok --output same.bin --overwrite", "is the input theirs.bin under another name"),
        ("theirs.bin --tokenizer tok --output tok/vocab.json", "tok/vocab.json: is one of the inputs"),
        ("theirs.bin --tokenizer tok --output link.bin", "link.bin: is a link to theirs.bin"),
        ("theirs.bin --tokenizer tok --output done.bin", "done.bin: exists already; choose another name, or"),
        ("theirs.bin --tokenizer tok --output notes.txt --overwrite", "notes.txt: exists, and is not a token file"),
        ("theirs.bin --tokenizer tok --output x.tokens", "x.tokens: is the name of a token set"),
        ("done.bin --tokenizer tok --output ours.bin", "done.bin: is already a token file of ours"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_changes(line, message, capsys):
    Path("theirs.bin").write_bytes(np.array(IDS, "<u2").tobytes())
    Path("notes.txt").write_text("notes")
    os.link("theirs.bin", "same.bin")
    Path("link.bin").symlink_to("theirs.bin")
    assert run("theirs.bin --tokenizer tok --output done.bin") == 0
    before = contents()
    capsys.readouterr()
    assert run(line) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert contents() == before


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interruption_leaves_nothing(after, monkeypatch, capsys):
    Path("theirs.bin").write_bytes(np.array(IDS, "<u2").tobytes())
    assert run("theirs.bin --tokenizer tok --output old.bin") == 0
    before = contents()
    monkeypatch.setattr(adopting, "SCAN_TOKENS", 3)
    writes, write = [], adopting.TokenFileWriter.write

    def stop(self, ids):
        if len(writes) == after:
            raise KeyboardInterrupt
        writes.append(ids)
        write(self, ids)

    monkeypatch.setattr(adopting.TokenFileWriter, "write", stop)
    for output in ("new.bin", "old.bin --overwrite"):
        writes.clear()
        assert run(f"theirs.bin --tokenizer tok --output {output}") == 130
        assert "interrupted; no unfinished file is left" in capsys.readouterr().err
        assert contents() == before


def test_little_is_in_memory_at_a_time(monkeypatch):
    monkeypatch.setattr(adopting, "SCAN_TOKENS", 100)
    Path("theirs.bin").write_bytes(llmc(list(range(250)) * 4))
    blocks = list(recognise(Path("theirs.bin"), Vocabulary(300)).blocks())
    assert [len(block) for block in blocks] == [100] * 10
    assert np.concatenate(blocks).tolist() == list(range(250)) * 4


def test_many_become_a_set(small):
    for number in (1, 2):
        Path(f"{number}.bin").write_bytes(llmc([256, number, 66]))
        assert run(f"{number}.bin --tokenizer tok --output all.tokens/{number}.bin") == 0
    assert main(["index", "all.tokens"]) == 0
    file = TokenFile.open("all.tokens")
    assert np.asarray(file.tokens).tolist() == [256, 1, 66, 256, 2, 66]
    assert json.loads(Path("all.tokens/index.json").read_text())["documents"] == file.description.documents == 2
