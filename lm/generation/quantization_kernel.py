"""Rounds the rows of a weight to 8 bits in one pass over memory; quantization.py has the equation and the plain code.

Both divide and round alike, so that the numbers and scales are the same to the last bit.
"""

import torch
from torch import Tensor

from lm.generation import vectors, whole_numbers
from lm.generation.whole_numbers import round_to_8_bits
from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run
from tokenization.native.instructions import load64, store32

X, NUMBERS, SCALES, INPUTS = range(FIELDS, FIELDS + 32, 8)


@compiled(__file__, vectors.__file__, whole_numbers.__file__)
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
