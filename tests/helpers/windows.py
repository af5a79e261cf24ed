"""A program that makes this process, on Linux, refuse what Windows refuses, and then runs commands of both packages.

    windows.py FOLDER     FOLDER/commands.json: [["lm", "fit", ...], ...] -> FOLDER/codes.json: their exit codes

Modules and functions that Windows lacks are missing, text files are not UTF-8 unless that is said, an open file cannot
be deleted or replaced, a folder cannot be opened, and some characters cannot stand in a file's name. Libraries are
imported before that: what they need of the system is not ours.
"""

import asyncio
import builtins
import errno
import importlib
import io
import json
import mmap
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline")
FUNCTIONS = (
    *("fork", "forkpty", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "sysconf", "statvfs", "sync"),
    *("fdatasync", "getuid", "geteuid", "getgid", "getegid", "getpgid", "getpgrp", "killpg", "setsid", "nice", "pread"),
    *("pwrite", "preadv", "pwritev", "posix_fadvise", "posix_fallocate", "mkfifo", "getloadavg", "openpty", "chown"),
    *("lchown", "fchmod", "fchown", "uname", "O_NOFOLLOW", "O_DIRECTORY", "O_DSYNC", "O_SYNC"),
)
SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGPIPE", "SIGCHLD", "pthread_sigmask", "setitimer")
KEPT_SIGNALS = {signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGINT, signal.SIGSEGV, signal.SIGTERM}
MAPS = [name for name in dir(mmap) if name.startswith(("MAP_", "MADV_", "PROT_"))]
LIBRARIES = (
    *("concurrent.futures.process", "email.message", "multiprocessing.synchronize", "subprocess", "aiohttp.web"),
    *("jsonargparse", "lightning.pytorch", "llvmlite.binding", "matplotlib.pyplot", "tqdm", "torch._dynamo"),
    *("torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "torch.utils.tensorboard"),
    "tensorboard.backend.event_processing.event_accumulator",
)
FORBIDDEN = re.compile(r'[<>:"|?*\\]|[. ]$')  # in a name


def import_libraries() -> None:
    """Imports what ours import of others, so that these find the system that they expect."""
    importlib.import_module("lm.machine.lean_imports").import_torchmetrics_on_demand()  # as `lm` does
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lm", "tokenization")]:
        del sys.modules[name]  # ours come after
    for name in LIBRARIES:
        importlib.import_module(name)


def open_now() -> set[str]:
    """Returns the real paths of the files that this process has open or mapped."""
    found = set()
    for number in listdir("/proc/self/fd"):
        try:
            found.add(readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with plain_open("/proc/self/maps") as maps:
        found |= {line.rstrip("\n").split(maxsplit=5)[5] for line in maps if line.count("/")}
    return found


listdir, readlink, plain_open = os.listdir, os.readlink, io.open


def refuse_if_open(*paths: Any) -> None:
    for path in paths:
        if isinstance(path, int):
            continue
        real = os.path.join(os.path.realpath(os.path.dirname(os.fsdecode(path))), os.path.basename(os.fsdecode(path)))
        for name in open_now():
            if name == real or name.startswith(real + "/"):
                raise PermissionError(errno.EACCES, "used by this process (Windows)", os.fsdecode(path))


def refuse_name(path: Any) -> None:
    if not isinstance(path, int) and FORBIDDEN.search(os.path.basename(os.fsdecode(path))):
        raise OSError(errno.EINVAL, "the name is incorrect (Windows)", os.fsdecode(path))


def guarded(function: Callable[..., Any], *checks: Callable[..., None], paths: int = 1) -> Callable[..., Any]:
    def call(*arguments: Any, **settings: Any) -> Any:
        for check in checks:
            check(*arguments[:paths])
        return function(*arguments, **settings)

    return call


def refuse_existing(_: Any, target: Any) -> None:
    if os.path.exists(target):
        raise FileExistsError(errno.EEXIST, "there already (Windows)", os.fsdecode(target))


def last_name(_: Any, target: Any) -> None:
    refuse_name(target)


def refuse_folder(path: Any) -> None:
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "a folder cannot be opened (Windows)", os.fsdecode(path))
    if not isinstance(path, int) and re.match("/(proc|sys)/", os.fsdecode(path)):
        raise FileNotFoundError(errno.ENOENT, "no such file (Windows)", os.fsdecode(path))


def pretend() -> None:
    """Takes away what Windows lacks. To be called before ours are imported."""
    get_flags = __import__("fcntl").fcntl
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((os, FUNCTIONS), (signal, SIGNALS), (mmap, MAPS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # type: ignore[assignment,misc]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    sys.modules["lightning.pytorch.trainer.connectors.signal_connector"]._IS_WINDOWS = True  # type: ignore[attr-defined]
    os.supports_fd.discard(os.utime)
    signal.valid_signals = lambda: KEPT_SIGNALS
    fsync, kill = os.fsync, os.kill

    def fsync_of_writers(descriptor: int) -> None:
        if get_flags(descriptor, 3) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing (Windows)")
        fsync(descriptor)

    def kill_by_signal(process: int, signum: int) -> None:
        assert signum, "os.kill(process, 0) sends a Ctrl-C (Windows)"
        kill(process, signum)

    def no_handler(*_: Any) -> None:
        raise NotImplementedError

    os.fsync, os.kill = fsync_of_writers, kill_by_signal
    os.replace = guarded(os.replace, refuse_if_open, last_name, paths=2)
    os.rename = guarded(os.rename, refuse_if_open, refuse_existing, last_name, paths=2)
    os.unlink = os.remove = guarded(os.unlink, refuse_if_open)
    os.rmdir = guarded(os.rmdir, refuse_if_open)
    os.mkdir = guarded(os.mkdir, refuse_name)
    os.open = guarded(os.open, refuse_folder, refuse_name)
    guarded_open = guarded(io.open, refuse_folder, refuse_name)

    def open_file(*arguments: Any, **settings: Any) -> Any:
        return (plain_open if "opener" in settings else guarded_open)(*arguments, **settings)  # which gets the name

    builtins.open = io.open = open_file
    asyncio.SelectorEventLoop.add_signal_handler = no_handler  # type: ignore[assignment,method-assign]

    from tokenization import systems

    systems.WINDOWS = True


def main() -> None:
    folder = Path(sys.argv[1])
    commands = json.loads((folder / "commands.json").read_text(encoding="utf-8"))
    import_libraries()
    pretend()
    from lm.__main__ import main as lm
    from tokenization.__main__ import main as tokenization

    codes = []
    for program, *arguments in commands:
        print(f"\n--- {program} {' '.join(arguments)}".encode("ascii", "replace").decode(), flush=True)
        if arguments[0] == "serve":
            threading.Thread(target=stop_when_served, daemon=True).start()
        try:
            codes.append({"lm": lm, "tokenization": tokenization}[program](arguments))
        except SystemExit as leaving:
            codes.append(leaving.code)
    (folder / "codes.json").write_text(json.dumps(codes), encoding="utf-8")


def stop_when_served() -> None:
    """Sends the main thread a Ctrl-C as soon as the server has a handler for it."""
    while "call_on_signals" not in str(signal.getsignal(signal.SIGINT)):
        time.sleep(0.1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


if __name__ == "__main__":
    main()
