"""SwiGLU's gate in one pass over memory, and its gradient: a = SiLU(u) v, with u and v side by side in each row.

da -> dv = da SiLU(u),  du = da v (s + u s (1 - s)),  s = sigmoid(u)
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run
from lm.machine.lanes import BFLOAT16, FLOAT32, at, everywhere, exp, for_each, load, reciprocal, store
from tokenization.native.instructions import instruction, load64


def _sigmoid(builder: Any, numbers: Any) -> Any:
    """Computes 1 / (1 + e^-x); below -69 it is 0, as `reciprocal` knows no larger numbers."""
    zero, one, least = (everywhere(number, numbers.type.count) for number in (0.0, 1.0, -69.0))
    below = builder.fcmp_ordered("<", numbers, least)
    numbers = builder.select(below, least, numbers)
    sigmoid = reciprocal(builder, builder.fadd(one, exp(builder, builder.fneg(numbers))))
    return builder.select(below, zero, sigmoid)


def _gate(size: int) -> Callable[[int, int, int, int], int]:
    """Returns the instruction for rows of numbers of this size."""

    @instruction
    def gate(builder: Any, u: Any, v: Any, a: Any, length: Any) -> None:
        """Stores SiLU(u_i) v_i."""

        def build(index: Any, width: int) -> None:
            numbers = load(builder, at(builder, u, index, size), width, size)
            result = builder.fmul(numbers, _sigmoid(builder, numbers))
            result = builder.fmul(result, load(builder, at(builder, v, index, size), width, size))
            store(builder, result, at(builder, a, index, size), size)

        for_each(builder, length, build)

    return gate


def _gate_backward(size: int) -> Callable[[int, int, int, int, int, int], int]:
    """Returns the instruction for rows of numbers of this size."""

    @instruction
    def gate_backward(builder: Any, u: Any, v: Any, d_a: Any, d_u: Any, d_v: Any, length: Any) -> None:
        """Stores the gradients of u and v."""

        def build(index: Any, width: int) -> None:
            number, value, gradient = (load(builder, at(builder, x, index, size), width, size) for x in (u, v, d_a))
            sigmoid = _sigmoid(builder, number)
            silu = builder.fmul(number, sigmoid)
            store(builder, builder.fmul(gradient, silu), at(builder, d_v, index, size), size)
            slope = builder.fmul(silu, builder.fsub(everywhere(1.0, width), sigmoid))
            slope = builder.fmul(builder.fadd(sigmoid, slope), builder.fmul(gradient, value))
            store(builder, slope, at(builder, d_u, index, size), size)

        for_each(builder, length, build)

    return gate_backward


gate_float32, gate_bfloat16 = _gate(FLOAT32), _gate(BFLOAT16)
gate_backward_float32, gate_backward_bfloat16 = _gate_backward(FLOAT32), _gate_backward(BFLOAT16)

U, A, LENGTH, SIZE, D_U = range(FIELDS, FIELDS + 40, 8)


@compiled(__file__)
def gate_rows(task: int) -> None:
    """Computes a thread's rows of a."""
    first, behind = portion(task)
    length = load64(task + LENGTH)
    size = load64(task + SIZE)
    for row in range(first, behind):
        u = load64(task + U) + 2 * size * row * length
        a = load64(task + A) + size * row * length
        if size == BFLOAT16:
            gate_bfloat16(u, u + size * length, a, length)
        else:
            gate_float32(u, u + size * length, a, length)


@compiled(__file__)
def gate_rows_backward(task: int) -> None:
    """Computes a thread's rows of du and dv; A holds da."""
    first, behind = portion(task)
    length = load64(task + LENGTH)
    size = load64(task + SIZE)
    for row in range(first, behind):
        u = load64(task + U) + 2 * size * row * length
        a = load64(task + A) + size * row * length
        d_u = load64(task + D_U) + 2 * size * row * length
        if size == BFLOAT16:
            gate_backward_bfloat16(u, u + size * length, a, d_u, d_u + size * length, length)
        else:
            gate_backward_float32(u, u + size * length, a, d_u, d_u + size * length, length)


def gate(wide: Tensor) -> Tensor:
    """Computes a: wide (rows, 2 n), u and v in each row, contiguous -> (rows, n)."""
    a = wide.new_empty(len(wide), wide.shape[1] // 2)
    run(gate_rows, len(a), wide, a, a.shape[1], a.element_size(), small=a.numel() < SMALL)
    return a


def gate_backward(wide: Tensor, d_a: Tensor) -> Tensor:
    """Computes du and dv, side by side: wide (rows, 2 n), d_a (rows, n), contiguous -> (rows, 2 n)."""
    d_wide = wide.new_empty(wide.shape)
    run(gate_rows_backward, len(d_a), wide, d_a, d_a.shape[1], d_a.element_size(), d_wide, small=d_a.numel() < SMALL)
    return d_wide
