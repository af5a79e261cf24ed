"""lm_head and the cross-entropy as one operator on a CPU: softmax, loss and gradient in one pass over the logits.

It computes what fast_loss.linear_cross_entropy does. A kernel (kernels/loss.py) reads a row of logits while it is in
the cache, and puts its gradient in its place; the two products of the backward pass follow at once.
"""

import torch
from torch import Tensor

from lm.machine.operators import operator
from lm.machine.resources import has_amx
from lm.machine.transposing import transposed
from lm.model.fast_loss import KERNEL_ROWS, backward_of_loss, keep_for_loss
from lm.model.kernels.loss import losses_of
from lm.model.plain_products import products_dtype
from lm.model.products import joined


def kernel_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float = 0.0) -> Tensor:
    """Computes fast_loss.linear_cross_entropy by a kernel: float32 or bfloat16, on a CPU; targets in int64."""
    flat = x.to(products_dtype(x)).flatten(0, -2).contiguous(), weight, targets.flatten().contiguous()
    loss: Tensor = _kernel_cross_entropy(*flat, vocab_size, z_loss, torch.is_grad_enabled())[0]
    return loss


@operator("lm::kernel_cross_entropy")
def _kernel_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean loss, and the gradients of the SUM of the losses with respect to x and weight."""
    d_x, losses = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)
    # The product with the transposed x is the faster one, and its result is turned once, at the end.
    turned = x.dtype == torch.bfloat16 and has_amx()
    d_weight = torch.empty_like(weight)
    with torch.autocast("cpu", enabled=False):
        table = joined([weight], x.dtype)
        for start in range(0, len(x), KERNEL_ROWS):
            rows = slice(start, start + KERNEL_ROWS)
            logits = x[rows] @ table.T
            losses[rows] = losses_of(logits, targets[rows], vocab_size, z_loss, with_gradients)
            if with_gradients:
                torch.mm(logits, table, out=d_x[rows])
                part = transposed(x[rows]) @ logits if turned else logits.T @ x[rows]
                d_weight = d_weight.to(weight.dtype).add_(part) if start else part
        if with_gradients and turned:
            d_weight = transposed(d_weight, weight.dtype)
        return losses.mean(), d_x, d_weight.to(weight.dtype)


@_kernel_cross_entropy.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((), dtype=torch.float32), torch.empty_like(x), torch.empty_like(weight)


_kernel_cross_entropy.register_autograd(backward_of_loss, setup_context=keep_for_loss)
