"""Runs `lm` and `tokenization` in processes that are forked from one which has imported everything, has built the
parser of `lm fit` and has measured the processor; and xdist's workers in forks of one that has collected the tests.

As a program it is the server (`fork_server.py serve DESCRIPTOR commands PYTHON`, or `workers` and pytest's arguments)
or a client that stands for a command (`fork_server.py SOCKET lm generate ...`). A client sends its three standard
streams, and in one line of JSON the module's name, the arguments, the folder and the environment. It gets the process
id, and the exit code when it asks for it: until then an ended process keeps its id.
"""

import contextlib
import functools
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any


def prepare() -> None:
    """Imports and finds out beforehand what most commands would: each of them begins with it."""
    import gc
    from pathlib import Path

    from lm.machine.lean_imports import import_torchmetrics_on_demand

    import_torchmetrics_on_demand()  # as `lm` does
    for name in ("lm.training.cli", "lm.generation.writer", "lm.commands.fit", "tokenization.native"):
        importlib.import_module(name)
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    commands, runs = (importlib.import_module(f"helpers.{name}") for name in ("commands", "runs"))
    from lm.accounting.activations import expected_peak
    from lm.machine.peaks import dtype_of, measure
    from lm.training.parser import SettingsCLI

    commands.prepare_for_many_runs()
    settings = SettingsCLI(["fit", "-c", str(runs.DEBUG), *(f"--{name}={value}" for name, value in runs.TINY.items())])
    expected_peak(settings.settings)
    if os.environ["OMP_NUM_THREADS"] == "1":  # no fork has the other threads of its server
        measure("cpu", dtype_of(settings.settings.trainer.precision))
    gc.freeze()  # or every fork would copy what it looks through


def collect(arguments: list[str]) -> None:
    """Collects the tests as each worker will, which then imports and rewrites nothing."""
    import gc

    import pytest

    del sys.path[0]  # the folder of this program, where names are short
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads the pipe; workers say what is wrong
    pytest.main(["--collect-only", "-qqq", *arguments])  # xdist starts no workers to collect alone
    gc.freeze()


def serve(descriptor: int, start: Callable[..., None]) -> None:
    """Forks for each client of a listening socket until standard input ends, and calls start in each fork."""
    import select

    with socket.socket(fileno=descriptor) as listener:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for what is forked; the server ends with its input
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                keep(connection, start)
            connection.close()


def keep(connection: socket.socket, start: Callable[..., None]) -> None:
    """Forks once and waits for the end of it, in a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    content, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not content.endswith(b"\n"):
        content += connection.recv(1 << 16)
    pid = os.fork()
    if not pid:
        connection.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        start(*json.loads(content))
    for stream in streams:
        os.close(stream)
    connection.sendall(b"%d\n" % pid)
    wait_for_either(pid, connection) if start is work else connection.recv(1)
    _, status = os.waitpid(pid, 0)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def wait_for_either(pid: int, connection: socket.socket) -> None:
    """Waits for the end of a worker, and kills it if its client is killed, as xdist kills one that hangs."""
    import select

    ended = os.pidfd_open(pid)
    while ended not in select.select([connection, ended], [], [])[0]:
        if not connection.recv(1):
            os.kill(pid, signal.SIGKILL)
            return


def run(python: str, module: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Turns this process into a command, in a process group of its own; python is what it starts others with."""
    # The server's own would take a pipe for whatever the server writes to, a file that can be searched.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    import traceback

    if "HOST_NAME" in environment:  # of a host that there is only in a test
        socket.gethostname = lambda: environment["HOST_NAME"]
    program = importlib.import_module(f"{module}.__main__")
    sys.argv = [str(program.__file__), *arguments]
    sys.executable = python  # two that train together: the first starts the second
    code: object = 1
    try:
        code = program.main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code or 0))  # type: ignore[call-overload]


def work(_: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Turns this process into a worker, which execnet begins with the program of `python -u -c PROGRAM`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    variables: dict[str, Any] = {"__name__": "__main__"}
    exec(arguments[-1], variables)
    sys.exit()


class Forked:
    """A command that a server has forked."""

    def __init__(
        self, path: str, module: str, arguments: list[str], streams: list[int], environment: Mapping[str, str]
    ):
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        content = json.dumps([module, arguments, os.getcwd(), dict(environment)]).encode() + b"\n"
        sent = socket.send_fds(self._connection, [content], streams)
        self._connection.sendall(content[sent:])
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def has_ended(self) -> bool:
        """Tells whether it has ended, before anybody waits for it."""
        with open(f"/proc/{self.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"

    def wait(self, seconds: float | None = 300) -> int:
        """Waits for its end and returns the exit code: -9 after a kill -9."""
        self._connection.settimeout(seconds)
        self._connection.sendall(b"\n")
        code = int(self._answers.readline())
        self._answers.close()
        self._connection.close()
        return code


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _, _, descriptor, kind, *more = sys.argv
        prepare() if kind == "commands" else collect(more)
        serve(int(descriptor), functools.partial(run, *more) if kind == "commands" else work)
    else:
        command = Forked(sys.argv[1], sys.argv[2], sys.argv[3:], [0, 1, 2], os.environ)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
            name.write(str(command.pid))  # for `ps`, and for whoever wants to kill it
        code = command.wait(None)
        sys.exit(code if code >= 0 else 128 - code)
