"""Two faster ways to compute the cross-entropy of a language model.

    linear_cross_entropy    joins lm_head and the loss, some rows at a time, so that the (tokens, vocab_size) logits are
                            never whole in memory; the forward pass computes the gradients.
    whole_cross_entropy     takes all logits at once, for torch.compile on a GPU that has room for them.

Both compute loss.cross_entropy, and the tests compare them with it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lm.machine.operators import operator
from lm.model.plain_products import products_dtype

ROWS = 512  # rows of logits in a chunk: 10 MB of bfloat16 with a vocabulary of 10,000
KERNEL_ROWS = 2048  # in a chunk of fast_head.py: more, as each chunk goes through the weight's whole gradient in memory
GPU_LOGITS = 1 << 26  # logits in a chunk on a GPU, which wants few and large operations: 256 MB of float32
LARGEST_LOGITS = 1 / 8  # the share of a GPU's memory that whole logits, in float32, may take


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float = 0.0) -> Tensor:
    """Computes cross_entropy(x @ weight.T, targets, z_loss) over the first vocab_size rows of the weight.

    x: (..., d_model), weight: (at least vocab_size, d_model), targets: (...) -> scalar, float32. Unless gradients are
    disabled, the forward pass computes them, while it has a chunk of logits (compare Wijmans et al. 2024). The loss is
    NaN if a target is one of the other rows, as a GPU cannot raise an error without being waited for.
    """
    with_gradients = torch.is_grad_enabled()
    flat = x.to(products_dtype(x)).flatten(0, -2), weight, targets.flatten()
    loss: Tensor = _linear_cross_entropy(*flat, vocab_size, z_loss, with_gradients)[0]
    return loss


@operator("lm::linear_cross_entropy")
def _linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean loss, and the gradients of the SUM of the losses with respect to x and weight."""
    d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)  # memory that is never written to costs nothing
    loss = torch.zeros((), dtype=torch.float32, device=x.device)
    table, at_once = weight.to(x.dtype), ROWS if x.is_cpu else max(ROWS, GPU_LOGITS // len(weight))
    with torch.autocast(x.device.type, enabled=False):
        for x_chunk, chunk_targets, d_x_chunk in zip(
            *(torch.split(rows, at_once) for rows in (x, targets[:, None], d_x)), strict=True
        ):
            logits = x_chunk @ table.T
            logits[:, vocab_size:] = -math.inf
            probabilities = torch.softmax(logits, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
            # The target's probability may underflow to 0; the likeliest token's is at least 1 / vocab_size.
            maximum, log_likeliest = logits.amax(dim=-1).float(), probabilities.amax(dim=-1).log()
            behind = maximum - logits.gather(-1, chunk_targets).squeeze(-1).float()
            behind = torch.where(chunk_targets.squeeze(-1) < vocab_size, behind, torch.nan)
            loss += (behind - log_likeliest).sum()
            if z_loss:
                log_normalizer = maximum - log_likeliest
                loss += z_loss * log_normalizer.square().sum()
            if not with_gradients:
                continue
            if z_loss:
                probabilities *= (1 + 2 * z_loss * log_normalizer)[:, None]
            probabilities.scatter_add_(-1, chunk_targets, probabilities.new_full((len(x_chunk), 1), -1))
            d_logits = probabilities.to(x.dtype)
            torch.mm(d_logits, table, out=d_x_chunk)
            d_weight += d_logits.T @ x_chunk
    return loss / len(x), d_x, d_weight


@_linear_cross_entropy.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((), dtype=torch.float32), torch.empty_like(x), torch.empty_like(weight)


def keep_for_loss(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)  # of the gradients, which are only kept


def scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """Multiplies by a 0-d float32, and rounds the result alone."""
    if gradient.is_cpu:
        return gradient * scale
    # A GPU would round the scale to bfloat16 first, and so change the length of the gradient by up to 0.4 %.
    return (gradient.to(torch.promote_types(gradient.dtype, scale.dtype)) * scale).to(gradient.dtype)


@operator("lm::loss_backward")  # so that a second derivative is refused
def _loss_backward(d_loss: Tensor, d_x: Tensor, d_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Turns the gradients of the sum of the losses into those of d_loss times their mean."""
    scale = d_loss / len(d_x)
    return scaled(d_x, scale), scaled(d_weight, scale)


@_loss_backward.register_fake
def _(d_loss: Tensor, d_x: Tensor, d_weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(d_x), torch.empty_like(d_weight)


def backward_of_loss(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *_loss_backward(d_loss, *ctx.saved_tensors), None, None, None, None


_linear_cross_entropy.register_autograd(backward_of_loss, setup_context=keep_for_loss)


def keeps_logits(num_logits: int, memory: int) -> bool:
    """Tells whether the logits of a batch can be kept whole on a GPU with this many bytes of memory."""
    return 4 * num_logits <= LARGEST_LOGITS * memory


def whole_cross_entropy(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """Computes loss.cross_entropy in a form that torch.compile turns into one pass over the logits each way.

    The target's logit is picked by comparison: the gradient of gather would be another tensor as large as the logits.
    The loss is NaN if a target is no token, as a GPU cannot raise an error without being waited for.
    """
    logits = logits.float()
    maximum = logits.detach().amax(dim=-1, keepdim=True)
    shifted = logits - maximum
    log_normalizer = shifted.exp().sum(dim=-1).log()
    picked = torch.arange(logits.shape[-1], device=logits.device) == targets.unsqueeze(-1)
    losses = log_normalizer - torch.where(picked, shifted, 0.0).sum(dim=-1)
    losses = torch.where(picked.any(dim=-1), losses, torch.nan)
    if z_loss:
        losses = losses + z_loss * (log_normalizer + maximum.squeeze(-1)).square()
    return losses.mean()
