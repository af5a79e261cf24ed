"""Taking in token files of other programs: recognised by their content, checked id by id, written as one of ours.

    NumPy       .npy, one dimension of whole numbers of any width and byte order
    llm.c       256 int32: a magic number, a version, the number of tokens; then the ids, also of modded-nanogpt
    raw         ids and nothing else, uint16 or uint32, as nanoGPT writes them

Nothing is guessed: a raw file shows its width only where all ids lie in the vocabulary by one reading, and not by the
other. The file is read some ids at a time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from tokenization.errors import InputError
from tokenization.tokens.token_file import TokenFile, TokenFileWriter
from tokenization.tokens.token_format import DTYPES, SCAN_TOKENS, is_token_file

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

LLMC_HEADER = 256  # int32
LLMC = {20240520: (1, "uint16"), 20240801: (7, "uint32")}  # magic number: version, dtype; of GPT-2 and of Llama 3
LLMC_EVALUATION = 20240522
NPY = b"\x93NUMPY"
NOT_RAW = (  # how the file begins, what it is, what to do
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ", "is compressed", "decompress it first"),
    (rb"PK\x03\x04", "is a zip archive, as .npz and .pt are", "save the ids by themselves, with numpy.save"),
    (rb"PAR1", "is a Parquet file", "save the ids with numpy.save, or encode the text"),
    (rb"\x89HDF", "is an HDF5 file", "save the ids with numpy.save"),
    (rb"\x80[\x02-\x05]", "is a pickle", "save the ids with numpy.save"),
    (rb"MMIDIDX", "is the index of a Megatron data set", "name the .bin beside it"),
)


@dataclass(frozen=True)
class Foreign:
    """A file of token ids: where they begin, how many there are, and their dtype."""

    path: Path
    kind: str  # in words
    dtype: np.dtype
    offset: int  # bytes
    tokens: int

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the ids in order, some at a time."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            left = self.tokens
            while left and (ids := np.fromfile(file, self.dtype, min(left, SCAN_TOKENS))).size:
                left -= ids.size
                yield ids


class Vocabulary:
    """Which ids there are, and of how many bytes. tokenizer: None if nothing but the size is known."""

    def __init__(self, size: int, tokenizer: "Tokenizer | None" = None):
        self.size, self.tokenizer = size, tokenizer
        self.lengths = None
        if tokenizer is not None:
            lengths = (len(tokenizer.vocab.get(token_id, b"")) for token_id in range(size))
            self.lengths = np.fromiter(lengths, np.int64, size)  # 0 of an id that stands for nothing

    def first_bad(self, ids: np.ndarray) -> int | None:
        """Returns the place of the first id that the vocabulary does not have, or None."""
        if ids.size and ids.min() >= 0 and ids.max() < self.size and self.lengths is None:
            return None
        bad = (ids < 0) | (ids >= self.size)
        if self.lengths is not None:
            bad |= self.lengths[np.where(bad, 0, ids)] == 0
        return int(bad.argmax()) if bad.any() else None

    def first_bad_of(self, file: Foreign) -> str:
        """Returns words on the first id of a file that the vocabulary does not have, or "" if it has all."""
        done = 0
        for ids in file.blocks():
            if (place := self.first_bad(ids)) is not None:
                return self.words(done + place, int(ids[place]))
            done += ids.size
        return ""

    def words(self, place: int, token_id: int) -> str:
        """Returns words on an id that the vocabulary does not have."""
        return f"token {place:,} is {token_id}, which is not in the vocabulary of {self.size:,} tokens"


def adopt(
    path: Path, output: Path, vocabulary: Vocabulary, dtype: str | None = None, separator_id: int | None = None
) -> tuple[Foreign, TokenFile]:
    """Writes another program's token file as one of ours; returns what it is recognised as, and the new file.

    dtype: "uint16" or "uint32", of a raw file that does not show it. separator_id: of the token between documents,
    which are counted by it. Raises InputError for a file that is not recognised or is damaged, and for the first id
    that the vocabulary does not have.
    """
    foreign = recognise(path, vocabulary, dtype)
    tokenizer_sha256 = "" if vocabulary.tokenizer is None else vocabulary.tokenizer.digest
    size, done = foreign.tokens * foreign.dtype.itemsize, 0
    with (
        tqdm(total=size, desc="adopting", unit="B", unit_scale=True, disable=None, delay=2, leave=False) as bar,
        TokenFileWriter(output, vocabulary.size, tokenizer_sha256, separator_id) as writer,
    ):
        first = last = None
        for ids in foreign.blocks():
            if (place := vocabulary.first_bad(ids)) is not None:
                words = vocabulary.words(done + place, int(ids[place]))
                raise InputError(f"{path}: {words}; name the tokenizer that made it")
            first, last = int(ids[0]) if first is None else first, int(ids[-1])
            writer.write(ids)
            writer.num_bytes += 0 if vocabulary.lengths is None else int(vocabulary.lengths[ids].sum())
            done += ids.size
            bar.update(ids.nbytes)
        if separator_id is not None and separator_id not in (first, last):
            writer.num_documents += 1  # the last one: separators stand behind documents, and none behind it
    return foreign, TokenFile.open(output, verify=False)


# --- recognising -----------------------------------------------------------------------------------------------------


def recognise(path: Path, vocabulary: Vocabulary, dtype: str | None = None) -> Foreign:
    """Returns what a file is by its content. Raises InputError where that is not certain, or the file is damaged."""
    if not path.is_file():
        raise InputError(f"{path}: {'is not a file' if path.exists() else 'no such file'}; name a file of token ids")
    if is_token_file(path):
        raise InputError(f"{path}: is already a token file of ours; use it as it is")
    with open(path, "rb") as file:
        head = file.read(4 * LLMC_HEADER)
    if head.startswith(NPY):
        found = recognise_npy(path)
    elif len(head) >= 4 and int.from_bytes(head[:4], "little") in (*LLMC, LLMC_EVALUATION):
        found = recognise_llmc(path, np.frombuffer(head[: len(head) // 4 * 4], "<i4"))
    else:
        return recognise_raw(path, vocabulary, head, dtype)
    if dtype is not None and found.dtype != DTYPES[dtype]:
        raise InputError(f"{path}: holds {found.dtype.name} ids, according to its header; leave out --dtype {dtype}")
    if not found.tokens:
        raise InputError(f"{path}: holds no ids")
    return found


def recognise_npy(path: Path) -> Foreign:
    """Returns what the header of a .npy says."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: is not a whole .npy file of numbers ({reason}); save it again") from None
    if array.ndim != 1:
        raise InputError(f"{path}: has the shape {array.shape}; one dimension is needed, so save array.reshape(-1)")
    if array.dtype.kind not in "iu":
        raise InputError(f"{path}: holds {array.dtype}; token ids are whole numbers, so save them as uint16 or uint32")
    behind = path.stat().st_size - array.offset - array.nbytes
    if behind:
        raise InputError(f"{path}: has {behind:,} bytes after its ids; save it again")
    return Foreign(path, "NumPy's", array.dtype, array.offset, array.size)


def recognise_llmc(path: Path, header: np.ndarray) -> Foreign:
    """Returns what the header of a file of llm.c says."""
    if header[0] == LLMC_EVALUATION:
        raise InputError(f"{path}: holds llm.c's multiple-choice questions, not text")
    version, dtype = LLMC[int(header[0])]
    if len(header) < LLMC_HEADER:
        raise InputError(f"{path}: begins like a file of llm.c's and ends within its header; copy it again")
    if header[1] != version:
        raise InputError(f"{path}: is a file of llm.c's of version {header[1]}; only version {version} is read")
    there, tokens = path.stat().st_size - 4 * LLMC_HEADER, int(header[2])
    if there != tokens * DTYPES[dtype].itemsize:
        raise InputError(
            f"{path}: should have {tokens:,} {dtype} ids by its header, but has {there:,} bytes of them; copy it again"
        )
    return Foreign(path, "llm.c's", DTYPES[dtype], 4 * LLMC_HEADER, tokens)


def recognise_raw(path: Path, vocabulary: Vocabulary, head: bytes, dtype: str | None) -> Foreign:
    """Returns a file without a header, of the dtype that is given, or else of the only one by which it makes sense."""
    size = path.stat().st_size
    if not size:
        raise InputError(f"{path}: is empty")
    readings = {name: Foreign(path, "raw", kind, 0, size // kind.itemsize) for name, kind in DTYPES.items()}
    if dtype is not None:
        if size % DTYPES[dtype].itemsize:
            raise InputError(f"{path}: {size:,} bytes are not a whole number of {dtype} ids; name another --dtype")
        return readings[dtype]
    for beginning, what, remedy in NOT_RAW:
        if re.match(beginning, head):
            raise InputError(f"{path}: {what}; {remedy} (or give --dtype, if it is raw)")
    wrong = {
        name: f"{size:,} bytes are not a whole number of ids"
        if size % reading.dtype.itemsize
        else vocabulary.first_bad_of(reading)
        for name, reading in readings.items()
    }
    fitting = [name for name, reason in wrong.items() if not reason]
    if not fitting:
        reasons = "; ".join(f"as {name}, {reason}" for name, reason in wrong.items())
        raise InputError(f"{path}: is not a file of token ids of this vocabulary: {reasons}")
    if len(fitting) > 1 or vocabulary.size > np.iinfo(np.uint16).max:
        raise InputError(
            f"{path}: has no header, and its ids could be {' or '.join(fitting)}; give --dtype, as whoever wrote it did"
        )
    return readings[fitting[0]]
