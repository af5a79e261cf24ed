"""A bound on the length of the whole gradient: one wild batch must not throw the weights off course.

g <- g min(1, max_norm / (|g| + 1e-6))          |g|: over all gradients at once (handout, section 4)
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients together, in place, so that their joint l2 norm is at most max_norm.

    Returns the norm before clipping, as a tensor: nothing here waits for a GPU. Parameters without a gradient
    are passed over.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    norm = joint_norm(gradients)
    torch._foreach_mul_(gradients, torch.where(norm >= max_norm, max_norm / (norm + 1e-6), 1.0))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # of sharded gradients, the whole


def joint_norm(tensors: list[Tensor]) -> Tensor:
    """The l2 norm of all their numbers together, a float32 scalar."""
    return torch.stack(torch._foreach_norm(tensors, dtype=torch.float32)).norm()
