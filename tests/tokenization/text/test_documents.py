"""Proves that the same text gives the same merges and the same ids whatever it is read from; that a special token that
is written out in a document is text; and that a record without a text is named by its file and line.

The oracles read the records by json.loads and know nothing of how documents are joined: ids are those of each document
by itself, by a tokenizer that has no special tokens, with the separator's id put between them."""

import bz2
import gzip
import importlib.util
import json
import lzma
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.native import NEVER, take_kernels_from
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS, random_text

from tokenization import END_OF_TEXT, InputError, Tokenizer, TrainingReport, encoding, train_bpe
from tokenization.__main__ import main
from tokenization.bpe import learn_merges
from tokenization.encoding import EncodingReport
from tokenization.native.splitting import scanner_head
from tokenization.native.text import SpecialTokens
from tokenization.native.windows import cut_into_windows
from tokenization.pretokenization import PATTERNS, count_pretokens, cut_into_chunks
from tokenization.samples import beginning, draw_documents
from tokenization.text import corpus, documents
from tokenization.text.corpus import Corpus
from tokenization.text.fields import CHATS
from tokenization.text.packing import zstd

Write = Callable[[Path, list[str]], None]


def json_lines(texts: list[str], field: str = "text", **options: bool) -> bytes:
    records = ({"id": number, field: text, "meta": {"text": "no"}} for number, text in enumerate(texts))
    return "".join(json.dumps(record, **options) + "\n" for record in records).encode()


def write_folder(folder: Path, texts: list[str]) -> None:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:06}.md").write_bytes(text.encode())


def write_parquet(path: Path, texts: list[str]) -> None:
    """In row groups of 7."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"id": range(len(texts)), "text": texts, "content": ["no"] * len(texts)})
    parquet.write_table(table, path, row_group_size=7)


FORMATS: dict[str, Write] = {
    "t.txt": lambda path, texts: path.write_bytes(END_OF_TEXT.join(texts).encode()),
    "t.jsonl": lambda path, texts: path.write_bytes(json_lines(texts)),
    "t.NDJSON": lambda path, texts: path.write_bytes(json_lines(texts, "content", ensure_ascii=False)[:-1]),
    "t.jsonl.gz": lambda path, texts: path.write_bytes(b"".join(gzip.compress(json_lines([text])) for text in texts)),
    "t.jsonl.zst": lambda path, texts: path.write_bytes(zstd.compress(json_lines(texts))),
    "t.jsonl.bz2": lambda path, texts: path.write_bytes(bz2.compress(json_lines(texts))),
    "t.ndjson.xz": lambda path, texts: path.write_bytes(lzma.compress(json_lines(texts))),
    "folder": write_folder,
}  # fmt: skip
if importlib.util.find_spec("pyarrow"):
    FORMATS["t.parquet"] = write_parquet
RECORDS = [name for name in FORMATS if name not in ("t.txt", "folder")]


def documents_of(seed: int, count: int = 60) -> list[str]:
    """Documents of every kind, long ones, blank ones and ones without any white space among them; none is empty."""
    source = random.Random(seed)
    texts = [random_text(source) for _ in range(count)]
    return [SEED_TEXT * 3, "   ", "\n\n\nx", "漢字" * 400, "x", *filter(None, texts), "the end "]


def without_special_tokens(texts: list[str]) -> list[str]:
    """Those that are the same in files of text, where a special token is the token, white space at the end no document,
    and a byte order mark no text."""
    pattern = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    return [text for text in texts if text.strip() and text[0] != "\ufeff" and not pattern.search(text)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    counts = count_pretokens(SEED_TEXT + END_OF_TEXT, SPECIAL_TOKENS)
    return Tokenizer(*learn_merges(counts, 600, SPECIAL_TOKENS), SPECIAL_TOKENS)


def joined_ids(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """The oracle: each document by itself, where no special token is known; the separator's id between them."""
    plain = Tokenizer(tokenizer.vocab, tokenizer.merges, [], tokenizer.pattern)
    separator = [] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id]
    ids: list[int] = []
    for number, text in enumerate(filter(None, texts)):
        ids += (separator if number else []) + plain.plain.encode(text)
    return ids


@pytest.fixture(params=["plain", "compiled", "compiled, in tiny windows"])
def code(request, monkeypatch) -> str:
    """Each of the codes that can do the work, and plain Python in pieces and blocks that end anywhere."""
    take_kernels_from(NEVER if request.param == "plain" else 0, monkeypatch)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 101)
    monkeypatch.setattr("tokenization.text.reading.BLOCK_BYTES", 101)
    monkeypatch.setattr("tokenization.text.parquet.ROWS_AT_ONCE", 3)
    if request.param == "plain":
        pieces = lambda blocks, boundaries, pattern: cut_into_chunks(blocks, boundaries, pattern, 150)  # noqa: E731
        monkeypatch.setattr(encoding, "cut_into_chunks", pieces)
        monkeypatch.setattr("tokenization.training.cut_into_chunks", pieces)
    if request.param.endswith("windows"):
        monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 64)
    return "plain Python" if request.param == "plain" else "compiled kernels"


# --- the same text in every format ---


@pytest.fixture(scope="module")
def texts_and_ids(tokenizer) -> tuple[list[str], list[int]]:
    texts = without_special_tokens(documents_of(0, 100))
    return texts, joined_ids(tokenizer, texts)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_text_gives_the_same_ids_in_every_format(tmp_path, tokenizer, code, name, texts_and_ids):
    texts, expected = texts_and_ids
    FORMATS[name](tmp_path / name, texts)
    for processes in (1, 2):
        report = EncodingReport()
        file = tokenizer.encode_files([tmp_path / name], tmp_path / "t.bin", processes, report=report)
        assert report.path.startswith(code)
        assert file.tokens.tolist() == expected
        assert file.description.documents == len(texts)
        assert file.description.bytes == len(END_OF_TEXT.join(texts).encode())  # as many in each format


def test_the_same_text_gives_the_same_merges_in_every_format(tmp_path, code):
    """Special tokens that are written out are not counted in a document either: no token is spelt like one."""
    texts = [*documents_of(1), "#### ## # the #### cat"]
    special = [*SPECIAL_TOKENS, "##"]
    learnt = {}
    for name, write in FORMATS.items():
        write(tmp_path / name, texts)
        report = TrainingReport()
        learnt[name] = train_bpe(tmp_path / name, 420, special, num_processes=2, report=report)
        assert report.path.startswith(code)
        if name in RECORDS:
            assert report.text_bytes == sum(len(text.encode()) for text in texts)
    counts = sum((count_pretokens(text, special) for text in texts), start=count_pretokens(""))
    expected = learn_merges(counts, 420, special)
    assert {name: merges == expected for name, merges in learnt.items()} == dict.fromkeys(FORMATS, True)
    assert len(set(expected[0].values())) == 420


# --- special tokens that are written out ---


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", r"\S+|\s+", "(?s).{1,7}"])
def test_a_special_token_in_a_document_is_text(tmp_path, tokenizer, code, pattern):
    used = Tokenizer(tokenizer.vocab, tokenizer.merges, SPECIAL_TOKENS, PATTERNS.get(pattern, pattern))
    texts = [END_OF_TEXT, f"a{END_OF_TEXT}b", f"{END_OF_TEXT}{END_OF_TEXT}\n", *documents_of(2)]
    expected = joined_ids(used, texts)
    for name in RECORDS:
        FORMATS[name](tmp_path / name, texts)
        file = used.encode_files([tmp_path / name], tmp_path / "t.bin", 2)
        assert file.tokens.tolist() == expected
        assert file.description.documents == len(texts) == 1 + file.tokens.tolist().count(used.end_of_text_id)
    assert any(END_OF_TEXT in text for text in texts[4:])


def test_documents_and_files_of_text_side_by_side(tmp_path, tokenizer, code):
    """In text the token, in documents its letters; between files a separator where none stands already."""
    (tmp_path / "a.txt").write_bytes(f"one{END_OF_TEXT}two".encode())
    (tmp_path / "b.jsonl").write_bytes(json_lines(["three", f"four{END_OF_TEXT}"]))
    (tmp_path / "c.txt").write_bytes(f"five{END_OF_TEXT}\n".encode())
    (tmp_path / "d.jsonl").write_bytes(json_lines(["", "   ", ""]))
    (tmp_path / "e.jsonl").write_bytes(b"")
    (tmp_path / "f.jsonl").write_bytes(json_lines(["six"]))
    file = tokenizer.encode_files([tmp_path], tmp_path / "t.bin", 2)
    plain, separator = Tokenizer(tokenizer.vocab, tokenizer.merges), [tokenizer.end_of_text_id]
    expected = [*plain.encode("one"), *separator, *plain.encode("two"), *separator, *plain.encode("three"), *separator]
    expected += [*plain.encode(f"four{END_OF_TEXT}"), *separator, *plain.encode("five"), *separator]
    expected += [*plain.encode("\n"), *plain.encode("   "), *separator, *plain.encode("six")]
    assert file.tokens.tolist() == expected
    assert file.description.documents == 7


@pytest.mark.parametrize("full", [False, True])
def test_without_a_separator_documents_stand_side_by_side(tmp_path, tokenizer, code, full):
    """full: no id of 16 bits is free, so that the kernels have none for the mark between documents."""
    vocab = dict(tokenizer.vocab)
    if full:
        vocab |= {token_id: b"token %d" % token_id for token_id in range(len(vocab), 65536)}
    used = Tokenizer(vocab, tokenizer.merges, ["<|end"])
    texts = documents_of(3)
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts[:20]))
    (tmp_path / "b.jsonl").write_bytes(json_lines(texts[20:]))
    file = used.encode_files([tmp_path], tmp_path / "t.bin", 2)
    assert file.tokens.tolist() == joined_ids(used, texts)
    assert file.description.documents == len(texts)


def test_memory_is_bounded_by_the_longest_document(tmp_path, tokenizer, monkeypatch):
    """Documents without any white space are cut between each other."""
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 1000)
    monkeypatch.setattr("tokenization.text.reading.BLOCK_BYTES", 500)
    (tmp_path / "t.jsonl").write_bytes(json_lines(["漢字" * 20] * 300))
    windows = list(cut_into_windows(Corpus([tmp_path / "t.jsonl"]), SpecialTokens({}), scanner_head(PATTERNS["gpt2"])))
    assert max(window.length for window in windows) <= 1000
    assert b"".join(window.buffer[: window.length].tobytes() for window in windows).count(b"\xff") == 299


# --- records ---


def refusal(path: Path, small: Tokenizer, **options: str) -> str:
    """The one line that encoding and training both give, with nothing left behind."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InputError) as error:
        small.encode_files([path], path.parent / "t.bin", 1, **options)
    with pytest.raises(InputError) as again:
        train_bpe(path, 300, num_processes=1, **options)
    assert str(again.value) == str(error.value)
    assert sorted(path.parent.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path))


GOOD = b'{"text": "a good line"}\n'
BAD_LINES = {
    "no JSON": (b"not JSON", "is not JSON (Expecting value at column 1); every line must be an object like"),
    "a form feed": (b"\x0c", "is not JSON (Expecting value at column 1)"),
    "cut": (GOOD[:-3], "is not JSON (Unterminated string starting at column 10)"),
    "two in a line": (GOOD[:-1] * 2, "is not JSON (Extra data at column 24)"),
    "a line end inside": (b'{"text": "a\x01b"}', "is not JSON (Invalid control character at column 12)"),
    "a long number": (b'{"text": 1' + b"0" * 5000 + b"}", "is not JSON (Exceeds the limit"),
    "too deep": (b"[" * 100_000, "is not JSON (maximum recursion depth exceeded"),
    "a list": (b'["text"]', "is a list and not an object"),
    "a string": (b'"text"', "is a string and not an object"),
    "nothing": (b"null", "is null and not an object"),
    "a number": (b"1.5", "is a number and not an object"),
    "no field": (b'{"a": "x", "b": 1}', "has no field 'text' or 'content', only 'a', 'b'; name one with --text-field"),
    "no fields": (b"{}", "has no field 'text' or 'content', only none"),
    "a null": (b'{"text": null, "content": "x"}', "the field 'text' is null and not a string; name another"),
    "a list of texts": (b'{"text": ["x"]}', "the field 'text' is a list and not a string"),
    "a flag": (b'{"content": true}', "the field 'content' is a boolean and not a string"),
    "half a character": (b'{"text": "\\ud83d"}', "the field 'text' has the lone surrogate U+D83D, which UTF-8"),
    "another encoding": (b'{"text": "caf\xe9"}', "is not UTF-8 at byte 14 of it (0xe9); use --errors replace"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_record_without_a_text_is_named_by_its_line(tmp_path, small, code, kind):
    line, message = BAD_LINES[kind]
    path = tmp_path / "t.jsonl"
    for before, number in ((b"", 1), (GOOD + b"\n \t\r\n" + GOOD, 5), (GOOD * 30, 31)):
        path.write_bytes(before + line + b"\n" + GOOD)
        assert refusal(path, small).startswith(f", line {number}: {message}")
    path.write_bytes(GOOD + line)  # and without a line end
    assert refusal(path, small).startswith(f", line 2: {message}")


def test_what_can_be_replaced_is_replaced_on_request(tmp_path, small, code):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"text": "caf\xe9 \\ud83d\\ude00 \\ude00\\ud83d"}\r\n{"text": "\\ud83d"}')
    expected = joined_ids(small, ["caf\ufffd 😀 \ufffd\ufffd", "\ufffd"])
    assert small.encode_files([path], tmp_path / "t.bin", 1, "replace").tokens.tolist() == expected


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path, small, code):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n" + GOOD + b"\r\n\t\n" + GOOD[:-1] + b"\r\n\n")
    assert small.encode_files([path], tmp_path / "t.bin", 1).tokens.tolist() == joined_ids(small, ["a good line"] * 2)


@pytest.mark.parametrize("command", ["train t.txt --vocab-size 260", "encode t.txt --tokenizer tok", "compare tok"])
def test_a_field_of_texts_without_any_is_refused(tmp_path, small, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("some words")
    small.save(tmp_path / "tok")
    more = ["--text", "t.txt"] if command.startswith("compare") else ["--output", "new"]
    assert main([*command.split(), *more, "--text-field", "body"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.partition(": ")[2].startswith("--text-field body: only .jsonl, .ndjson, .parquet files have fields")
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"t.txt", "tok"}


def test_the_field_can_be_named(tmp_path, small, code):
    path = tmp_path / "t.jsonl"
    path.write_bytes(json_lines(["first", "second"], "body"))
    assert "only 'id', 'body', 'meta'; name one with --text-field" in refusal(path, small)
    file = small.encode_files([path], tmp_path / "t.bin", 1, text_field="body")
    assert file.tokens.tolist() == joined_ids(small, ["first", "second"])
    assert train_bpe(path, 260, text_field="body", num_processes=1)[0][256] in (b"st", b"rs", b"nd", b"ir", b"on")
    (tmp_path / "t.bin").unlink()
    (tmp_path / "t.bin.json").unlink()
    assert refusal(path, small, text_field="text").startswith(", line 1: has no field 'text', only")
    assert refusal(path, small, text_field="meta").startswith(", line 1: the field 'meta' is an object and not a str")


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.jsonl.zst", "t.jsonl.bz2", "t.ndjson.xz"])
def test_a_damaged_archive_is_named(tmp_path, small, name):
    FORMATS[name](tmp_path / name, documents_of(4))
    records, suffix = (tmp_path / name).read_bytes(), Path(name).suffix
    (tmp_path / name).unlink()
    pack = {".gz": gzip.compress, ".zst": zstd.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    for text_name, whole in (("d.txt", pack(json_lines(documents_of(4))[1:])), ("d.jsonl", records)):
        path, half = tmp_path / f"{text_name}{suffix}", len(whole) // 2
        for damaged in (whole[:-20], whole[:half], whole[:half] + bytes(8) + whole[half + 8 :], b"no archive"):
            path.write_bytes(damaged)
            assert re.match(rf": damaged {path.suffix} file \(.+\); copy", refusal(path, small))
        path.unlink()


NESTED = [  # a line, the name of its field, its text or the beginning of the refusal
    ({"a": {"b": "x"}}, "a.b", "x"),
    ({"a": {"b": {"c": "x", "b": "y"}}}, "a.b.c", "x"),
    ({"a.b": "x", "a": {"b": "y"}}, "a.b", "x"),
    ({"a": {"b.c": "x", "b": {"c": "y"}}}, "a.b.c", "x"),
    ({"a.b": {"c": "x"}, "a": {"b": {"c": "y"}}}, "a.b.c", "x"),
    ({"text": "no", "a": {"text": "x"}}, "a.text", "x"),
    ({"": {"": "x"}}, ".", "x"),
    ({"a": {"c": "x"}}, "a.b", "has no field 'b' in 'a', only 'c'; name one with --text-field"),
    ({"b": 1}, "a.b", "has no field 'a.b', only 'b'; name one with --text-field"),
    ({"a": {"b": "x"}}, "a.b.c", "the field 'a.b' is a string and has no 'c'; name another with --text-field"),
    ({"a": None}, "a.b", "the field 'a' is null and has no 'b'; name another"),
    ({"a": {"b": {"c": "x"}}}, "a.b", "the field 'a.b' is an object and not a string; take its text out"),
    ({"messages": [{"role": "user", "content": "x"}]}, None, "has no field 'text' or 'content', only 'messages'; 'mes"),
    ({"messages": [{"role": "user", "content": "x"}]}, "messages", "the field 'messages' is a list and not a string"),
    ({"messages": []}, "messages.content", "the field 'messages' is a list and has no 'content'; 'messages' are chats"),
    ({"a": {"conversations": []}}, "a.conversations", "the field 'a.conversations' is a list and not a string; 'conv"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "name", "expected"), NESTED)
def test_a_dotted_name_leads_through_objects(tmp_path, small, record, name, expected):
    """In Parquet, too, as far as it can hold the same: the same text, or a refusal."""
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n")
    if expected in ("x", "y"):
        assert "".join(Corpus([tmp_path / "t.jsonl"], text_field=name).blocks(tmp_path / "t.jsonl")) == expected
    else:
        assert refusal(tmp_path / "t.jsonl", small, text_field=name).startswith(f", line 1: {expected}")
    if record.get("") is None and (pyarrow := pytest.importorskip("pyarrow")):
        from pyarrow import parquet

        path = tmp_path / "t.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([record]), path)
        if expected in ("x", "y"):
            assert "".join(Corpus([path], text_field=name).blocks(path)) == expected
        else:
            words = expected.replace("field '", "column '").partition(" is ")[0]
            assert refusal(path, small, text_field=name).startswith(f": {words}")


def test_the_remedy_for_chats_does_what_it_says(tmp_path):
    """The filter of the message, run by jq, gives a file that is read."""
    jq = shutil.which("jq") or pytest.skip("needs jq")
    path = tmp_path / "t.jsonl"
    for name, key in CHATS.items():
        path.write_text(json.dumps({name: [{"from": "a", key: "Hi"}, {"from": "b", key: "Ho"}]}) + "\n")
        with pytest.raises(InputError) as error:
            list(Corpus([path]).blocks(path))
        command = re.search("`jq -c '(.+)'`", str(error.value))
        path.write_bytes(subprocess.check_output([jq, "-c", command[1], path]))
        assert "".join(Corpus([path]).blocks(path)) == "Hi\nHo"


# --- the commands ---


def run(line: str) -> int:
    return main(line.split(" "))


def test_the_commands_read_documents(tmp_path, monkeypatch, capsys, small):
    monkeypatch.chdir(tmp_path)
    small.save("tok")
    texts = ["The cat's tale.", f"A hat{END_OF_TEXT}!", "  "]
    Path("t.jsonl").write_bytes(json_lines(texts, "body"))
    assert run("encode t.jsonl --text-field body --tokenizer tok --output t.bin --processes 1") == 0
    assert "0.0 MB of text, 3 documents -> " in capsys.readouterr().out
    assert run("decode t.bin --tokenizer tok") == 0
    assert capsys.readouterr().out == END_OF_TEXT.join(texts)
    assert run("train t.jsonl --text-field body --vocab-size 260 --output new --processes 1") == 0
    assert run("compare tok --text t.jsonl --text-field body") == 0
    assert run("compare tok --text t.jsonl --documents 2 --text-field body") == 0
    capsys.readouterr()
    for line in ("train t.jsonl --vocab-size 260 --output x", "compare tok --text t.jsonl"):
        assert run(line) == 2
        assert capsys.readouterr().err.startswith(f"tokenization {line.split()[0]}: t.jsonl, line 1: has no field")
    assert not Path("x").exists()


def test_samples_are_documents(tmp_path):
    texts = ["one", f"two{END_OF_TEXT}half", " ", "three"]
    (tmp_path / "t.jsonl").write_bytes(json_lines(texts))
    assert draw_documents(str(tmp_path), 10, seed=0).texts == ["one", f"two{END_OF_TEXT}half", "three"]
    assert beginning(str(tmp_path), 1000).texts == [END_OF_TEXT.join(texts)]


def test_lines_are_the_same_however_the_blocks_are_cut():
    source = random.Random(0)
    for _ in range(200):
        data = bytes(source.choices(b"ab\n\r", k=source.randrange(30)))
        ends = sorted(source.choices(range(len(data) + 1), k=source.randrange(5)))
        blocks = [data[start:end] for start, end in pairwise([0, *ends, len(data)])]
        assert [line for lines in documents.cut_into_lines(blocks) for line in lines] == data.split(b"\n")
