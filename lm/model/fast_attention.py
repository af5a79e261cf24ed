"""Two faster ways to compute causal attention, without the whole (seq, seq) matrix of scores.

    block_attention    takes a block of queries at a time: keys after the block are never read, and its scores fit the
                       cache. Where all scores do, there is one block. It has a backward pass of its own. Best for
                       short contexts on a CPU.
    torch_attention    calls PyTorch's fused kernels, which keep no scores at all. Best for GPUs and long contexts.

Both compute attention.causal_attention, and the tests compare them with it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lm.machine.operators import operator
from lm.machine.torch_inside import softmax_backward
from lm.model.attention import causal_attention

BLOCK = 128  # queries; the fastest, or nearly, at contexts of 128 to 4096 tokens
WHOLE = 1 << 22  # bytes: where all attention weights take less, fewer products gain more than skipped keys
LONGEST_FOR_BLOCKS = 1024  # tokens; PyTorch's kernels were faster at longer contexts


def choose_attention(device_type: str, context_length: int) -> str:
    """Returns "blocks" for short contexts on a CPU, where it took a half to three quarters of the time, else "sdpa"."""
    return "blocks" if device_type == "cpu" and context_length <= LONGEST_FOR_BLOCKS else "sdpa"


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes causal attention by PyTorch's fused kernels: q, k, v (..., seq, d_k) -> (..., seq, d_k)."""
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def block_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes causal attention, a block of queries at a time: q, k, v (..., seq, d_k) -> (..., seq, d_k).

    All three are of one shape, with at least one leading dimension.
    """
    flat = ((q / math.sqrt(q.shape[-1])).flatten(0, -3), k.flatten(0, -3), v.flatten(0, -3))
    values: Tensor = _attend(*(x.contiguous() for x in flat))[0]
    return values.view_as(q)


def spans(n: int, length: int, size: int) -> list[tuple[int, int]]:
    """Returns where each block of queries begins, and where it ends (exclusive).

    n: the heads of all sequences together; size: bytes of a number.
    """
    block = BLOCK if size * n * length**2 >= WHOLE else max(1, length)
    return [(start, min(start + block, length)) for start in range(0, length, block)]


def _split_probabilities(flat: Tensor, n: int, length: int) -> list[Tensor]:
    """Views the flat tensor of all attention weights block by block: each (n, queries, keys up to the block's end)."""
    shapes = [(n, end - start, end) for start, end in spans(n, length, flat.element_size())]
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def new_probabilities(q: Tensor) -> Tensor:
    """Returns room for the attention weights of q (n, seq, d_k), flat."""
    blocks = spans(len(q), q.shape[1], q.element_size())
    return q.new_empty(len(q) * sum((end - start) * end for start, end in blocks))


def attend(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, kernels: bool = False) -> Tensor:
    """Returns the weighted values, and stores the weights in `kept`; q, k, v: (n, seq, d_k), with q scaled.

    kernels: whether softmax is computed by kernels/softmax.py.
    """
    if kernels:
        from lm.model.kernels.softmax import causal_softmax  # needs llvmlite
    n, length, _ = q.shape
    values = torch.empty_like(q)
    blocks = spans(n, length, q.element_size())
    for (start, end), weights in zip(blocks, _split_probabilities(kept, n, length), strict=True):
        if kernels:
            torch.bmm(q[:, start:end], k[:, :end].mT, out=weights)
            causal_softmax(weights, start)
        else:
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            # Only the block's last columns hold keys that come after some of its queries.
            scores[..., start:] += torch.full_like(scores[0, :, start:], -math.inf).triu(1)
            torch.softmax(scores, dim=-1, out=weights)
        torch.bmm(weights, v[:, :end], out=values[:, start:end])
    return values


def attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    d_values: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    kernels: bool = False,
) -> None:
    """Stores the gradients of O = P V, P = softmax(S), S = Q K^T in d_q, d_k and d_v, block by block.

    dV = P^T dO,  dP = dO V^T,  dS = P * (dP - sum(dP * P)),  dQ = dS K,  dK = dS^T Q
    """
    if kernels:
        from lm.model.kernels.softmax import causal_softmax_backward
    n, length, _ = q.shape
    blocks = list(zip(spans(n, length, q.element_size()), _split_probabilities(kept, n, length), strict=True))
    for (start, end), weights in reversed(blocks):  # the last block reads every key: it writes, the others add
        d_block = d_values[:, start:end]
        d_scores = torch.bmm(d_block, v[:, :end].mT)
        if kernels:
            causal_softmax_backward(d_scores, weights, start)
        else:
            d_scores = softmax_backward(d_scores, weights)
        torch.bmm(d_scores, k[:, :end], out=d_q[:, start:end])
        if end == length:
            torch.bmm(d_scores.mT, q[:, start:end], out=d_k)
            torch.bmm(weights.mT, d_block, out=d_v)
        else:
            d_k[:, :end] += torch.bmm(d_scores.mT, q[:, start:end])
            d_v[:, :end] += torch.bmm(weights.mT, d_block)


@operator("lm::attend")
def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weighted values, and the weights for the backward pass; q, k, v: (n, seq, d_k), with q scaled."""
    kept = new_probabilities(q)
    with torch.autocast(q.device.type, enabled=False):
        return attend(q, k, v, kept), kept


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), new_probabilities(q)


@operator("lm::attend_backward")
def _attend_backward(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, d_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    with torch.autocast(q.device.type, enabled=False):
        attend_backward(q, k, v, kept, d_values, d_q, d_k, d_v)
    return d_q, d_k, d_v


@_attend_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, d_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep_for_attend(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)  # of the weights, which are only kept


def _backward_of_attend(ctx: Any, d_values: Tensor, _d_kept: Tensor) -> Any:
    return _attend_backward(*ctx.saved_tensors, d_values.contiguous())


_attend.register_autograd(_backward_of_attend, setup_context=_keep_for_attend)


CAUSAL_ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": causal_attention,
    "blocks": block_attention,
    "sdpa": torch_attention,
}
