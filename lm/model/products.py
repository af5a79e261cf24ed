"""Multiplies by a weight, y = x W^T, in the layout with which AMX is fastest; joins several weights in bfloat16."""

import torch
from torch import Tensor

from lm.machine.resources import has_amx
from lm.machine.transposing import transposed


def joined(weights: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Returns the rows of all weights, one below the other, in this dtype; a single weight of that dtype as it is."""
    if len(weights) == 1 and weights[0].dtype == dtype:
        return weights[0]
    whole = weights[0].new_empty(sum(map(len, weights)), weights[0].shape[1], dtype=dtype)
    for part, weight in zip(torch.split(whole, [len(weight) for weight in weights]), weights, strict=True):
        part.copy_(weight)
    return whole


def weight_gradient(d_y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Computes dW = dY^T X in this dtype: d_y (rows, out), x (rows, in), both contiguous -> (out, in).

    A left matrix that is transposed halves the speed of AMX, so that the narrower one is transposed in memory first.
    """
    if d_y.dtype != torch.bfloat16 or not has_amx():
        return (d_y.T @ x).to(dtype)
    if x.shape[1] <= d_y.shape[1]:
        return transposed(transposed(x) @ d_y, dtype)
    return (transposed(d_y) @ x).to(dtype)
