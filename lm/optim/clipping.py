"""Gradient clipping: bounds the norm of the gradient, so that one bad batch cannot throw the weights off course.

g <- g max_norm / (|g| + 1e-6)  where |g| >= max_norm       |g|: the l2 norm over all parameters (handout, section 4)
"""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lm.optim.kernel_loading import kernel_for


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float, kernel: bool = False) -> Tensor:
    """Scales all gradients by one factor, in place, so that their joint l2 norm is at most max_norm.

    Returns the norm before clipping, as a 0-d tensor, so that nothing waits for a GPU. Parameters without a gradient
    are ignored. A norm of NaN leaves all gradients as they are, even the finite ones, which torch's own clipping turns
    into NaN: whoever steps must look at the norm. kernel: gradients that are in float32 on a CPU are clipped by
    clipping_kernel.py, where that can be compiled.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    if kernel and (kernels := kernel_for("clipping_kernel", gradients)):
        norm: Tensor = kernels.clip(gradients, max_norm)
        return norm
    norm = joint_norm(gradients)
    torch._foreach_mul_(gradients, torch.where(norm >= max_norm, max_norm / (norm + 1e-6), 1.0))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # summed over the shards


def joint_norm(tensors: list[Tensor]) -> Tensor:
    """Returns the l2 norm of all elements of the tensors, as if they were one vector: a 0-d tensor.

    It is a float32, or a float64 where one of the tensors is.
    """
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    norm: Tensor = torch.stack(torch._foreach_norm(tensors, dtype=dtype)).norm()
    return norm
