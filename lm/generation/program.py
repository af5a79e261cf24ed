"""Programs for the kernel of kernels.py: its jobs as rows of numbers, and the threads that carry them out."""

import struct
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lm.machine.teams import Team


@cache
def obstacle() -> str:
    """Returns why no kernel can run, or "" where they can; at the first call they are compiled, or loaded."""
    try:
        from lm.generation.kernels import run_jobs
        from lm.model.kernels.gate import gate_rows
        from lm.model.kernels.norm import normalize_rows
        from tokenization.native.compiling import load

        for kernel in (run_jobs, normalize_rows, gate_rows):
            load(kernel)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # whatever LLVM raises: everything but int8 can be done without them
        return f"its kernels cannot be compiled: {' '.join(str(error).split()) or repr(error)}"
    return ""


class Program:
    """A list of jobs, carried out together by torch's threads.

    A job is given by its fields, named in kernels.py: whole numbers, floats, or tensors for their addresses, which the
    program keeps alive.
    """

    def __init__(self, jobs: Sequence[Mapping[int, int | float | Tensor]]):
        from lm.generation import kernels

        self.kernel, self.team = kernels.run_jobs, Team()
        self.tensors = [value for job in jobs for value in job.values() if isinstance(value, Tensor)]
        self.jobs = np.array([[as_int(job.get(field, 0)) for field in kernels.JOB] for job in jobs], np.int64)
        self.scratch = torch.zeros(self.team.size, max(map(room, jobs)))
        head: dict[int, int | float | Tensor] = {
            kernels.JOBS: self.jobs.ctypes.data,
            kernels.NUM_JOBS: len(jobs),
            kernels.SCRATCH: self.scratch,
            kernels.SCRATCH_SIZE: 4 * self.scratch.shape[1],
            kernels.THREAD_NUMBER: self.team.thread_number,
            kernels.NUM_THREADS: self.team.num_threads,
            kernels.BARRIER: self.team.barrier,
        }
        self.head = np.array([as_int(head[field]) for field in kernels.PROGRAM], np.int64)
        self.address = int(self.head.ctypes.data)

    def run(self) -> None:
        """Carries out all jobs."""
        self.team.run(self.kernel, self.address)


def room(job: Mapping[int, int | float | Tensor]) -> int:
    """Returns how many floats a job leaves in its thread's scratch.

    They are an input, or a query and its scores or, before these, a normalized vector, each with a vector's rest; for
    int8 weights, also each row in 16 bits, its scale and its product.
    """
    from lm.generation import kernels
    from lm.generation.whole_numbers import INT8

    inputs = int(job[kernels.INPUTS])
    rounded = int(job[kernels.ROWS]) * (inputs // 2 + 2) if job.get(kernels.SIZE) == INT8 else 0
    return inputs + max(inputs, int(job.get(kernels.CONTEXT, 0))) + rounded + 128


def as_int(value: int | float | Tensor) -> int:
    """Returns a field as a kernel reads it: a number, the bits of a float32, or an address."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return int.from_bytes(struct.pack("<f", value), "little") if isinstance(value, float) else value
