"""Proves that folders are read wholly, or what is passed over is said; that no file is read twice; that what is packed,
binary or in another encoding is refused by name whatever it is called; and that a byte order mark is no text."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tokenization import END_OF_TEXT, GPT2_PATTERN, InputError, TokenFile
from tokenization.native.splitting import scanner_head
from tokenization.native.text import SpecialTokens
from tokenization.native.windows import cut_into_windows
from tokenization.text.corpus import Corpus
from tokenization.text.packing import zstd
from tokenization.text.text_files import TextFiles, reads

TEXT = "The cat's tale, told in 漢字 and with a 😀.\n" * 200


# which files


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """texts/ with a.txt, b.TXT, sub/c.Txt.GZ, linked -> elsewhere/ (with d.txt), and much that is not read."""
    monkeypatch.chdir(tmp_path)
    for name in ("texts/sub", "elsewhere"):
        Path(name).mkdir(parents=True)
    Path("texts/a.txt").write_text("one")
    Path("texts/b.TXT").write_text("two")
    Path("texts/sub/c.Txt.GZ").write_bytes(gzip.compress(b"three"))
    Path("elsewhere/d.txt").write_text("four")
    Path("texts/linked").symlink_to("../elsewhere")
    return tmp_path / "texts"


def found(*inputs: str) -> tuple[list[str], dict[str, list[str]]]:
    texts = TextFiles(inputs)
    return list(map(str, texts.files)), {why: list(map(str, paths)) for why, paths in texts.passed_over.items()}


def test_linked_folders_and_capital_suffixes_are_read(folder, small):
    expected = ["texts/a.txt", "texts/b.TXT", "texts/linked/d.txt", "texts/sub/c.Txt.GZ"]
    assert found("texts") == (expected, {})
    file = small.encode_files(["texts"], "t.bin", num_processes=1)
    assert small.decode(file.tokens) == END_OF_TEXT.join(["one", "two", "four", "three"])


def test_links_that_lead_back_end_and_are_said(folder):
    Path("texts/sub/up").symlink_to("..")
    Path("texts/self").symlink_to(".")
    Path("elsewhere/round").symlink_to("../texts")
    files, passed_over = found("texts")
    assert [Path(file).name for file in files] == ["a.txt", "b.TXT", "d.txt", "c.Txt.GZ"]
    assert {why: sorted(Path(name).name for name in names) for why, names in passed_over.items()} == {
        "another name of a folder already read": ["round", "self", "up"]
    }


def test_folders_that_are_all_linked_into_each_other_are_read_once(folder):
    for number in range(12):
        Path(f"texts/{number}").mkdir()
        Path(f"texts/{number}/x.txt").touch()
        for other in range(12):
            Path(f"texts/{number}/to{other}").symlink_to(f"../{other}")
    assert len(TextFiles(["texts"]).files) == 4 + 12


def test_a_file_with_two_names_is_two_documents_and_that_is_said(folder, small):
    os.link("texts/a.txt", "texts/hard.txt")
    Path("texts/soft.txt").symlink_to("a.txt")
    texts = TextFiles(["texts", "texts/a.txt", "texts/sub/../a.txt"])
    assert [file.name for file in texts.files] == [
        "a.txt",
        "b.TXT",
        "hard.txt",
        "d.txt",
        "soft.txt",
        "c.Txt.GZ",
        "a.txt",
    ]
    assert not texts.passed_over
    assert texts.summary() == "reading 7 files, 3 once more under another name: hard.txt, soft.txt, a.txt"
    assert small.encode_files(["texts"], "t.bin", num_processes=1).description.documents == 6


def test_what_is_passed_over_is_said_with_the_reason(folder):
    for name in ("c.rst", "d.csv", "e.txt.lz4", "f.rst", "g.RST", "noname", "README.md"):
        Path(f"texts/{name}").write_text("x")
    Path("texts/gone.txt").symlink_to("nowhere")
    os.mkfifo("texts/pipe.txt")
    for name in ("tok", "own"):
        Path(f"texts/{name}").mkdir()
        Path(f"texts/{name}/merges.txt").write_text("merges")
    Path("texts/tok/vocab.json").touch()
    texts = TextFiles(["texts"])
    assert [file.name for file in texts.files] == ["a.txt", "b.TXT", "d.txt", "merges.txt", "c.Txt.GZ"]
    assert texts.files[3].parent.name == "own"  # which is no tokenizer's
    assert texts.summary() == (
        "reading 5 files; skipping 1 (about the other files; name it to have it read): README.md, and 7 (no .txt,"
        " .md, .jsonl, .ndjson, .parquet; name a file to have it read): c.rst, d.csv, e.txt.lz4, f.rst, g.RST, noname,"
        " vocab.json, and 2 (not a file): gone.txt, pipe.txt, and 1 (part of a tokenizer): merges.txt"
    )
    for number in range(500):
        Path(f"texts/{number:04}.rst").touch()
    assert ": 0000.rst and 502 more .rst, d.csv, e.txt.lz4, noname, vocab.json, and" in TextFiles(["texts"]).summary()
    assert TextFiles(["texts/a.txt"]).summary() == "reading 1 file"


@pytest.mark.parametrize("inputs", [[""], ["texts", ""], []])
def test_an_empty_name_is_not_the_current_folder(folder, inputs):
    with pytest.raises(InputError, match=r"the name of a text file is empty|no text was named"):
        TextFiles(inputs)


def test_a_glob_takes_no_tokenizer_either(folder, small):
    small.save("texts")
    assert found("texts/*.txt") == (["texts/a.txt"], {"part of a tokenizer": ["texts/merges.txt"]})


def test_a_folder_is_read_in_every_kind_and_packing_and_without_its_readme(folder):
    names = [f"{name}{packing}" for name in ("m.md", "n.jsonl", "o.NDJSON") for packing in ("", ".gz", ".bz2", ".XZ")]
    for name in (*names, "README.md", "sub/ReadMe.MD"):
        Path(f"texts/{name}").touch()
    files, passed_over = found("texts")
    assert [Path(file).name for file in files] == ["a.txt", "b.TXT", "d.txt", *sorted(names), "c.Txt.GZ"]
    assert passed_over == {"about the other files; name it to have it read": ["texts/README.md", "texts/sub/ReadMe.MD"]}
    assert found("texts/*.md", "texts/sub/ReadMe.MD")[0] == ["texts/README.md", "texts/m.md", "texts/sub/ReadMe.MD"]


@pytest.mark.parametrize(
    ("output", "inputs", "reader"),
    [
        ("texts/new.txt", ["texts"], "texts"),
        ("texts/deep/new.TXT", ["texts"], "texts"),
        ("linked/new.txt", ["texts"], "texts"),
        ("texts/new.jsonl", ["texts"], "texts"),
        ("texts/README.md", ["texts"], None),
        ("texts/new.bin", ["texts"], None),
        ("new.txt", ["texts"], None),
        ("texts/new.txt", ["texts/a.txt"], None),
        ("texts/new.txt", ["texts/*.txt"], "texts/*.txt"),
        ("texts/new.bin", ["texts/*.txt", "texts/[mn]*"], "texts/[mn]*"),
    ],
)
def test_an_output_that_would_be_text_the_next_time(folder, output, inputs, reader):
    Path("linked").symlink_to("texts")
    assert reads(inputs, Path(output)) == reader


# what is in them


def zipped(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", text)
    return buffer.getvalue()


def tarred(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return buffer.getvalue()


DATA = TEXT.encode()
NO_TEXTS = {
    "bzip2": (bz2.compress(DATA), "is compressed by bzip2, but not named .bz2; give it a name that ends with .bz2"),
    "empty bzip2": (bz2.compress(b""), "is compressed by bzip2"),
    "xz": (lzma.compress(DATA), "is compressed by xz, but not named .xz; give it a name that ends with .xz"),
    "gzip": (gzip.compress(DATA), "is compressed by gzip, but not named .gz; give it a name that ends with .gz"),
    "zstd": (zstd.compress(DATA), "is compressed by zstd, but not named .zst; give it a name that ends with .zst"),
    "zip": (zipped(DATA), "is a zip archive"),
    "tar": (tarred(DATA), "is a tar archive"),
    "parquet": (
        b"PAR1\x15\x04\x15\x10\x15\x14L\x15\x02\x15\x00\x12\x00\x00" + DATA,
        "is a Parquet file, but not named .parquet; give it a name",
    ),
    "pdf": (b"%PDF-1.7\n1 0 obj\n", "is a PDF"),
    "pickle": (pickle.dumps([1.5, 2**40, None, "text"]), "is a binary file"),
    "tokens": (np.arange(200, 2000, dtype="<u2").tobytes(), "is a binary file"),
    "UTF-16": (TEXT.encode("utf-16"), "is UTF-16, by its byte order mark; convert it to UTF-8"),
    "UTF-16, big end first": ("\ufeff".encode("utf-16-be") + TEXT.encode("utf-16-be"), "is UTF-16, by its byte"),
    "UTF-32": (TEXT.encode("utf-32"), "is UTF-32, by its byte order mark"),
    "UTF-16 without a mark": (("A plain text. " * 9).encode("utf-16-le"), "is UTF-16, or no text at all"),
    "UTF-16 without a mark, big end": (("A plain text. " * 9).encode("utf-16-be"), "is UTF-16, or no text at all"),
    "UTF-32 without a mark": (("A plain text. " * 9).encode("utf-32-le"), "is UTF-32, or no text at all"),
    "UTF-32 without a mark, big end": (("A plain text. " * 9).encode("utf-32-be"), "is UTF-32, or no text at all"),
    "web archive": (b"WARC/1.0\r\nWARC-Type: warcinfo\r\n\r\n", "is a web archive, which is not read"),
    "small tokens": (np.arange(3, 200, dtype="<u2").tobytes(), "is UTF-16, or no text at all"),
}


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("kind", NO_TEXTS)
def test_what_is_no_text_is_refused_whatever_it_is_called(tmp_path, small, kind, errors):
    data, message = NO_TEXTS[kind]
    for name, content in (
        ("t.txt", data),
        ("t.md", data),
        ("t.jsonl", data),
        ("t.txt.gz", gzip.compress(data)),
        ("t.jsonl.xz", lzma.compress(data)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            small.encode_files([tmp_path / name], tmp_path / "t.bin", 1, errors)
        assert str(error.value).startswith(f"{tmp_path / name}: {message}")
        assert "errors replace" not in str(error.value)
        assert not (tmp_path / "t.bin").exists()


@pytest.mark.parametrize(
    "text",
    ["\0", "a\0", "\0" * 5000, "a" * 1000 + "\0" * 1000, "a\0b\0\0c" * 900, "PAR1 is a name", "PKZIP", "BZh9 was here",
     "%PDF is a format", "漢" * 1365 + "\0" + "漢字" * 900, "\ufffe", "ÿþ"],
)  # fmt: skip
def test_any_utf8_is_text_nul_and_odd_beginnings_among_it(tmp_path, text):
    path = tmp_path / "t.txt"
    path.write_bytes(text.encode())
    assert "".join(Corpus([path]).blocks(path)) == text


RECORD = b'{"id": 1, "text": "The cat"}\n'
LIST = b'\n [\n  {"text": "The cat"}\n]\n'
RECORDS = {
    "list.json": (LIST, "is a JSON list, which is not read; `jq -c"),
    "list.json.gz": (gzip.compress(LIST), "is a JSON list, which is not read; `jq -c"),
    "marked.json": (b"\xef\xbb\xbf" + LIST, "is a JSON list"),
    "lines.json": (
        RECORD,
        "is JSON, which is not read; if each line is a record, give it a name",
    ),
    "table.csv": (b"id,text\n", "is a table, whose separators would be text; write its text to a .jsonl or .parquet"),
    "TABLE.TSV.GZ": (gzip.compress(b"id\ttext\n"), "is a table"),
    "lines.txt": (
        2 * RECORD,
        "begins with a JSON record, but is not named .jsonl; give it a name that ends",
    ),
    "lines": (b'{ "url": "x", "content" : "' + b"long " * 2000 + b'"}\n', "begins with a JSON record"),
    "chats.txt": (b'{"messages": [{"role": "user", "content": "Hi"}]}\n', "begins with a JSON record"),
    "c4.gz": (gzip.compress(RECORD), "begins with a JSON record"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_not_read_as_text_unless_the_name_says_so(tmp_path, small, name):
    path, (data, message) = tmp_path / name, RECORDS[name]
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        small.encode_files([path], tmp_path / "t.bin", 1)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("list.txt", LIST.decode()), ("table.txt", "id,text\n"), ("a.md", '{"text": '), ("a.py", '{"key": "text"}\n'),
     ("a.json", "none"), ("a.txt", '{"text": 1}\n'), ("b.txt", '{"a": "' + "text" * 2000), ("c.txt", "{}\n" * 2000)],
)  # fmt: skip
def test_what_only_looks_like_records_is_text(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert "".join(Corpus([path]).blocks(path)) == text


PACK = {
    "t.txt": bytes,
    "t.txt.gz": gzip.compress,
    "t.TXT.ZST": zstd.compress,
    "t.bz2": bz2.compress,
    "t.XZ": lzma.compress,
}


def windows(corpus: Corpus) -> str:
    return "".join(window.text for window in cut_into_windows(corpus, SpecialTokens({}), scanner_head(GPT2_PATTERN)))


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("name", PACK)
def test_a_byte_order_mark_is_dropped_at_the_beginning_and_only_there(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr("tokenization.text.corpus.BLOCK_BYTES", block)
    path = tmp_path / name
    for text in ("", "x", "\ufeffx", "x\ufeff\n\ufeffy " * 50):
        path.write_bytes(PACK[name](("\ufeff" + text).encode()))
        corpus = Corpus([path])
        assert "".join(corpus.blocks(path)) == text
        assert corpus.num_bytes == len(text.encode())
        assert windows(Corpus([path])) == text


def test_a_byte_order_mark_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[("\ufeff" + TEXT).encode()])
    writer.start()
    assert "".join(Corpus([tmp_path / "pipe"]).blocks(tmp_path / "pipe")) == TEXT
    writer.join()


def test_no_document_begins_with_a_byte_order_mark(tmp_path, small):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_bytes(b"\xef\xbb\xbfa document")
    file = small.encode_files([tmp_path], tmp_path / "t.bin", num_processes=1)
    assert small.decode(file.tokens) == END_OF_TEXT.join(["a document"] * 3)
    assert TokenFile.open(tmp_path / "t.bin").description.bytes == 30 + 2 * len(END_OF_TEXT)


@pytest.mark.parametrize("read", [lambda corpus: list(corpus.blocks(corpus.files[0])), windows])
def test_places_count_the_byte_order_mark(tmp_path, read):
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfgood \x80")
    if read is windows:
        window = next(cut_into_windows(Corpus([path]), SpecialTokens({}), scanner_head(GPT2_PATTERN)))
        with pytest.raises(InputError, match="not UTF-8 at byte 8"):
            window.valid("strict")
    else:
        with pytest.raises(InputError, match="not UTF-8 at byte 8"):
            read(Corpus([path]))


# how much text there is


def test_text_is_measured_unpacked_and_no_further_than_needed(tmp_path):
    data = TEXT.encode()
    parts = {
        "a.txt": data,
        "b.txt.gz": gzip.compress(data) + gzip.compress(data),  # whose last part alone says its size
        "c.txt.zst": zstd.compress(data),
        "d.txt.gz": gzip.compress(data)[:-20],  # damaged: what can be read counts, and reading it for good says so
    }
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    sizes = {name: Corpus([tmp_path / name]).text_bytes(10**9) for name in parts}
    assert sizes == {"a.txt": len(data), "b.txt.gz": 2 * len(data), "c.txt.zst": len(data), "d.txt.gz": 0}
    corpus = Corpus([tmp_path / "a.txt", tmp_path / "b.txt.gz", tmp_path / "c.txt.zst"])
    assert corpus.text_bytes(10**9) == 4 * len(data)
    assert corpus.text_bytes(1) == len(data)
    assert corpus.num_bytes == 0


def test_a_pipe_is_left_to_the_reader_and_taken_for_a_long_text(tmp_path):
    for name in ("text.txt", "text.gz"):
        os.mkfifo(tmp_path / name)
        assert Corpus([tmp_path / name]).text_bytes(10**9) == 10**9


def test_a_long_window_of_zstd_is_read(tmp_path):
    """As in dumps that were made with `zstd --long=31`."""
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.compression_level: 1}
    compressor = zstd.ZstdCompressor(options=options)
    (tmp_path / "t.txt.zst").write_bytes(compressor.compress(DATA) + compressor.flush())
    with pytest.raises(zstd.ZstdError):
        zstd.ZstdFile(tmp_path / "t.txt.zst").read()  # what a reader refuses that is not told
    assert "".join(Corpus([tmp_path / "t.txt.zst"]).blocks(tmp_path / "t.txt.zst")) == TEXT


def test_a_new_file_within_a_recursive_glob_is_known(tmp_path):
    for place in ("data/report.txt", "data/a/report.txt", "data/a/b/report.txt"):
        assert reads([str(tmp_path / "data/**/*.txt")], tmp_path / place)
    for place in ("report.txt", "data/a/report.json", "other/report.txt"):
        assert reads([str(tmp_path / "data/**/*.txt")], tmp_path / place) is None
    assert reads([str(tmp_path / "data/*.txt")], tmp_path / "data/a/report.txt") is None


def test_a_glob_reads_the_folders_that_it_matches(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "sub/b.txt"):
        (tmp_path / name).write_text("text")
    names = [tmp_path / "a.txt", tmp_path / "sub" / "b.txt"]
    for pattern in ("*", "**", "**/*"):
        assert TextFiles([str(tmp_path / pattern)]).files == names
    assert sorted(TextFiles(list(map(str, tmp_path.iterdir()))).files) == names


def test_a_glob_passes_over_folders_without_text(tmp_path, small):
    (tmp_path / "empty").mkdir()
    small.save(tmp_path / "tok")
    (tmp_path / "a.txt").write_text("text")
    texts = TextFiles([str(tmp_path / "*")])
    assert texts.files == [tmp_path / "a.txt"]
    assert list(texts.passed_over["a folder without text"]) == [tmp_path / "empty", tmp_path / "tok"]
    assert reads([str(tmp_path / "*")], tmp_path / "empty" / "new.txt") == str(tmp_path / "*")
    assert reads([str(tmp_path / "*")], tmp_path / "empty" / "new.bin") is None
    assert reads([str(tmp_path / "*.txt")], tmp_path / "empty" / "new.txt") is None
