"""Reading files of text or documents, compressed ones among them, as a stream of strings that fit in memory.

    inputs -> TextFiles -> Corpus.blocks -> chunks (cut in pretokenization.py) -> map_in_order over processes

A block ends wherever reading stopped; only a chunk may be tokenized by itself. Between two documents of a file the
stream has BETWEEN, see documents.py.
"""

import codecs
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from tokenization.errors import InputError
from tokenization.text.documents import BETWEEN, BETWEEN_CHARACTER, PARQUET, holds_documents
from tokenization.text.packing import DAMAGED, kind, packing, unpack
from tokenization.text.parquet import decompressed_size
from tokenization.text.places import Place, Url, size_of
from tokenization.text.reading import BLOCK_BYTES, open_text
from tokenization.text.text_files import TextFiles

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")


class Corpus:
    """The text of several files. Reading is timed, and shown as a progress bar in bytes of the files.

    errors: what happens to bytes that are not UTF-8: "strict" raises InputError with their position, "replace" puts
    U+FFFD. progress: the title of the progress bar; none is shown for an empty one. text_field: of documents, see
    RecordReader.
    """

    def __init__(
        self,
        inputs: Sequence[str | os.PathLike[str]],
        errors: str = "strict",
        progress: str = "",
        text_field: str | None = None,
    ):
        self.files = TextFiles(inputs).files
        self.text_field = text_field
        self.name = f"{self.files[0]}" + (f" and {len(self.files) - 1:,} more" if len(self.files) > 1 else "")
        self.errors = errors
        self.read_seconds = 0.0
        self.num_bytes = 0  # of text, decompressed
        self.file_bytes = sum(map(size_of, self.files))
        from tqdm import tqdm  # which takes long

        self.bar = tqdm(
            total=self.file_bytes, desc=progress, unit="B", unit_scale=True, disable=not progress, delay=0.5
        )

    def boundaries(self, special_tokens: Sequence[str]) -> list[str]:
        """Returns the strings that no token reaches across: the special tokens, and what is between documents."""
        any_documents = any(holds_documents(file.name) for file in self.files)
        return [*special_tokens, BETWEEN_CHARACTER] if any_documents else list(special_tokens)

    @contextmanager
    def opened(self, file: Place) -> Iterator[tuple[Callable[[memoryview], int], int]]:
        """Opens a file for reading its text as bytes.

        Yields a function that fills a buffer with the next bytes, decompressed, and returns their number, 0 at the
        end; and the number of bytes skipped before them: a byte order mark is not part of the text. Raises InputError
        for a file that cannot be read, is damaged or is no text.
        """
        with open_text(file, self.text_field, self.errors) as text:
            seen, are_documents = 0, holds_documents(file.name)

            def fill(buffer: memoryview) -> int:
                nonlocal seen
                start = time.perf_counter()
                count = text.readinto(buffer)
                self.read_seconds += time.perf_counter() - start
                self.num_bytes += count - (bytes(buffer[:count]).count(BETWEEN) if are_documents else 0)
                position = text.position()
                self.bar.update(position - seen)
                seen = position
                return count

            yield fill, text.skipped

    def blocks(self, file: Place) -> Iterator[str]:
        """Yields the text of one file, at most BLOCK_BYTES bytes at a time, never cutting a character."""
        errors = "surrogateescape" if holds_documents(file.name) else self.errors
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        with self.opened(file) as (fill, offset):
            count = 1
            while count:
                count = fill(buffer)
                text = decode_block(decoder, bytes(buffer[:count]), offset, file)
                offset += count
                if text:
                    yield text

    def text_bytes(self, enough: int) -> int:
        """Returns how many bytes the files hold, decompressed; of `enough` bytes and more the number is a lower bound.

        Of documents it is the size of their records, a little more than their text. What a compressed file says of its
        size is optional or counts its last part only, and some servers say nothing, so these are read, and no further
        than to `enough`. Their errors are left to the real reading. A pipe can be read only once: whatever is no
        file counts as `enough`.
        """
        files = [file for file in self.files if isinstance(file, Url) or file.is_file()]
        if len(files) < len(self.files):
            return enough
        unknown = [file for file in files if packing(file.name) or (isinstance(file, Url) and not file.size)]
        size = self.file_bytes - sum(map(size_of, unknown))
        for file in files:
            if size < enough and kind(file.name) == PARQUET:
                size += decompressed_size(file)
        for file in unknown:
            if size >= enough:
                break
            with suppress(OSError, InputError, *DAMAGED), file.open("rb") as raw:
                stream = unpack(file.name, raw)
                while size < enough and (count := len(stream.read(BLOCK_BYTES))):
                    size += count
        return size

    def close(self) -> None:
        """Closes the progress bar."""
        self.bar.close()


def decode_block(decoder: codecs.IncrementalDecoder, data: bytes, offset: int, file: Place) -> str:
    """Decodes the next bytes; a character whose bytes are not all there yet waits in the decoder."""
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        raise not_utf8(file, offset - pending + error.start, error.object[error.start]) from None


def not_utf8(file: Place, position: int, byte: int) -> InputError:
    """Returns the error for a byte that is not UTF-8, at this position of the file's decompressed content."""
    return InputError(f"{file}: not UTF-8 at byte {position} (0x{byte:02x}); convert the file, or use --errors replace")


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_processes: int,
    initializer: Callable[..., None],
    initargs: tuple[Any, ...],
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, function(item)) for every item, in order, computed by processes that have run the initializer.

    Only a few items are in memory at a time, however many there are. A single item starts no process.
    """
    items = iter(items)
    beginning = list(islice(items, 2))
    items = chain(beginning, items)
    if num_processes == 1 or len(beginning) < 2:
        initializer(*initargs)
        yield from ((item, function(item)) for item in items)
        return
    from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

    pool = ProcessPoolExecutor(num_processes, initializer=_start_worker, initargs=(initializer, initargs))
    try:
        under_way: deque[tuple[Item, Future[Result]]] = deque()
        for item in items:
            under_way.append((item, pool.submit(function, item)))
            if len(under_way) == 2 * num_processes:
                done, future = under_way.popleft()
                yield done, future.result()
        for done, future in under_way:
            yield done, future.result()
    except BrokenExecutor:
        raise InputError(
            "a worker process was killed, as happens where memory runs out, or could not start; take fewer --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(initializer: Callable[..., None], initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    initializer(*initargs)
