"""Teams of threads that run a compiled kernel together.

They are the threads of torch's own OpenMP: a kernel's team and torch's never compete, and GOMP_SPINCOUNT holds for
both. Where torch has no GNU OpenMP, on macOS and Windows, the calling thread is the whole team.
"""

import ctypes
from collections.abc import Callable

import torch

from lm.machine.torch_inside import openmp
from tokenization.native.compiling import built_in_of, load


class Team:
    """As many threads as torch uses.

    thread_number, num_threads and barrier are the addresses of C functions that a kernel calls, each without
    arguments; 0 where the team is one thread.
    """

    def __init__(self) -> None:
        library = openmp() if torch.get_num_threads() > 1 else None
        self.size = torch.get_num_threads() if library else 1
        self.thread_number = self.num_threads = self.barrier = 0
        if library:
            self.start = library.GOMP_parallel
            self.start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
            self.start.restype = None
            names = ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")
            functions = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names]
            self.thread_number, self.num_threads, self.barrier = functions

    def run(self, kernel: Callable[[int], None], argument: int) -> None:
        """Calls a kernel in each thread with the same argument, and waits for all; Python's lock is released."""
        if self.size > 1:
            self.start(load(kernel), argument, self.size, 0)
        else:
            built_in_of(kernel)(argument)
