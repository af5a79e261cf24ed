"""Proves that the rows of Parquet files are documents, whatever writes their strings; that a row without a text, a
wrong column and a damaged file are named; and that memory does not grow with a row group."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from tokenization import END_OF_TEXT, InputError, Tokenizer, train_bpe
from tokenization.text.corpus import Corpus

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


def write(path: Path, texts: object, kind: object = None, name: str = "text", **options: object) -> Path:
    """A Parquet file with a column of this type, and another one."""
    column = texts if isinstance(texts, (pyarrow.Array, pyarrow.ChunkedArray)) else pyarrow.array(texts, kind)
    parquet.write_table(pyarrow.table({"id": pyarrow.nulls(len(column)), name: column}), path, **options)
    return path


def documents(path: Path, **options: str) -> list[str]:
    """What the rows are read as."""
    corpus = Corpus([path], **options)
    return "".join(corpus.blocks(path)).split("\udcff")


TEXTS = ["one", f"two{END_OF_TEXT}", " ", "漢字 😀", "one"] * 200


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli"])
@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary", "dictionary"])
def test_strings_of_every_type_are_read(tmp_path, kind, compression):
    dictionary = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    texts = [text.encode() for text in TEXTS] if "binary" in kind else TEXTS
    path = write(
        tmp_path / "t.parquet",
        texts,
        dictionary if kind == "dictionary" else getattr(pyarrow, kind)(),
        compression=compression,
    )
    assert documents(path) == TEXTS


def test_the_column_is_text_or_content_or_named(tmp_path):
    assert documents(write(tmp_path / "a.parquet", ["x", "y"], name="content")) == ["x", "y"]
    path = write(tmp_path / "b.parquet", ["x", "y"], name="body")
    assert documents(path, text_field="body") == ["x", "y"]
    with pytest.raises(InputError, match=r"b\.parquet: has no column 'text' or 'content', only 'id', 'body'; name one"):
        documents(path)


def test_a_field_of_a_struct_is_named_with_a_dot(tmp_path):
    """A column that contains the dot comes first, though pyarrow selects both by this name; a null struct is named."""
    texts = [f"row {number}" for number in range(1000)]
    nested = pyarrow.array([{"id": number, "in": {"text": text}} for number, text in enumerate(texts)])
    assert documents(write(tmp_path / "t.parquet", nested, name="m"), text_field="m.in.text") == texts
    both = pyarrow.table({"a": [{"b": "y"}] * 2, "a.b": ["x", "z"]})
    parquet.write_table(both, tmp_path / "t.parquet")
    assert documents(tmp_path / "t.parquet", text_field="a.b") == ["x", "z"]
    null = pyarrow.array([{"text": "x"}, None, {"text": None}])
    with pytest.raises(InputError, match=r"t\.parquet, row 2: the field 'm\.text' is null and not a string"):
        documents(write(tmp_path / "t.parquet", null, name="m"), text_field="m.text")
    with pytest.raises(InputError, match=r"the column 'm' holds struct<text: string>? and no strings"):
        documents(tmp_path / "t.parquet", text_field="m")
    lists = write(tmp_path / "t.parquet", [[{"content": "x"}]], name="messages")
    for name in (None, "messages", "messages.content"):
        with pytest.raises(InputError, match=r"t\.parquet: .*'messages' are chats, which can be written as text"):
            documents(lists, text_field=name)


@pytest.mark.parametrize("empty", [[], ["", ""]])
def test_a_file_without_text_is_refused(tmp_path, small, empty):
    path = write(tmp_path / "t.parquet", empty, pyarrow.string())
    with pytest.raises(InputError, match=r"t\.parquet: no text to encode; the input is empty"):
        small.encode_files([path], tmp_path / "t.bin", 1)
    assert os.listdir(tmp_path) == ["t.parquet"]


# --- refusals ---


def refusal(path: Path, small: Tokenizer) -> str:
    """The one line that encoding and training both give, with nothing left behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError) as error:
        small.encode_files([path], path.parent / "t.bin", 1)
    with pytest.raises(InputError) as again:
        train_bpe(path, 300, num_processes=1)
    assert sorted(path.parent.iterdir()) == before
    assert str(again.value) == str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path))


def test_a_row_without_a_text_is_named(tmp_path, small):
    for number in (1, 300, 1000):
        texts: list[str | None] = ["good"] * 1000
        texts[number - 1] = None
        path = write(tmp_path / "t.parquet", texts, row_group_size=400)
        assert refusal(path, small) == f", row {number}: the field 'text' is null and not a string; leave such rows out"
        data = [b"good"] * 1000
        data[number - 1] = b"caf\xe9"
        path = write(tmp_path / "t.parquet", data, pyarrow.binary(), row_group_size=400)
        assert refusal(path, small) == f", row {number}: is not UTF-8 at byte 4 of it (0xe9); use --errors replace"
        assert documents(path, errors="replace").count("caf\ufffd") == 1


OTHER_COLUMNS = {"int64": [1, 2], "list<": [["a"], []], "struct<": [{"a": "b"}], "null": [None]}


@pytest.mark.parametrize("kind", OTHER_COLUMNS)
def test_a_column_of_another_type_is_refused(tmp_path, small, kind):
    path = write(tmp_path / "t.parquet", OTHER_COLUMNS[kind])
    assert refusal(path, small).startswith(f": the column 'text' holds {kind}")
    assert refusal(path, small).endswith(" and no strings; name another with --text-field")


def test_what_is_no_parquet_file_or_is_packed_is_refused(tmp_path, small):
    whole = write(tmp_path / "t.parquet", TEXTS).read_bytes()
    for data in (b"", b"PAR", b'{"text": "a"}\n', gzip.compress(whole)):
        (tmp_path / "t.parquet").write_bytes(data)
        assert refusal(tmp_path / "t.parquet", small).startswith(
            ": is named .parquet, but is not a Parquet file; give it"
        )
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress(whole))
    assert refusal(tmp_path / "t.parquet.gz", small) == ": Parquet in a .gz file is not read; decompress it"
    (tmp_path / "t.txt").write_bytes(whole)
    assert refusal(tmp_path / "t.txt", small).startswith(": is a Parquet file, but not named .parquet")
    os.mkfifo(tmp_path / "p.parquet")
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(tmp_path / 'p.parquet')!r}, 'wb').close()"])
    with pytest.raises(InputError, match=r"p\.parquet: Parquet is read from its end"):
        small.encode_files([tmp_path / "p.parquet"], tmp_path / "t.bin", 1)
    writer.wait()


def test_a_damaged_file_is_named(tmp_path, small):
    """Cut anywhere, or with bytes changed: whatever pyarrow notices is one line, and nothing else is raised."""
    texts = [f"row {number} " + "x" * 50 for number in range(3000)]
    whole = write(tmp_path / "t.parquet", texts, row_group_size=1000, write_page_checksum=True, use_dictionary=False)
    data, path = whole.read_bytes(), tmp_path / "t.parquet"
    for end in (5, 100, len(data) // 2, len(data) - 9, len(data) - 1):
        path.write_bytes(data[:end])
        assert ": damaged Parquet file (" in refusal(path, small)
    found = 0
    for place in range(4, len(data), len(data) // 50):
        path.write_bytes(data[:place] + bytes(8) + data[place + 8 :])
        try:
            found += documents(path) != texts
        except InputError:
            found += 1
    assert found > 45


def test_pyarrow_may_be_missing(tmp_path, small, monkeypatch):
    path = write(tmp_path / "t.parquet", TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(path, small) == (
        ": Parquet is read by pyarrow, which is not installed; `pip install pyarrow`, or `pip install -e '.[parquet]'`"
        " here"
    )


# --- memory ---

MEASURE = """
import resource, sys
from tokenization.text.corpus import Corpus
corpus = Corpus([sys.argv[1]])
next(corpus.blocks(corpus.files[0]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for block in corpus.blocks(corpus.files[0]): pass
print(corpus.num_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    """One row group of 100 MB is read in less than 40."""
    texts = (f"{number:099}\n" for number in range(1_000_000))
    path = write(tmp_path / "t.parquet", pyarrow.array(texts), use_dictionary=False)
    assert parquet.ParquetFile(path).metadata.num_row_groups == 1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", MEASURE, path]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout
    num_bytes, kilobytes = map(int, out.split())
    assert num_bytes > 100_000_000
    assert kilobytes < 40_000
