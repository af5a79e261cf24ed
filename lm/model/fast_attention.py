"""Causal attention without the (seq, seq) scores, by operators with a backward pass of their own.

    block_attention    a block of queries at a time: what lies after a block is never computed, and the scores stay as
                       small as the cache. Short contexts on a CPU.
    torch_attention    PyTorch's fused kernels, which keep no scores at all. GPUs, and long contexts.

What is computed is attention.causal_attention, and the tests compare with it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lm.machine.torch_inside import softmax_backward
from lm.model.attention import causal_attention

BLOCK = 128  # queries; measured best, or near it, from 128 to 4096 positions
LONGEST_FOR_BLOCKS = 1024  # from here on PyTorch's kernels were faster


def choose_attention(device_type: str, context_length: int) -> str:
    """blocks on a CPU at short contexts, where they took a half to three quarters of the time; else sdpa."""
    return "blocks" if device_type == "cpu" and context_length <= LONGEST_FOR_BLOCKS else "sdpa"


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal. q, k, v: (..., seq, d_k) -> (..., seq, d_k)."""
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def block_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal. q, k, v: (..., seq, d_k) -> (..., seq, d_k)."""
    flat = ((q / math.sqrt(q.shape[-1])).flatten(0, -3), k.flatten(0, -3), v.flatten(0, -3))
    return _attend(*(x.contiguous() for x in flat))[0].view_as(q)


def spans(length: int) -> list[tuple[int, int]]:
    """Where each block of queries begins and ends."""
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _split_probabilities(flat: Tensor, texts: int, length: int) -> list[Tensor]:
    """The one tensor that holds every block's attention weights -> one view (texts, queries, keys so far) a block."""
    shapes = [(texts, end - start, end) for start, end in spans(length)]
    return [part.view(shape) for part, shape in zip(flat.split([math.prod(s) for s in shapes]), shapes, strict=True)]


@torch.library.custom_op("lm::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(n, seq, d_k) each, q scaled -> the values, weighted, and the weights, which the backward pass needs."""
    texts, length, _ = q.shape
    kept = _new_probabilities(q)
    values = []
    with torch.autocast(q.device.type, enabled=False):
        for (start, end), weights in zip(spans(length), _split_probabilities(kept, texts, length), strict=True):
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            # Only in its last columns does a block see positions after its queries.
            scores[..., start:] += torch.full_like(scores[0, :, start:], -math.inf).triu(1)
            torch.softmax(scores, dim=-1, out=weights)
            values.append(torch.bmm(weights, v[:, :end]))
    return torch.cat(values, dim=1), kept


def _new_probabilities(q: Tensor) -> Tensor:
    return q.new_empty(len(q) * sum((end - start) * end for start, end in spans(q.shape[1])))


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), _new_probabilities(q)


@torch.library.custom_op("lm::attend_backward", mutates_args=())
def _attend_backward(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, d_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """O = P V, P = softmax(Q K^T):  dV = P^T dO, dP = dO V^T, dS = P * (dP - sum(dP * P)), dQ = dS K, dK = dS^T Q."""
    texts, length, _ = q.shape
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    blocks = list(zip(spans(length), _split_probabilities(kept, texts, length), strict=True))
    with torch.autocast(q.device.type, enabled=False):
        for (start, end), weights in reversed(blocks):  # the last block reaches every key: it writes, the others add
            d_block = d_values[:, start:end]
            d_weights = torch.bmm(d_block, v[:, :end].mT)
            d_scores = softmax_backward(d_weights, weights)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :end])
            d_keys, d_vals = torch.bmm(d_scores.mT, q[:, start:end]), torch.bmm(weights.mT, d_block)
            if end == length:
                d_k, d_v = d_keys, d_vals
            else:
                d_k[:, :end] += d_keys
                d_v[:, :end] += d_vals
    return d_q, d_k, d_v


@_attend_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, d_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep_for_attend(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward_of_attend(ctx: Any, d_values: Tensor, _d_kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _attend_backward(*ctx.saved_tensors, d_values.contiguous())


_attend.register_autograd(_backward_of_attend, setup_context=_keep_for_attend)


CAUSAL_ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": causal_attention,
    "blocks": block_attention,
    "sdpa": torch_attention,
}
