"""Weights in 8 bits: each row of a matrix as whole numbers from -127 to 127, times a scale of its own.

    w_ij  ~  s_i q_ij,   s_i = max_j |w_ij| / 127

The vectors that they multiply are rounded to 16 bits, each by a scale of its own, so that whole numbers are multiplied:
that takes half the instructions of converting the weights to float32. This error is about a hundredth of that of the
weights, or a tenth where one number is far larger than all others. `dequantize` returns the weights that the whole
numbers stand for, and so defines what is right: the product with these.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lm.generation.program import obstacle
from lm.model.layers import Linear
from lm.model.transformer import TransformerLM
from tokenization import InputError

PADDING = 16  # a row of numbers is filled up with zeros to a multiple of this


class Quantized(NamedTuple):
    """A matrix in 8 bits."""

    numbers: Tensor  # (out_features, in_features and the padding), int8
    scales: Tensor  # (out_features,), float32
    inputs: int  # in_features


def quantize(*weights: Tensor) -> Quantized:
    """Rounds weights (out_features, in_features) that share an input to 8 bits, and stacks them."""
    parts = [quantize_one(weight.detach().float()) for weight in weights]
    if len(parts) == 1:
        return parts[0]
    return Quantized(
        torch.cat([part.numbers for part in parts]), torch.cat([part.scales for part in parts]), parts[0].inputs
    )


def quantize_one(weight: Tensor) -> Quantized:
    """Rounds a weight, with the kernel where possible."""
    if weight.is_cpu and weight.shape[1] % PADDING == 0 and not obstacle():
        from lm.generation.quantization_kernel import quantize_by_kernel

        return Quantized(*quantize_by_kernel(weight.contiguous()), weight.shape[1])
    return quantize_plainly(weight)


def quantize_plainly(weight: Tensor) -> Quantized:
    """Rounds a weight as the equation says."""
    scales = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)) / 127
    scales = torch.where(scales == 0, 1.0, scales)  # NaN stays
    numbers = (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    padding = -weight.shape[1] % PADDING
    return Quantized(torch.constant_pad_nd(numbers, (0, padding)) if padding else numbers, scales, weight.shape[1])


def dequantize(quantized: Quantized) -> Tensor:
    """Returns the rounded weight, (out_features, in_features), in float32."""
    return quantized.numbers[:, : quantized.inputs].float() * quantized.scales[:, None]


def round_weights(model: TransformerLM, dtype: torch.dtype) -> None:
    """Rounds the weights of all products as generation in this dtype does, and keeps them in float32."""
    for module in model.modules() if dtype != torch.float32 else ():
        if isinstance(module, Linear):
            weight = module.weight.detach()
            rounded = dequantize(quantize(weight)) if dtype == torch.int8 else weight.to(dtype).float()
            module.weight = nn.Parameter(rounded)  # anew: embeddings that share it stay as they are


def check_int8(device: torch.device) -> None:
    """Raises InputError where this device cannot generate with weights in 8 bits."""
    if device.type != "cpu":
        raise InputError(f"precision int8 on {device.type}: only the CPU has it; take bf16, or the device cpu")
    if reason := obstacle():
        raise InputError(f"precision int8: {reason}; take fp32 or bf16")
