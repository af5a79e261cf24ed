"""Clips gradients on a CPU by two kernels, one that adds up squares and one that scales; see clipping.clip_gradients.

A norm within its bound, as it is in most steps, leaves the gradients read once, and not written.
"""

from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, run, share_of, team_size, thread_of
from lm.machine.lanes import (
    FLOAT,
    FLOAT32,
    LONG,
    as_bits,
    as_float,
    at,
    for_each,
    load,
    root,
    spread,
    store,
    sum_of_squares,
)
from tokenization.native.compiling import load as load_machine_code
from tokenization.native.instructions import instruction, load64, store32, store64

GRADIENTS, COUNT, SUMS, NUM_SUMS, BOUND, NORM = range(FIELDS, FIELDS + 48, 8)  # SUMS: a float64 for each thread
GRADIENT, LENGTH, ENTRY = range(0, 24, 8)  # an entry of the list of gradients, and its bytes
CHUNK = 1 << 12  # numbers whose squares are added up in float32; the sums of chunks are added in float64
DOUBLE = ir.DoubleType()


@instruction
def add(builder: Any, left: Any, right: Any) -> Any:
    """Adds the bits of two float64."""
    return builder.bitcast(builder.fadd(builder.bitcast(left, DOUBLE), builder.bitcast(right, DOUBLE)), LONG)


@instruction
def squares(builder: Any, numbers: Any, length: Any) -> Any:
    """Returns the sum of the squares of floats that follow one another, as the bits of a float64."""
    return builder.bitcast(builder.fpext(sum_of_squares(builder, numbers, length), DOUBLE), LONG)


@instruction
def norm_of(builder: Any, total: Any) -> Any:
    """Returns the root of a float64, as the bits of a float."""
    return as_bits(builder, root(builder, builder.fptrunc(builder.bitcast(total, DOUBLE), FLOAT)))


@instruction
def reaches(builder: Any, norm: Any, bound: Any) -> Any:
    """Returns 1 if a norm is at least its bound, 0 if it is below or NaN."""
    return builder.zext(builder.fcmp_ordered(">=", as_float(builder, norm), as_float(builder, bound)), LONG)


@instruction
def scale(builder: Any, numbers: Any, length: Any, norm: Any, bound: Any) -> None:
    """Multiplies floats that follow one another by bound / (norm + 1e-6)."""
    factor = builder.fdiv(as_float(builder, bound), builder.fadd(as_float(builder, norm), FLOAT(1e-6)))

    def build(index: Any, width: int) -> None:
        place = at(builder, numbers, index, FLOAT32)
        store(builder, builder.fmul(load(builder, place, width), spread(builder, factor, width)), place)

    for_each(builder, length, build)


@compiled(__file__)
def add_up_squares(task: int) -> None:
    """Adds up the squares of a thread's part of each gradient."""
    thread, threads = thread_of(task)
    entry = load64(task + GRADIENTS)
    total = 0
    for _ in range(load64(task + COUNT)):
        start, stop = share_of(load64(entry + LENGTH), thread, threads)
        for first in range(start, stop, CHUNK):
            total = add(total, squares(load64(entry + GRADIENT) + 4 * first, min(CHUNK, stop - first)))
        entry += ENTRY
    store64(load64(task + SUMS) + 8 * thread, total)


@compiled(__file__)
def scale_to_bound(task: int) -> None:
    """Stores the norm, and scales a thread's part of each gradient where it is too large."""
    thread, threads = thread_of(task)
    total = 0
    for part in range(load64(task + NUM_SUMS)):
        total = add(total, load64(load64(task + SUMS) + 8 * part))
    norm = norm_of(total)
    if thread == 0:
        store32(load64(task + NORM), norm)
    if reaches(norm, load64(task + BOUND)):
        entry = load64(task + GRADIENTS)
        for _ in range(load64(task + COUNT)):
            start, stop = share_of(load64(entry + LENGTH), thread, threads)
            scale(load64(entry + GRADIENT) + 4 * start, stop - start, norm, load64(task + BOUND))
            entry += ENTRY


def load_kernels() -> None:
    """Compiles the kernels, or reads them from the cache."""
    load_machine_code(add_up_squares)
    load_machine_code(scale_to_bound)


def clip(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Clips gradients as clipping.clip_gradients does, and returns their norm; contiguous, in float32, on a CPU."""
    entries = torch.tensor([[gradient.data_ptr(), gradient.numel()] for gradient in gradients])
    sums, norm = torch.zeros(team_size(), dtype=torch.float64), torch.empty(())
    bound = min(float(max_norm), torch.finfo(torch.float32).max)
    small = sum(gradient.numel() for gradient in gradients) < SMALL
    for kernel in (add_up_squares, scale_to_bound):
        run(kernel, 0, entries, len(gradients), sums, len(sums), bound, norm, small=small)
    return norm
