"""Moves features between a row for each token and a matrix for each head, and rotates them on the way (RoPE).

    to_heads     (batch, seq, parts, heads, d_k) -> (parts, batch, heads, seq, d_k)         from_heads: back again

Parts 0 and 1, the queries and keys, are rotated by the angles of their positions, and the queries scaled by
1 / sqrt(d_k); from_heads computes the gradient of that: it turns them back, and scales as well.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run
from lm.machine.lanes import BFLOAT16, FLOAT32, INT, LANES, as_float, at, for_each, load, loop, spread, store
from tokenization.native.instructions import instruction, load64

Rotation = Callable[[int, int, int, int, int, int, int, int, int, int], int]


def _rotate(size: int) -> Rotation:
    """Returns the instruction for matrices of numbers of this size."""

    @instruction
    def rotate(
        builder: Any,
        x: Any,
        x_stride: Any,
        y: Any,
        y_stride: Any,
        cosines: Any,
        sines: Any,
        sign: Any,
        factor: Any,
        seq: Any,
        length: Any,
    ) -> None:
        """Stores the pairs of each row of x, turned by its angles times the sign, and scaled; strides are in bytes."""
        sign, factor = (as_float(builder, number) for number in (sign, factor))
        half = builder.lshr(length, ir.Constant(length.type, 1))

        def build(row: Any, index: Any, width: int) -> None:
            lanes = ir.VectorType(INT, width)
            doubled = ir.Constant(lanes, [lane // 2 for lane in range(width)])
            swapped = ir.Constant(lanes, [lane ^ 1 for lane in range(width)])
            signs = ir.Constant(ir.VectorType(ir.FloatType(), width), [(-1.0, 1.0)[lane % 2] for lane in range(width)])
            pair = builder.add(builder.mul(row, half), builder.lshr(index, ir.Constant(index.type, 1)))
            cosine, sine = (load(builder, at(builder, t, pair, FLOAT32), width // 2) for t in (cosines, sines))
            source = builder.add(x, builder.mul(row, x_stride))
            numbers = load(builder, at(builder, source, index, size), width, size)
            along = builder.fmul(numbers, builder.shuffle_vector(cosine, cosine, doubled))
            across = builder.fmul(builder.shuffle_vector(numbers, numbers, swapped), signs)
            across = builder.fmul(across, builder.shuffle_vector(sine, sine, doubled))
            turned = builder.fadd(along, builder.fmul(across, spread(builder, sign, width)))
            turned = builder.fmul(turned, spread(builder, factor, width))
            target = builder.add(y, builder.mul(row, y_stride))
            store(builder, turned, at(builder, target, index, size), size)

        with loop(builder, ir.Constant(seq.type, 0), seq, 1) as row:
            for_each(builder, length, functools.partial(build, row), (LANES, 2))

    return rotate


@instruction
def copy(builder: Any, source: Any, target: Any, length: Any) -> None:
    """Copies bytes, a cache line at a time."""

    def build(index: Any, width: int) -> None:
        line = ir.VectorType(ir.IntType(8), width).as_pointer()
        numbers = builder.load(builder.inttoptr(builder.add(source, index), line), align=1)
        builder.store(numbers, builder.inttoptr(builder.add(target, index), line), align=1)

    for_each(builder, length, build)


rotate_float32, rotate_bfloat16 = _rotate(FLOAT32), _rotate(BFLOAT16)

ROWS, MATRICES, BACK, PARTS, HEADS, SEQ, WIDTH = range(FIELDS, FIELDS + 56, 8)
BATCH, SIZE, COSINES, SINES, SIGN, FACTOR, ONE = range(WIDTH + 8, WIDTH + 64, 8)


@compiled(__file__)
def move_heads(task: int) -> None:
    """Moves a thread's matrices, one for each part, sequence and head."""
    heads = load64(task + HEADS)
    parts = load64(task + PARTS)
    seq = load64(task + SEQ)
    length = load64(task + WIDTH)
    bytes_of_one = length * load64(task + SIZE)
    each = load64(task + BATCH) * heads
    first, behind = portion(task)
    for matrix in range(first, behind):
        part = matrix // each
        sequence = (matrix - part * each) // heads
        head = matrix - part * each - sequence * heads
        here = load64(task + ROWS) + ((sequence * seq * parts + part) * heads + head) * bytes_of_one
        there = load64(task + MATRICES) + matrix * seq * bytes_of_one
        stride = parts * heads * bytes_of_one
        source = here
        target = there
        source_stride = stride
        target_stride = bytes_of_one
        if load64(task + BACK):
            source = there
            target = here
            source_stride = bytes_of_one
            target_stride = stride
        if part < 2 and load64(task + COSINES):
            turn(task, part, source, source_stride, target, target_stride)
        else:
            for position in range(seq):
                copy(source + position * source_stride, target + position * target_stride, bytes_of_one)


@compiled(__file__)
def turn(task: int, part: int, source: int, source_stride: int, target: int, target_stride: int) -> None:
    """Rotates the queries, or the keys, of one head."""
    seq = load64(task + SEQ)
    length = load64(task + WIDTH)
    cosines = load64(task + COSINES)
    sines = load64(task + SINES)
    sign = load64(task + SIGN)
    factor = load64(task + ONE) if part else load64(task + FACTOR)
    if load64(task + SIZE) == BFLOAT16:
        rotate_bfloat16(source, source_stride, target, target_stride, cosines, sines, sign, factor, seq, length)
    else:
        rotate_float32(source, source_stride, target, target_stride, cosines, sines, sign, factor, seq, length)


Angles = tuple[Tensor, Tensor]


def to_heads(rows: Tensor, parts: int, heads: int, angles: Angles | None = None) -> Tensor:
    """Takes rows apart: (batch, seq, parts * heads * d_k) -> (parts, batch, heads, seq, d_k), both contiguous.

    angles: cosines and sines for each position, (seq, d_k / 2) each, float32, contiguous; None rotates and scales
    nothing.
    """
    batch, seq, width = rows.shape
    matrices = rows.new_empty(parts, batch, heads, seq, width // parts // heads)
    _move(rows, matrices, 0, angles)
    return matrices


def from_heads(matrices: Tensor, angles: Angles | None = None) -> Tensor:
    """Puts rows together: (parts, batch, heads, seq, d_k) -> (batch, seq, parts * heads * d_k), both contiguous."""
    parts, batch, heads, seq, d_k = matrices.shape
    rows = matrices.new_empty(batch, seq, parts * heads * d_k)
    _move(rows, matrices, 1, angles)
    return rows


def _move(rows: Tensor, matrices: Tensor, back: int, angles: Angles | None) -> None:
    parts, batch, heads, seq, d_k = matrices.shape
    if angles is not None and any(table.shape != (seq, d_k // 2) for table in angles):
        raise ValueError(f"the angles are {[tuple(table.shape) for table in angles]}, and not ({seq}, {d_k // 2}) each")
    turning: tuple[int | float | Tensor, ...] = (0, 0) if angles is None else angles
    sizes = (back, parts, heads, seq, d_k, batch, rows.element_size())
    run(
        move_heads,
        parts * batch * heads,
        *(rows, matrices, *sizes, *turning, -1.0 if back else 1.0, d_k**-0.5, 1.0),
        small=rows.numel() < SMALL,
    )
