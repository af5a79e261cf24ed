"""Rounds the rows of a weight to 8 bits in one pass over memory; quantization.py has the equation and the plain code.

Both divide and round alike, so that the numbers and scales are the same to the last bit.
"""

from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from torch import Tensor

from lm.generation import vectors
from lm.generation.vectors import BYTE, largest_of
from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run
from lm.machine.lanes import FLOAT, INT, LANES, LONG, as_bits, at, call, load, loop, spread
from tokenization.native.instructions import instruction, load64, store32

MOST = 127  # the largest magnitude of a number


@instruction
def round_to_8_bits(builder: Any, x: Any, y: Any, length: Any) -> Any:
    """Stores x as whole numbers of 8 bits, round(x_i / s); returns s, the largest |x_i| / MOST, or 1 for 0."""
    quotient = builder.fdiv(largest_of(builder, x, length), FLOAT(MOST))
    nothing = builder.fcmp_ordered("==", quotient, FLOAT(0.0))
    scale = builder.select(nothing, FLOAT(1.0), quotient)
    scales = spread(builder, scale, LANES)
    with loop(builder, LONG(0), length, LANES) as index:
        scaled = builder.fdiv(load(builder, at(builder, x, index, 4), LANES), scales)
        whole = builder.fptosi(call(builder, "rint", scaled), ir.VectorType(INT, LANES))
        for sign, limit in ((">", MOST), ("<", -MOST)):  # passed where the scale is denormal
            limits = ir.Constant(whole.type, [limit] * LANES)
            whole = builder.select(builder.icmp_signed(sign, whole, limits), limits, whole)
        numbers = builder.trunc(whole, ir.VectorType(BYTE, LANES))
        builder.store(numbers, builder.inttoptr(builder.add(y, index), numbers.type.as_pointer()), align=1)
    return as_bits(builder, scale)


X, NUMBERS, SCALES, INPUTS = range(FIELDS, FIELDS + 32, 8)


@compiled(__file__, vectors.__file__)
def quantize_rows(task: int) -> None:
    """Rounds a thread's rows."""
    first, behind = portion(task)
    inputs = load64(task + INPUTS)
    for row in range(first, behind):
        numbers = load64(task + NUMBERS) + row * inputs
        scale = round_to_8_bits(load64(task + X) + 4 * row * inputs, numbers, inputs)
        store32(load64(task + SCALES) + 4 * row, scale)


def quantize_by_kernel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the numbers, int8, and scales, (out_features,), of a weight (out_features, in_features) in float32.

    The weight is contiguous, and in_features a multiple of 16.
    """
    numbers, scales = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight))
    run(quantize_rows, len(weight), weight, numbers, scales, weight.shape[1], small=weight.numel() < SMALL)
    return numbers, scales
