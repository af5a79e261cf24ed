"""Chooses how long torch's threads spin while they wait for each other, at any time of a run.

    spinning    some milliseconds, then sleep: the fastest while nobody else wants the cores
    briefly     microseconds, then sleep: beside another program, where a spinning thread would hold the core of the
                one that it waits for

GNU OpenMP reads GOMP_SPINCOUNT only once, when torch is imported. But its threads always wait briefly while it has more
of them than there are cores, and the threads of every team count: those of a second one as well, which do nothing.
"""

import contextlib
import ctypes
import os
import threading

import torch

from lm.machine.torch_inside import openmp

MOST = 128  # idle threads
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # of the environment; they take precedence


class IdleTeam:
    """A second team of threads, asleep until it is dismissed; with torch's, they are more than there are cores."""

    def __init__(self, library: ctypes.CDLL, size: int) -> None:
        """size: its threads, the one that begins it among them. RuntimeError if Python cannot start that one."""
        self.over, begun = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._hold, args=(library, size, begun), name="idle team", daemon=True)
        self.thread.start()
        begun.wait()

    def _hold(self, library: ctypes.CDLL, size: int, begun: threading.Event) -> None:
        nothing = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p)
        library.GOMP_parallel(nothing, None, size, 0)
        begun.set()
        self.over.wait()  # OpenMP keeps the team until the thread that has begun it ends

    def dismiss(self) -> None:
        self.over.set()
        self.thread.join()


_idle: IdleTeam | None = None


def wait_briefly(briefly: bool) -> None:
    """Makes threads that wait for each other spin briefly, or again as long as OpenMP's default is.

    Nothing happens where torch has one thread, or no GNU OpenMP, where the environment sets GOMP_SPINCOUNT or
    OMP_WAIT_POLICY, and where torch uses so few of the cores that it would take more than MOST threads.
    """
    global _idle
    if briefly == (_idle is not None):
        return
    if _idle is not None:
        _idle.dismiss()
        _idle = None
    elif torch.get_num_threads() > 1 and not os.environ.keys() & set(SETTINGS) and (library := openmp()) is not None:
        size = 1 + max(1, library.omp_get_num_procs() - torch.get_num_threads() + 1)
        if size <= MOST:
            with contextlib.suppress(RuntimeError):
                _idle = IdleTeam(library, size)
