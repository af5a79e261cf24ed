"""Proves that text files become a token file with the right ids, counts and digests for any number of processes, that a
failed write leaves nothing, and that a file which is not whole and unchanged is refused in one line."""

import builtins
import errno
import gzip
import hashlib
import io
import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tokenization import END_OF_TEXT, InputError, TokenFile, Tokenizer, encoding
from tokenization.pretokenization import cut_into_chunks
from tokenization.text import corpus
from tokenization.text.corpus import Corpus, map_in_order
from tokenization.text.packing import zstd
from tokenization.text.text_files import TextFiles
from tokenization.tokens.token_file import TokenFileWriter
from tokenization.tokens.token_format import description_path, token_dtype

STORIES = [f"The cat's tale.\n\nÉ 漢字 😀 number {n} " * (1 + n % 3) for n in range(40)]


def write(path: Path, token_ids, vocab_size: int = 300, **arguments) -> TokenFile:
    with TokenFileWriter(path, vocab_size, "digest of the tokenizer", **arguments) as writer:
        for part in token_ids:
            writer.write(np.array(part))
    return TokenFile.open(path)


def describe(path: Path, **changes) -> None:
    """Changes the JSON beside the token file, and takes its own digest away, which older ones do not have."""
    beside = description_path(path)
    content = json.loads(beside.read_text())
    del content["description_sha256"]
    beside.write_text(json.dumps(content | changes))


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# the format


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (1 << 20, "uint32")]
)
def test_ids_are_raw_little_endian_and_wide_enough(tmp_path, vocab_size, dtype):
    token_ids = [0, 1, 255, vocab_size - 1, 258 % vocab_size]
    file = write(tmp_path / "t.bin", [token_ids[:2], [], token_ids[2:]], vocab_size)
    width = {"uint16": 2, "uint32": 4}[dtype]
    data = b"".join(token_id.to_bytes(width, "little") for token_id in token_ids)
    assert (tmp_path / "t.bin").read_bytes() == data
    assert file.tokens.tolist() == token_ids
    assert len(file) == 5
    assert file.tokens.dtype == token_dtype(vocab_size) == np.dtype(dtype)
    assert not file.tokens.flags.writeable
    description = json.loads((tmp_path / "t.bin.json").read_text())
    digest = description.pop("description_sha256")
    assert digest == hashlib.sha256(json.dumps(description).encode()).hexdigest()
    assert description == {
        "dtype": dtype,
        "tokens": 5,
        "documents": 0,
        "bytes": 0,
        "vocab_size": vocab_size,
        "tokenizer_sha256": "digest of the tokenizer",
        "data_sha256": hashlib.sha256(data).hexdigest(),
    }
    assert names(tmp_path) == ["t.bin", "t.bin.json"]


def test_separators_are_counted_as_documents(tmp_path):
    assert write(tmp_path / "t.bin", [[1, 7, 2], [7, 7]], separator_id=7).description.documents == 3


@pytest.mark.parametrize("bad", [300, 65_536 + 1, -1])
def test_an_id_outside_the_vocabulary_is_not_written(tmp_path, bad):
    with pytest.raises(InputError, match="outside the vocabulary of 300 tokens"):
        write(tmp_path / "t.bin", [[1, 2], [3, bad]])
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path, error):
    def fail(path):
        with TokenFileWriter(path, 300, "") as writer:
            writer.write(np.arange(200))
            raise error

    with pytest.raises(error):
        fail(tmp_path / "new.bin")
    assert names(tmp_path) == []
    write(tmp_path / "old.bin", [[1, 2, 3]])
    with pytest.raises(error):
        fail(tmp_path / "old.bin")
    assert TokenFile.open(tmp_path / "old.bin").tokens.tolist() == [1, 2, 3]
    assert names(tmp_path) == ["old.bin", "old.bin.json"]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/t\.bin: cannot be written"):
        write(tmp_path / "file" / "t.bin", [[1]])


def test_a_folder_or_a_device_is_not_replaced(tmp_path):
    (tmp_path / "t.bin").mkdir()
    (tmp_path / "u.bin.json").mkdir()
    os.mkfifo(tmp_path / "v.bin")
    for name in ("t.bin", "u.bin", "v.bin"):
        with pytest.raises(InputError, match="is a folder or a device, not a file to be replaced"):
            write(tmp_path / name, [[1]])
    assert names(tmp_path) == ["t.bin", "u.bin.json", "v.bin"]
    assert not (tmp_path / "v.bin").is_file()


@pytest.mark.parametrize("failing", range(4))
def test_a_full_disk_leaves_the_old_pair_wherever_it_strikes(tmp_path, monkeypatch, failing):
    """Each time the disk is asked to keep something (the ids, the JSON, the ids again), or while ids are written."""
    write(tmp_path / "t.bin", [[1, 2, 3]])
    calls = iter(range(10))

    def fsync(descriptor):
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    if failing == 3:
        kinds = {"xb": FullDisk, "rb": io.FileIO}
        monkeypatch.setattr(builtins, "open", lambda path, mode, **_: kinds[mode](path, mode))
    with pytest.raises(InputError, match=r"t\.bin: cannot be written \(No space left on device\); make room"):
        write(tmp_path / "t.bin", [[4, 5, 6]])
    monkeypatch.undo()
    assert TokenFile.open(tmp_path / "t.bin").tokens.tolist() == [1, 2, 3]
    assert names(tmp_path) == ["t.bin", "t.bin.json"]


@pytest.mark.parametrize("mode", ["opened", "read"])
def test_a_file_that_cannot_be_read_back_leaves_the_old_pair(tmp_path, monkeypatch, mode):
    write(tmp_path / "t.bin", [[1, 2, 3]])
    opened = builtins.open

    def refuse(path, how="r", **options):
        if how != "rb":
            return opened(path, how, **options)
        if mode == "read":
            return Unreadable(path)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(builtins, "open", refuse)
    reason = {"opened": "Too many open files", "read": "Input/output error"}[mode]
    with pytest.raises(InputError, match=rf"t\.bin: cannot be written \({reason}\)"):
        write(tmp_path / "t.bin", [[4, 5, 6]])
    monkeypatch.undo()
    assert TokenFile.open(tmp_path / "t.bin").tokens.tolist() == [1, 2, 3]
    assert names(tmp_path) == ["t.bin", "t.bin.json"]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failed_renaming_never_leaves_a_pair_that_opens_as_something_else(tmp_path, monkeypatch, failing):
    write(tmp_path / "t.bin", [[1, 2, 3]])
    calls, replace = iter(range(10)), os.replace

    def fail(source, target):
        if next(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=r"t\.bin: cannot be written \(Input/output error\)"):
        write(tmp_path / "t.bin", [[4, 5, 6]])
    monkeypatch.undo()
    assert names(tmp_path) == ["t.bin", "t.bin.json"]
    if failing == 1:  # the new JSON has its name, and knows that the old ids are not its own
        with pytest.raises(InputError, match="has changed"):
            TokenFile.open(tmp_path / "t.bin")
    else:
        assert TokenFile.open(tmp_path / "t.bin").tokens.tolist() == [1, 2, 3]


class Unreadable(io.FileIO):
    """A file on a damaged disk."""

    def read(self, size=-1):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class FullDisk(io.FileIO):
    """A file that takes nothing, neither now nor when it is closed."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self):
        super().close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# what is not opened


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"no such token file; make it with `tokenization encode TEXT"),
        (lambda path: description_path(path).unlink(), r"t\.bin: is not a token file, for .*t\.bin\.json is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "7 bytes are not a whole number of uint16 ids"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "9 bytes are not a whole number"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), r"holds 3 tokens, but t\.bin\.json says 4"),
        (lambda path: path.write_bytes(path.read_bytes() * 2), "holds 8 tokens, but"),
        (lambda path: path.write_bytes(b""), "holds 0 tokens, but"),
        (lambda path: (path.write_bytes(b""), describe(path, tokens=0)), "is empty"),
        (lambda path: path.write_bytes(b"\xff" * 8), "token id 65535 lies outside its vocabulary of 300 tokens"),
        (lambda path: describe(path, vocab_size=4), "token id 4 lies outside its vocabulary of 4 tokens"),
        (lambda path: describe(path, dtype="uint32"), "holds 2 tokens, but"),
        (lambda path: describe(path, dtype="int16"), "dtype is 'int16', not uint16 or uint32"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2] + b"\5\0"), r"has changed since it was made"),
        (lambda path: describe(path, data_sha256="0" * 64), r"has changed .* by the digest in t\.bin\.json"),
        (lambda path: describe(path, tokens=None), "is not the description of a token file"),
        (lambda path: describe(path, tokens=4.0), "is not the description of a token file"),
        (lambda path: describe(path, vocab_size="300"), "is not the description of a token file"),
        (lambda path: describe(path, dtype=[]), "is not the description of a token file"),
        (lambda path: describe(path, more=1), "is not the description of a token file"),
        (lambda path: description_path(path).write_text("{}"), "is not the description of a token file"),
        (lambda path: description_path(path).write_text("[]"), "is not the description of a token file"),
        (lambda path: description_path(path).write_text("{"), "is not the description of a token file"),
        (lambda path: description_path(path).write_text("[" * 10**5), "is not the description of a token file"),
        (lambda path: description_path(path).write_bytes(b"\xff"), "is not the description of a token file"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage, message):
    write(tmp_path / "t.bin", [[1, 2, 3, 4]])
    damage(tmp_path / "t.bin")
    with pytest.raises(InputError, match=message) as error:
        TokenFile.open(tmp_path / "t.bin")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "t.bin") in str(error.value)


def test_any_flipped_bit_and_any_cut_of_the_description_is_noticed(tmp_path):
    write(tmp_path / "t.bin", [range(16)], vocab_size=1 << 16)
    path = description_path(tmp_path / "t.bin")
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"t\.bin"):
            TokenFile.open(tmp_path / "t.bin")
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"t\.bin\.json"):
            TokenFile.open(tmp_path / "t.bin")


def test_any_flipped_bit_is_noticed(tmp_path):
    data = write(tmp_path / "t.bin", [range(16)], vocab_size=1 << 16).tokens.tobytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "t.bin").write_bytes(flipped)
        with pytest.raises(InputError, match="has changed"):
            TokenFile.open(tmp_path / "t.bin")


# text files in


@pytest.fixture
def folder(tmp_path) -> Path:
    """text/: a.txt, b.txt.gz, deeper/c.txt, and notes.rst, which is not taken from a folder."""
    (tmp_path / "text" / "deeper").mkdir(parents=True)
    (tmp_path / "text" / "a.txt").write_bytes(END_OF_TEXT.join(STORIES[:20]).encode())
    (tmp_path / "text" / "b.txt.gz").write_bytes(gzip.compress(STORIES[20].encode()) + gzip.compress(b" and more"))
    (tmp_path / "text" / "deeper" / "c.txt").write_bytes(END_OF_TEXT.join([*STORIES[21:], "\n"]).encode())
    (tmp_path / "text" / "notes.rst").write_text("notes")
    return tmp_path / "text"


WHOLE = END_OF_TEXT.join([*STORIES[:20], STORIES[20] + " and more", *STORIES[21:], "\n"])


@pytest.mark.parametrize("inputs", [["."], ["*.txt*", "deeper"], ["a.txt", "b.txt.gz", "deeper/c.txt"], ["**/[abc].*"]])
def test_files_folders_globs_and_gz_give_one_token_file(folder, monkeypatch, small, inputs):
    monkeypatch.chdir(folder)
    file = small.encode_files(inputs, folder / "out" / "t.bin", num_processes=1)
    assert small.decode(file.tokens.tolist()) == WHOLE
    assert file.tokens.tolist() == small.encode(WHOLE)
    about = file.description
    assert about.documents == len(STORIES)  # the white space after the last separator is none
    assert about.tokens == len(file) == len(small.encode(WHOLE))
    assert about.bytes == len(WHOLE.encode())  # two of whose separators are not in the files
    assert (about.vocab_size, about.tokenizer_sha256) == (300, small.digest)
    assert about.data_sha256 == hashlib.sha256((folder / "out" / "t.bin").read_bytes()).hexdigest()


def test_a_tokenizer_beside_the_text_is_no_text(folder, small):
    before = TextFiles([folder]).files
    small.save(folder / "tokenizer")
    assert TextFiles([folder]).files == before
    assert TextFiles([folder / "tokenizer" / "merges.txt"]).files == [folder / "tokenizer" / "merges.txt"]


def test_each_file_is_found_once_and_in_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = [file.as_posix() for file in TextFiles(["deeper", ".", "notes.rst", "a.txt", "[ab].txt*"]).files]
    assert found == ["deeper/c.txt", "a.txt", "b.txt.gz", "notes.rst"]
    (folder / "[ab].txt").touch()  # a file of this very name comes before what the pattern matches
    assert [file.name for file in TextFiles(["[ab].txt"]).files] == ["[ab].txt"]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_any_number_of_processes_any_pieces_and_blocks_give_the_same_file(folder, monkeypatch, small, num_processes):
    pieces: list[str] = []
    tiny = partial(cut_into_chunks, size=150)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 37)
    monkeypatch.setattr(
        encoding, "cut_into_chunks", lambda *args: (pieces.append(piece) or piece for piece in tiny(*args))
    )
    file = small.encode_files([folder], folder / "t.bin", num_processes)
    assert len(pieces) > 10
    assert file.tokens.tolist() == small.encode(WHOLE)
    assert file.description.documents == len(STORIES)
    assert file.description.bytes == len(WHOLE.encode())


@pytest.mark.parametrize(
    ("texts", "joined", "documents"),
    [
        (["one", "two"], f"one{END_OF_TEXT}two", 2),
        ([f"one{END_OF_TEXT}", "two"], f"one{END_OF_TEXT}two", 2),
        ([f"one{END_OF_TEXT}\n", f"two{END_OF_TEXT}\n"], f"one{END_OF_TEXT}\ntwo{END_OF_TEXT}\n", 2),
        (["one", "", "", "two", ""], f"one{END_OF_TEXT}two", 2),
        (
            ["one\n", f"{END_OF_TEXT}two"],
            f"one\n{END_OF_TEXT}{END_OF_TEXT}two",
            3,
        ),  # the second begins with an empty one
        ([f"{END_OF_TEXT}"], END_OF_TEXT, 1),
        (["one" + "\n" * 30, "two"], "one" + "\n" * 30 + f"{END_OF_TEXT}two", 2),  # a blank piece at the end, if small
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_documents_of_several_files_are_kept_apart(tmp_path, monkeypatch, small, texts, joined, documents, size):
    monkeypatch.setattr(encoding, "cut_into_chunks", partial(cut_into_chunks, size=size))
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, newline="")
    file = small.encode_files([tmp_path], tmp_path / "t.bin", num_processes=1)
    assert small.decode(file.tokens) == joined
    assert file.description.documents == documents


@pytest.mark.parametrize("size", [10, 64, 1000])
@pytest.mark.parametrize("other", [f"[INST]{END_OF_TEXT}", f"{END_OF_TEXT}<|", "<|end"])
def test_a_separator_within_another_special_token_separates_nothing(other, size, tmp_path, small, monkeypatch):
    monkeypatch.setattr(encoding, "cut_into_chunks", partial(cut_into_chunks, size=size))
    tokenizer = Tokenizer(small.vocab, small.merges, [END_OF_TEXT, other])
    for name, text in (("a", f"first story{other}"), ("b", "second story"), ("c", f"third{END_OF_TEXT}")):
        (tmp_path / f"{name}.txt").write_text(text)
    file = tokenizer.encode_files([tmp_path], tmp_path / "t.bin", num_processes=1)
    assert tokenizer.decode(file.tokens) == END_OF_TEXT.join([f"first story{other}", "second story", "third", ""])
    assert file.description.documents == 3


@pytest.mark.parametrize(
    ("texts", "documents"),
    [(["one", "two", "", "three"], 3), ([f"one{END_OF_TEXT}"], 1), ([f"{END_OF_TEXT}a", "b"], 2)],
)
def test_without_a_separator_in_the_vocabulary_each_file_is_a_document(tmp_path, small, texts, documents):
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    plain = Tokenizer({token_id: token for token_id, token in small.vocab.items() if token_id < 256}, [])
    file = plain.encode_files([tmp_path], tmp_path / "t.bin", num_processes=1)
    assert file.tokens.tobytes()[::2] == "".join(texts).encode()
    assert file.description.documents == documents


def test_a_large_vocabulary_is_written_as_uint32(tmp_path, small):
    large = Tokenizer({**small.vocab, 70_000: b"the the"}, small.merges, ["the the"])
    (tmp_path / "t.txt").write_text("say the the twice")
    file = large.encode_files([tmp_path / "t.txt"], tmp_path / "t.bin", num_processes=1)
    assert file.description.dtype == "uint32"
    assert file.description.vocab_size == 70_001
    assert 70_000 in file.tokens
    assert large.decode(file.tokens.tolist()) == "say the the twice"


# processes


def interrupt_itself(item: int) -> int | None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        return None
    return -item


def test_results_come_in_order_and_ctrl_c_is_not_the_workers_to_answer():
    assert list(map_in_order(interrupt_itself, range(1, 9), 2, int, ())) == [(n, -n) for n in range(1, 9)]


@pytest.mark.parametrize(("num_processes", "at_most"), [(1, 2), (2, 4), (3, 6)])
def test_only_a_few_items_are_under_way(num_processes, at_most):
    taken = []
    results = map_in_order(str, (taken.append(n) or n for n in range(100)), num_processes, int, ())
    assert not taken
    assert next(results) == (0, "0")
    assert len(taken) <= at_most
    assert [result for _, result in results] == [str(n) for n in range(1, 100)]


def kill_itself(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(InputError, match="a worker process was killed, as happens where memory runs out"):
        list(map_in_order(kill_itself, range(9), 2, int, ()))


def test_a_failure_in_a_process_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(map_in_order((1).__truediv__, [1, 0, 2], 2, int, ()))


# text that cannot be read


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize(
    ("data", "position", "bad"),
    [
        (b"caf\xe9 au lait", 3, "0xe9"),
        (b"\xff", 0, "0xff"),
        ("é漢".encode() + b"\xe6\xbc", 5, "0xe6"),  # cut short at the end
        ("漢漢".encode() + b"\xe6\xbcx", 6, "0xe6"),
        (b"a\xed\xa0\x80", 1, "0xed"),  # a surrogate
        (b"good \x80", 5, "0x80"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_the_offset_of_what_is_not_utf8(tmp_path, monkeypatch, block, data, position, bad, suffix):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    path = tmp_path / f"t{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    with pytest.raises(InputError, match=rf"not UTF-8 at byte {position} \({bad}\).*--errors replace"):
        list(Corpus([path]).blocks(path))
    replaced = Corpus([path], errors="replace")
    assert "".join(replaced.blocks(path)) == data.decode(errors="replace")
    assert replaced.num_bytes == len(data)


TEXT = b"some text that is long enough to be cut" * 9
GZ = gzip.compress(TEXT, mtime=0)
ZST = zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1})


def test_packed_texts_are_read_as_they_are(tmp_path):
    files = {"t.txt": TEXT, "t.txt.gz": GZ, "t.txt.zst": ZST, "frames.zst": ZST + ZST}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    texts = {name: "".join(Corpus([tmp_path / name]).blocks(tmp_path / name)) for name in files}
    assert texts == dict.fromkeys(("t.txt", "t.txt.gz", "t.txt.zst"), TEXT.decode()) | {"frames.zst": TEXT.decode() * 2}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.txt", b"", "no text to encode; the input is empty"),
        ("t.txt", b"fine until here\xff", "not UTF-8 at byte 15"),
        ("t.txt.gz", b"not packed", "damaged .gz file .Not a gzipped file"),
        ("t.txt.gz", GZ[:-9], "damaged .gz file .Compressed file ended"),
        ("t.txt.gz", GZ[:-8] + b"\0" * 8, "damaged .gz file .CRC check failed"),
        ("t.txt.gz", GZ[:10] + b"\xff" * 9, "damaged .gz file .Error -3"),
        ("t.txt.zst", b"not packed", "damaged .zst file"),
        ("t.txt.zst", ZST[:-5], "damaged .zst file .Compressed file ended"),
        ("t.txt.zst", ZST[:-4] + b"\0" * 4, "damaged .zst file"),
    ],
    ids=[
        "empty",
        "not UTF-8",
        "not gz",
        "gz cut short",
        "gz checksum",
        "gz block",
        "not zst",
        "zst cut short",
        "zst checksum",
    ],
)
def test_a_text_that_fails_leaves_no_token_file(tmp_path, small, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        small.encode_files([tmp_path], tmp_path / "t.bin", num_processes=1)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("inputs", [["none.txt"], ["*.none"], ["empty"], []])
def test_what_names_no_text_is_refused(tmp_path, monkeypatch, inputs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"no such file|no \.txt, \.md, \.jsonl, \.ndjson, \.parquet file|no text was named"
    ):
        TextFiles(inputs)
