"""Moves features between a row for each token and a matrix for each head, and rotates them on the way (RoPE).

    to_heads     (batch, seq, parts, heads, d_k) -> (parts, batch, heads, seq, d_k)         from_heads: back again

Parts 0 and 1, the queries and keys, are rotated by the angles of their positions, and the queries scaled by
1 / sqrt(d_k); from_heads computes the gradient of that: it turns them back, and scales as well.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run
from lm.machine.lanes import BFLOAT16, FLOAT32, INT, LANES, as_float, at, for_each, load, spread, store
from tokenization.native.instructions import instruction, load64


def _rotate(size: int) -> Callable[[int, int, int, int, int, int, int], int]:
    """Returns the instruction for vectors of numbers of this size."""

    @instruction
    def rotate(builder: Any, x: Any, y: Any, cosines: Any, sines: Any, sign: Any, factor: Any, length: Any) -> None:
        """Stores the pairs of x, each turned by its angle times the sign, and scaled."""

        def build(index: Any, width: int) -> None:
            lanes = ir.VectorType(INT, width)
            doubled = ir.Constant(lanes, [lane // 2 for lane in range(width)])
            swapped = ir.Constant(lanes, [lane ^ 1 for lane in range(width)])
            signs = ir.Constant(ir.VectorType(ir.FloatType(), width), [(-1.0, 1.0)[lane % 2] for lane in range(width)])
            pair = builder.lshr(index, ir.Constant(index.type, 1))
            cosine, sine = (load(builder, at(builder, t, pair, FLOAT32), width // 2) for t in (cosines, sines))
            numbers = load(builder, at(builder, x, index, size), width, size)
            along = builder.fmul(numbers, builder.shuffle_vector(cosine, cosine, doubled))
            across = builder.fmul(builder.shuffle_vector(numbers, numbers, swapped), signs)
            across = builder.fmul(across, builder.shuffle_vector(sine, sine, doubled))
            turned = builder.fadd(along, builder.fmul(across, spread(builder, as_float(builder, sign), width)))
            turned = builder.fmul(turned, spread(builder, as_float(builder, factor), width))
            store(builder, turned, at(builder, y, index, size), size)

        for_each(builder, length, build, (LANES, 2))

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
        for position in range(seq):
            source = here
            target = there
            if load64(task + BACK):
                source = there
                target = here
            if part < 2 and load64(task + COSINES):
                place(task, position, part, source, target)
            else:
                copy(source, target, bytes_of_one)
            here += parts * heads * bytes_of_one
            there += bytes_of_one


@compiled(__file__)
def place(task: int, position: int, part: int, source: int, target: int) -> None:
    """Rotates one query or key."""
    length = load64(task + WIDTH)
    cosines = load64(task + COSINES) + 2 * length * position
    sines = load64(task + SINES) + 2 * length * position
    sign = load64(task + SIGN)
    factor = load64(task + ONE) if part else load64(task + FACTOR)
    if load64(task + SIZE) == BFLOAT16:
        rotate_bfloat16(source, target, cosines, sines, sign, factor, length)
    else:
        rotate_float32(source, target, cosines, sines, sign, factor, length)


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
    turning: tuple[int | float | Tensor, ...] = (0, 0) if angles is None else angles
    sizes = (back, parts, heads, seq, d_k, batch, rows.element_size())
    run(
        move_heads,
        parts * batch * heads,
        *(rows, matrices, *sizes, *turning, -1.0 if back else 1.0, d_k**-0.5, 1.0),
        small=rows.numel() < SMALL,
    )
