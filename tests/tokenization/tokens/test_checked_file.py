"""Proves that a checked file is compared with all that was written, and that no failed flush is lost."""

import errno
import hashlib
import os
import random
import threading
import time

import pytest

from tokenization.files import writing
from tokenization.tokens import checked_file
from tokenization.tokens.checked_file import CheckedFile


@pytest.fixture(params=["behind", "without threads", "at the end"])
def when(request, monkeypatch):
    """When a file of a few bytes is checked: in a thread while it is written, in the writer itself, or at its end."""
    if request.param != "at the end":
        monkeypatch.setattr(checked_file, "CHECKED_BYTES", 10)
    if request.param == "without threads":
        monkeypatch.setattr(threading.Thread, "start", refuse_thread)
    return request.param


def refuse_thread(thread):
    raise RuntimeError("can't start new thread")


def write(path, parts) -> str:
    with writing(path) as file, CheckedFile(file) as checked:
        for part in parts:
            checked.write(part)
        return checked.finish()


@pytest.mark.parametrize("seed", range(5))
def test_the_digest_is_that_of_all_parts(tmp_path, when, seed):
    source = random.Random(seed)
    parts = [source.randbytes(source.choice([0, 1, 2, 9, 10, 11, 40, 100_000])) for _ in range(30)]
    assert write(tmp_path / "file", parts) == hashlib.sha256(b"".join(parts)).hexdigest()
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


@pytest.mark.parametrize("damage", ["another byte", "fewer bytes"])
@pytest.mark.parametrize("place", [0, 19, 57])
def test_a_file_that_gives_back_other_bytes_is_not_kept(tmp_path, monkeypatch, when, damage, place):
    """As the flush ends, a byte of the file changes; or the file is cut there."""
    (tmp_path / "file").write_bytes(b"old")
    fsync = os.fsync

    def spoil(descriptor):
        fsync(descriptor)
        if os.fstat(descriptor).st_size > place:
            if damage == "another byte":
                os.pwrite(descriptor, b"?", place)
            else:
                os.ftruncate(descriptor, place)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(OSError, match="it gives back other bytes than were written"):
        write(tmp_path / "file", [b"abcdefghi"] * 8)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failed_flush_is_not_lost(tmp_path, monkeypatch, failing):
    """The first flush fails while more is to be written, the second when all is; the third is that of `writing`."""
    monkeypatch.setattr(checked_file, "CHECKED_BYTES", 4)
    calls = iter(range(10))

    def fsync(descriptor):
        if next(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write_in_parts() -> None:
        with writing(tmp_path / "file") as file, CheckedFile(file) as checked:
            checked.write(b"much")
            checked._thread.join()
            checked.write(b"end")
            checked.finish()

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_in_parts()
    assert next(calls) == failing + 1
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_slow_disk_holds_the_writer_up(tmp_path, monkeypatch):
    """However slow the disk is, no more than MOST_UNCHECKED bytes, and one write, wait for it."""
    monkeypatch.setattr(checked_file, "CHECKED_BYTES", 4)
    monkeypatch.setattr(checked_file, "MOST_UNCHECKED", 20)
    monkeypatch.setattr(os, "fsync", lambda descriptor: time.sleep(0.02))
    waiting = []
    with writing(tmp_path / "file") as file, CheckedFile(file) as checked:
        for _ in range(50):
            checked.write(b"12345")
            waiting.append(checked._num_unchecked)
        assert checked.finish() == hashlib.sha256(b"12345" * 50).hexdigest()
    assert 5 < max(waiting) < 20


@pytest.mark.parametrize("begun", ["before", "never", "afterwards"])
def test_an_interruption_while_a_thread_starts_leaves_nothing(tmp_path, monkeypatch, begun):
    """Ctrl-C while Thread.start waits for the new thread, which the system has begun, or begins later."""
    monkeypatch.setattr(checked_file, "CHECKED_BYTES", 4)
    start, threads, errors = threading.Thread.start, [], []
    monkeypatch.setattr(threading, "excepthook", errors.append)

    def interrupt(thread):
        threads.append(thread)
        if begun == "before":
            start(thread)
        raise KeyboardInterrupt

    def write_part() -> None:
        with writing(tmp_path / "file") as file, CheckedFile(file) as checked:
            checked.write(b"12345")

    monkeypatch.setattr(threading.Thread, "start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_part()
    monkeypatch.setattr(threading.Thread, "start", start)
    if begun == "afterwards":
        threads[0].start()
    if begun != "never":
        threads[0].join()
    assert not errors
    assert list(tmp_path.iterdir()) == []


def test_an_error_waits_for_a_check_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr(checked_file, "CHECKED_BYTES", 4)
    checking, ended = threading.Event(), []
    monkeypatch.setattr(os, "fsync", lambda descriptor: (checking.set(), time.sleep(0.1), ended.append(descriptor)))

    def write_part() -> None:
        with writing(tmp_path / "file") as file, CheckedFile(file) as checked:
            checked.write(b"12345")
            checking.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_part()
    assert len(ended) == 1
    assert list(tmp_path.iterdir()) == []
