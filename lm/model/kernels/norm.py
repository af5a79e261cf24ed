"""RMSNorm, with the addition that precedes it, in one pass over memory; and its gradient.

    z = x + y                 r = 1 / sqrt(mean(z^2) + eps)                                    h = z r g
    dz = d + r g dh - z (r^3 / n) sum(g dh z)               dg = sum over rows of dh z r

d is the gradient that reaches z elsewhere. x and z are the residual stream, in float32; y, h and dh may be bfloat16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run, team_size, thread_of
from lm.machine.lanes import (
    BFLOAT16,
    FLOAT,
    FLOAT32,
    Total,
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
from tokenization.native.instructions import instruction, load32, load64, store32


def _add(size: int) -> Callable[[int, int, int, int], int]:
    """Returns the instruction that adds a row of numbers of this size."""

    @instruction
    def add(builder: Any, x: Any, y: Any, z: Any, length: Any) -> Any:
        """Stores x + y, and returns the sum of the squares."""
        total = Total(builder)

        def build(index: Any, width: int) -> None:
            left = load(builder, at(builder, x, index, FLOAT32), width)
            numbers = builder.fadd(left, load(builder, at(builder, y, index, size), width, size))
            store(builder, numbers, at(builder, z, index, FLOAT32))
            total.add_product(builder, numbers, numbers)

        for_each(builder, length, build)
        return as_bits(builder, total.sum(builder))

    return add


def _scale(size: int) -> Callable[[int, int, int, int, int], int]:
    """Returns the instruction that stores a scaled row in numbers of this size."""

    @instruction
    def scale(builder: Any, z: Any, gains: Any, factor: Any, h: Any, length: Any) -> None:
        """Stores z_i * factor * gains_i."""

        def build(index: Any, width: int) -> None:
            numbers = load(builder, at(builder, z, index, FLOAT32), width)
            numbers = builder.fmul(numbers, spread(builder, as_float(builder, factor), width))
            numbers = builder.fmul(numbers, load(builder, at(builder, gains, index, FLOAT32), width))
            store(builder, numbers, at(builder, h, index, size), size)

        for_each(builder, length, build)

    return scale


def _pull(size: int) -> Callable[[int, int, int, int], int]:
    """Returns the instruction that multiplies a gradient of this size with the row it belongs to."""

    @instruction
    def pull(builder: Any, d_h: Any, z: Any, gains: Any, length: Any) -> Any:
        """Returns the sum of gains_i d_h_i z_i."""
        total = Total(builder)

        def build(index: Any, width: int) -> None:
            gradient = load(builder, at(builder, d_h, index, size), width, size)
            scaled = builder.fmul(gradient, load(builder, at(builder, gains, index, FLOAT32), width))
            total.add_product(builder, scaled, load(builder, at(builder, z, index, FLOAT32), width))

        for_each(builder, length, build)
        return as_bits(builder, total.sum(builder))

    return pull


def _push(size: int, further: bool) -> Callable[[int, int, int, int, int, int, int, int, int], int]:
    """Returns the instruction that computes dz from a dh of this size. further: whether there is a d."""

    @instruction
    def push(
        builder: Any, d: Any, d_h: Any, z: Any, gains: Any, factor: Any, share: Any, d_z: Any, d_gains: Any, length: Any
    ) -> None:
        """Stores d_i + factor gains_i d_h_i - share z_i, and adds factor d_h_i z_i to d_gains."""

        def build(index: Any, width: int) -> None:
            gradient = load(builder, at(builder, d_h, index, size), width, size)
            gradient = builder.fmul(gradient, spread(builder, as_float(builder, factor), width))
            numbers = load(builder, at(builder, z, index, FLOAT32), width)
            place = at(builder, d_gains, index, FLOAT32)
            sums = builder.fadd(load(builder, place, width), builder.fmul(gradient, numbers))
            store(builder, sums, place)
            result = builder.fmul(gradient, load(builder, at(builder, gains, index, FLOAT32), width))
            away = builder.fmul(numbers, spread(builder, as_float(builder, share), width))
            result = builder.fsub(result, away)
            if further:
                result = builder.fadd(result, load(builder, at(builder, d, index, FLOAT32), width))
            store(builder, result, at(builder, d_z, index, FLOAT32))

        for_each(builder, length, build)

    return push


@instruction
def squares(builder: Any, x: Any, length: Any) -> Any:
    """Returns the sum of the squares of a row."""
    return as_bits(builder, sum_of_squares(builder, x, length))


@instruction
def round_row(builder: Any, x: Any, y: Any, length: Any) -> None:
    """Stores float32 as bfloat16."""

    def build(index: Any, width: int) -> None:
        numbers = load(builder, at(builder, x, index, FLOAT32), width)
        store(builder, numbers, at(builder, y, index, BFLOAT16), BFLOAT16)

    for_each(builder, length, build)


@instruction
def factor_of(builder: Any, total: Any, count: Any, eps: Any) -> Any:
    """Computes 1 / sqrt(total / count + eps)."""
    mean = builder.fdiv(as_float(builder, total), builder.sitofp(count, FLOAT))
    return as_bits(builder, builder.fdiv(FLOAT(1.0), root(builder, builder.fadd(mean, as_float(builder, eps)))))


@instruction
def share_of(builder: Any, factor: Any, total: Any, count: Any) -> Any:
    """Computes factor^3 total / count."""
    number = as_float(builder, factor)
    cube = builder.fmul(builder.fmul(number, number), number)
    mean = builder.fdiv(as_float(builder, total), builder.sitofp(count, FLOAT))
    return as_bits(builder, builder.fmul(cube, mean))


add_float32, add_bfloat16 = _add(FLOAT32), _add(BFLOAT16)
scale_float32, scale_bfloat16 = _scale(FLOAT32), _scale(BFLOAT16)
pull_float32, pull_bfloat16 = _pull(FLOAT32), _pull(BFLOAT16)
push_float32, push_bfloat16 = _push(FLOAT32, False), _push(BFLOAT16, False)
push_further_float32, push_further_bfloat16 = _push(FLOAT32, True), _push(BFLOAT16, True)

X, Y, Y_SIZE, Z, GAINS, EPS, FACTORS, H, H_SIZE, LENGTH = range(FIELDS, FIELDS + 80, 8)
# Of the gradient; D and D_Y may be 0, and D_GAINS is a row for each thread.
D, D_H, D_Z, D_Y, D_GAINS = X, Y, EPS, H, LENGTH + 8


@compiled(__file__)
def normalize_rows(task: int) -> None:
    """Computes a thread's rows of z, if there is a y, and of h; and their factors r."""
    length = load64(task + LENGTH)
    first, behind = portion(task)
    for row in range(first, behind):
        x = load64(task + X) + 4 * row * length
        z = x
        if load64(task + Y) == 0:
            total = squares(x, length)
        else:
            y = load64(task + Y) + load64(task + Y_SIZE) * row * length
            z = load64(task + Z) + 4 * row * length
            total = add_bfloat16(x, y, z, length) if load64(task + Y_SIZE) == BFLOAT16 else add_float32(x, y, z, length)
        factor = factor_of(total, length, load64(task + EPS))
        store32(load64(task + FACTORS) + 4 * row, factor)
        h = load64(task + H) + load64(task + H_SIZE) * row * length
        if load64(task + H_SIZE) == BFLOAT16:
            scale_bfloat16(z, load64(task + GAINS), factor, h, length)
        else:
            scale_float32(z, load64(task + GAINS), factor, h, length)


@compiled(__file__)
def normalize_rows_backward(task: int) -> None:
    """Computes a thread's rows of dz, its share of dg, and dz in bfloat16 where it is asked for."""
    length = load64(task + LENGTH)
    gains = load64(task + GAINS)
    half = load64(task + Y_SIZE) == BFLOAT16
    d_gains = load64(task + D_GAINS) + 4 * length * thread_of(task)[0]
    first, behind = portion(task)
    for row in range(first, behind):
        d_h = load64(task + D_H) + load64(task + Y_SIZE) * row * length
        z = load64(task + Z) + 4 * row * length
        d_z = load64(task + D_Z) + 4 * row * length
        d = load64(task + D) + 4 * row * length
        factor = load32(load64(task + FACTORS) + 4 * row)
        total = pull_bfloat16(d_h, z, gains, length) if half else pull_float32(d_h, z, gains, length)
        share = share_of(factor, total, length)
        if load64(task + D):
            if half:
                push_further_bfloat16(d, d_h, z, gains, factor, share, d_z, d_gains, length)
            else:
                push_further_float32(d, d_h, z, gains, factor, share, d_z, d_gains, length)
        elif half:
            push_bfloat16(0, d_h, z, gains, factor, share, d_z, d_gains, length)
        else:
            push_float32(0, d_h, z, gains, factor, share, d_z, d_gains, length)
        if load64(task + D_Y):
            round_row(d_z, load64(task + D_Y) + 2 * row * length, length)


def normalize(
    x: Tensor, y: Tensor | None, gains: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Returns z, None without a y; h, of this dtype; and r: x, y, z, h are (..., n), contiguous, r is (rows,)."""
    length = x.shape[-1]
    z, h = None if y is None else torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    factors = x.new_empty(x.numel() // length)
    added = (0, 0, 0) if y is None or z is None else (y, y.element_size(), z)
    fields = (x, *added, gains, float(eps), factors, h, h.element_size(), length)
    run(normalize_rows, len(factors), *fields, small=x.numel() < SMALL)
    return z, h, factors


def normalize_backward(
    d: Tensor | None, d_h: Tensor, z: Tensor, gains: Tensor, factors: Tensor, halved: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns dz, dz in bfloat16 if `halved`, and dg. d, d_h, z: (..., n), contiguous; factors: r."""
    length = z.shape[-1]
    d_z, d_y = torch.empty_like(z), torch.empty_like(z, dtype=torch.bfloat16) if halved else None
    small = z.numel() < SMALL
    d_gains = z.new_zeros(1 if small else team_size(), length)
    fields = (0 if d is None else d, d_h, d_h.element_size(), z, gains, d_z, factors, 0 if d_y is None else d_y)
    run(normalize_rows_backward, len(factors), *fields, 0, length, d_gains, small=small)
    return d_z, d_y, d_gains.sum(dim=0)
