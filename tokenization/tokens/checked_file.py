"""Writes a file whose content is known to be what was meant: flushed to the disk, read back, compared and hashed.

    write -> the system's memory; from time to time, in a thread behind it: flush -> read back -> compare -> hash

So the end of a large file has little to wait for. What is not yet compared is kept in memory: up to MOST_UNCHECKED
bytes that wait, and as many that are being checked.
"""

import errno
import hashlib
import os
import threading
from types import TracebackType
from typing import BinaryIO

CHECKED_BYTES = 1 << 22  # so many bytes are worth a flush of their own
MOST_UNCHECKED = 1 << 26  # bytes; with so many waiting, a write waits for the disk


class CheckedFile:
    """A context manager that checks what is written to a new binary file.

    The system reports a failed flush once, so an error of the thread is raised here, by a later `write` or by `finish`:
    a later flush may know nothing of it. Raises OSError, also where the file gives back other bytes.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._sha256 = file, hashlib.sha256()
        self._unchecked: list[bytes] = []
        self._num_unchecked = 0  # bytes of them
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._reading = threading.RLock()  # an interrupted start of a thread leaves one that nobody can wait for

    def __enter__(self) -> "CheckedFile":
        self._reader = open(self._file.name, "rb")
        return self

    def write(self, data: bytes) -> None:
        """Appends bytes, and starts to check what was written if that is much and no check is under way."""
        self._file.write(data)
        self._unchecked.append(data)
        self._num_unchecked += len(data)
        if self._num_unchecked >= MOST_UNCHECKED:
            self._wait()
        if self._num_unchecked >= CHECKED_BYTES and not (self._thread and self._thread.is_alive()):
            self._wait()
            self._file.flush()
            written, self._unchecked, self._num_unchecked = self._unchecked, [], 0
            self._thread = threading.Thread(target=self._check_behind, args=(written,), name="checking", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads can be had
                self._thread = None
                self._check(written)

    def finish(self) -> str:
        """Checks the rest; returns the SHA-256 of the whole file."""
        self._wait()
        self._file.flush()
        self._check(self._unchecked)
        return self._sha256.hexdigest()

    def _wait(self) -> None:
        """Waits until no check is under way; raises its error."""
        if self._thread:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _check_behind(self, written: list[bytes]) -> None:
        try:
            self._check(written)
        except OSError as error:
            self._error = error

    def _check(self, written: list[bytes]) -> None:
        """Flushes the file, and compares what it holds next with what was written."""
        with self._reading:
            if self._reader.closed:  # the thread was begun too late: an error has ended the writing
                return
            os.fsync(self._file.fileno())
            for data in written:
                if self._reader.read(len(data)) != data:
                    raise OSError(errno.EIO, "it gives back other bytes than were written")
                self._sha256.update(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._reading:
            self._reader.close()
