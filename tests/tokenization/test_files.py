"""Proves that a written file is whole or not there, whatever ends its writer, that links and others' files stay as they
are, and that what killed writers left is swept, and never what a living one writes."""

import contextlib
import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenization import InputError, files
from tokenization.files import making, temporary_name, writing, writing_together


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, content: bytes) -> None:
    with writing(path) as file:
        file.write(content)


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


@contextlib.contextmanager
def tiny_files():
    """No file may grow beyond 100 bytes: what a full disk is to a writer, without a disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        yield
    finally:  # within the test: pytest's own output may be a file, too
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_file_is_replaced_at_the_end_and_in_new_folders(tmp_path):
    path = tmp_path / "new" / "deeper" / "a"
    write(path, b"old")
    with writing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path, error):
    write(tmp_path / "a", b"old")

    def fail(path: Path) -> None:
        with writing(path) as file:
            file.write(b"new")
            raise error

    def fail_making(path: Path) -> None:
        with making(path) as folder:
            folder.mkdir()
            (folder / "d").touch()
            raise error

    for function, name in ((fail, "a"), (fail, "b"), (fail_making, "c"), (fail, "e/f/g"), (fail_making, "e/f/g")):
        with pytest.raises(error):
            function(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_said_of_the_file_that_was_asked_for(tmp_path):
    with tiny_files(), pytest.raises(OSError, match="File too large") as failed, writing(tmp_path / "a") as file:
        file.write(bytes(200))
    assert failed.value.filename == str(tmp_path / "a")
    with tiny_files(), pytest.raises(OSError, match="File too large") as failed, making(tmp_path / "b") as path:
        path.write_bytes(bytes(200))
    assert failed.value.filename == str(tmp_path / "b")
    with pytest.raises(InputError, match=f"^{tmp_path}/b/part: is wrong$"), making(tmp_path / "b") as path:
        raise InputError(f"{path / 'part'}: is wrong")
    (tmp_path / "file").touch()
    for context in (writing, making):
        with pytest.raises(OSError, match=r"exists|Not a directory") as failed, context(tmp_path / "file" / "c"):
            pass
        assert "tmp" not in Path(failed.value.filename).name
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", [0, 1])
def test_of_files_written_together_none_is_replaced_before_all_are_whole(tmp_path, monkeypatch, failing):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        write(path, b"old")
    calls = iter(range(10))

    def fsync(descriptor):
        if next(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write_both() -> None:
        with writing_together(*paths) as both:
            for file in both:
                file.write(b"new")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_both()
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    assert names(tmp_path) == ["a", "b"]


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    for name, target in (("link", "precious"), ("dangling", "none")):
        (tmp_path / name).symlink_to(target)
        write(tmp_path / name, b"new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == b"new"
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert names(tmp_path) == ["dangling", "link", "precious"]


def test_rights_follow_the_umask(tmp_path, umask):
    write(tmp_path / "a", b"")
    for name in ("b", "c"):
        with making(tmp_path / name) as path:
            if name == "c":
                path.mkdir(0o700)
                path /= "d"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # as the writer of safetensors does
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert rights == {"a": 0o640, "b": 0o640, "c": 0o750, "d": 0o640}


@pytest.mark.parametrize("name", ["n" * 255, "漢" * 85])
def test_a_name_as_long_as_a_name_can_be(tmp_path, name):
    write(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


# leftovers


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def leave(path: Path, process: int, host: str = files.HOST, age: float = 0.0, folder: bool = False) -> Path:
    """What a process has left of the file."""
    left = path.with_name(f".{path.name}.{host}.{process}.0123abcd.tmp")
    if folder:
        left.mkdir()
        (left / "half").touch()
    else:
        left.touch()
    os.utime(left, (time.time() - age,) * 2)
    return left


def test_the_next_writer_sweeps_what_ended_processes_left_and_nothing_else(tmp_path):
    path, ended = tmp_path / "a.bin", ended_process()
    swept = [
        leave(path, ended),
        leave(path, ended, "elsewhere", age=2 * 86400),
        leave(path, os.getpid(), age=2 * 86400),  # a container gives every run the same process id
    ]
    stays = [
        leave(path, os.getppid()),
        leave(path, 1, age=3600),
        leave(path, ended, "abroad", age=3600),
        leave(tmp_path / "b.bin", ended),
        leave(tmp_path / "a.bin.json", ended),
        leave(tmp_path / "xa.bin", ended),
    ]
    notes = tmp_path / ".a.bin.notes.tmp"
    notes.touch()
    write(path, b"new")
    assert not any(left.exists() for left in swept)
    assert all(left.exists() for left in [*stays, notes])
    swept = [leave(path, ended), leave(path, ended, "third", age=2 * 86400, folder=True)]
    path.unlink()
    with making(path) as made:
        made.touch()
    assert not any(left.exists() for left in swept)


def test_the_temporary_name_says_who_writes_and_no_two_are_the_same(tmp_path):
    two = {temporary_name(tmp_path / "a").name for _ in range(2)}
    assert len(two) == 2
    assert all(name.startswith(".a.") and f".{os.getpid()}." in name for name in two)
    assert all(part in min(two) for part in socket.gethostname()[:40].split("."))


def test_two_who_write_the_same_file_do_not_disturb_each_other(tmp_path):
    with writing(tmp_path / "a") as first:
        first.write(b"first")
        write(tmp_path / "a", b"second")
        with making(tmp_path / "b") as path:
            path.mkdir()
        assert (tmp_path / "a").read_bytes() == b"second"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a", "b"]


def start(work: Callable[[], object]) -> int:
    """Runs the work in a process of its own, which exits with 0 when it succeeds; returns its id."""
    if not (pid := os.fork()):
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("context", [writing, making])
def test_a_writer_that_is_killed_leaves_the_old_file_and_one_more_which_the_next_sweeps(tmp_path, context):
    path = tmp_path / "a"
    if context is writing:
        write(path, b"old")

    def die() -> None:
        with context(path) as file:
            file.write(b"half") if context is writing else file.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    pid = start(die)
    assert exit_code(pid) == -signal.SIGKILL
    (left,) = set(names(tmp_path)) - {"a"}
    assert f".{pid}." in left
    assert not path.exists() if context is making else path.read_bytes() == b"old"
    write(path, b"whole")
    assert names(tmp_path) == ["a"]


def test_two_processes_that_write_the_same_file_at_once(tmp_path):
    """Each writes a megabyte of its own letter, many times; whoever reads meanwhile sees one letter only."""
    path, size = tmp_path / "a", 1 << 20
    write(path, b"x" * size)
    writers = {start(lambda letter=letter: [write(path, letter * size) for _ in range(20)]) for letter in (b"y", b"z")}
    while writers:
        assert path.read_bytes() in (b"x" * size, b"y" * size, b"z" * size)
        ended = {pid: status for pid, status in (os.waitpid(pid, os.WNOHANG) for pid in writers) if pid}
        assert not any(ended.values())
        writers -= ended.keys()
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("context", [writing, making])
def test_a_read_only_folder_is_named_and_stays_as_it_is(tmp_path, context):
    folder = tmp_path / "folder"
    write(folder / "a", b"old")
    tmp_path.chmod(0o755)
    folder.chmod(0o555)

    def fail() -> None:
        os.chdir(tmp_path)
        if os.geteuid() == 0:  # root may write everywhere
            os.setuid(65534)
        name = "folder/a" if context is writing else "folder/b"
        with pytest.raises(PermissionError) as failed, context(name):
            pass
        assert failed.value.filename == name

    assert exit_code(start(fail)) == 0
    folder.chmod(0o755)
    assert names(folder) == ["a"]
    assert (folder / "a").read_bytes() == b"old"


def test_a_leftover_that_cannot_be_deleted_is_in_nobodys_way(tmp_path, monkeypatch):
    """Another user's, in a folder where each may delete only their own."""
    leftover = tmp_path / f".report.json.{files.HOST}.999999999.0123abcd.tmp"
    leftover.write_text("half")

    def refuse(_):
        raise PermissionError

    monkeypatch.setattr(files.os, "unlink", refuse)
    files.write_text(tmp_path / "report.json", "whole")
    assert (tmp_path / "report.json").read_text() == "whole"
    assert leftover.exists()
