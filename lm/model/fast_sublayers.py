"""A block's sublayers on a CPU, each as one operator with a backward pass of its own, made of products and kernels.

    normalize        h = RMSNorm(x)                       add_normalize   z = x + y,  h = RMSNorm(z)
    self_attention   a = W_o attention(W_q h, W_k h, W_v h + u), with rotary embeddings
    swiglu           f = W_2 (SiLU(W_1 h) * W_3 h)

What torch computes in many passes over memory, kernels compute in one (kernels/). Weights that read the same input are
multiplied as one; under autocast each is rounded once a step. x, y, z are float32; h, a and f of the products' dtype. u
are value embeddings, for models that have them.
"""

from typing import Any

import torch
from torch import Tensor

from lm.machine.operators import operator
from lm.machine.torch_inside import fused_attention, fused_attention_backward
from lm.machine.transposing import transpose_bands
from lm.model.fast_attention import attend, attend_backward, new_probabilities
from lm.model.kernels import norm
from lm.model.kernels.gate import gate, gate_backward, gate_rows, gate_rows_backward
from lm.model.kernels.heads import from_heads, move_heads, to_heads
from lm.model.kernels.loss import loss_rows
from lm.model.kernels.norm import normalize_rows, normalize_rows_backward
from lm.model.kernels.softmax import causal_softmax_rows, causal_softmax_rows_backward
from lm.model.products import joined, weight_gradient
from tokenization.native.compiling import load

KERNELS = (
    normalize_rows,
    normalize_rows_backward,
    move_heads,
    causal_softmax_rows,
    causal_softmax_rows_backward,
    gate_rows,
    gate_rows_backward,
    loss_rows,
    transpose_bands,
)


def load_kernels() -> None:
    """Compiles all kernels, or reads them from the cache."""
    for kernel in KERNELS:
        load(kernel)


def _keep(ctx: Any, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)  # of outputs that are only kept, and may be large


# --- RMSNorm ---------------------------------------------------------------------------------------------------------


@operator("lm::normalize")
def normalize(x: Tensor, gains: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns h, in this dtype, and what its backward pass needs; x: (..., n), float32."""
    _, h, factors = norm.normalize(x.contiguous(), None, gains.contiguous(), eps, dtype)
    return h, factors


@normalize.register_fake
def _(x: Tensor, gains: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.numel() // x.shape[-1])


@operator("lm::add_normalize")
def add_normalize(x: Tensor, y: Tensor, gains: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns z, h, and what the backward pass needs; y: like x, float32 or bfloat16."""
    z, h, factors = norm.normalize(x.contiguous(), y.contiguous(), gains.contiguous(), eps, dtype)
    assert z is not None
    return z, h, factors


@add_normalize.register_fake
def _(x: Tensor, y: Tensor, gains: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype), x.new_empty(x.numel() // x.shape[-1])


@operator("lm::normalize_backward")
def _normalize_backward(
    d: Tensor | None, d_h: Tensor, z: Tensor, gains: Tensor, factors: Tensor, halved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dz, dz in bfloat16 (empty unless `halved`), and the gradient of the gains."""
    d = None if d is None else d.contiguous()
    d_h, z, gains = (x.contiguous() for x in (d_h, z, gains))
    d_z, d_y, d_gains = norm.normalize_backward(d, d_h, z, gains, factors, halved)
    return d_z, d_z.new_empty(0) if d_y is None else d_y, d_gains


@_normalize_backward.register_fake
def _(
    d: Tensor | None, d_h: Tensor, z: Tensor, gains: Tensor, factors: Tensor, halved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_y = z.new_empty(z.shape, dtype=torch.bfloat16) if halved else z.new_empty(0)
    return z.new_empty(z.shape), d_y, torch.empty_like(gains)


def _keep_for_normalize(ctx: Any, inputs: Any, output: Any) -> None:
    x, gains, _, _ = inputs
    _keep(ctx, x, gains, output[1])


def _backward_of_normalize(ctx: Any, d_h: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    d_x, _, d_gains = _normalize_backward(None, d_h, *ctx.saved_tensors, False)
    return d_x, d_gains, None, None


def _keep_for_add(ctx: Any, inputs: Any, output: Any) -> None:
    _, y, gains, _, _ = inputs
    ctx.halved = y.dtype == torch.bfloat16
    _keep(ctx, output[0], gains, output[2])


def _backward_of_add(ctx: Any, d_z: Tensor | None, d_h: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    d_x, d_y, d_gains = _normalize_backward(d_z, d_h, *ctx.saved_tensors, ctx.halved)
    return d_x, d_y if ctx.halved else d_x, d_gains, None, None


normalize.register_autograd(_backward_of_normalize, setup_context=_keep_for_normalize)
add_normalize.register_autograd(_backward_of_add, setup_context=_keep_for_add)


# --- attention -------------------------------------------------------------------------------------------------------


@operator("lm::self_attention")
def self_attention(
    h: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    u: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns a, and what the backward pass needs: two weights in h's dtype, q, k and v, the weights, and the heads.

    h, u: (batch, seq, d_model); cos, sin: (seq, d_k / 2), float32, or empty where nothing is rotated. fused: attention
    by PyTorch's kernel, which keeps a sum for each query instead of the weights.
    """
    batch, seq, d_model = h.shape
    with torch.autocast("cpu", enabled=False):
        w_in, w_out = joined([w_q, w_k, w_v], h.dtype), w_o.to(h.dtype, copy=True)
        rows = (h.reshape(-1, d_model) @ w_in.T).view(batch, seq, -1)
        if u is not None:
            rows[..., 2 * d_model :] += u
        qkv = to_heads(rows, 3, num_heads, _angles(cos, sin, seq, d_model // num_heads))
        if fused:
            values, kept = fused_attention(*qkv)
        else:
            q, k, v = qkv.flatten(1, 2)
            kept = new_probabilities(q)
            values = attend(q, k, v, kept, kernels=True)
        heads = from_heads(values.reshape(1, batch, num_heads, seq, -1))
        a = h.new_empty(h.shape)  # not a view of the product, against which FSDP warns
        torch.mm(heads.view(-1, d_model), w_out.T, out=a.view(-1, d_model))
    return a, w_in, w_out, qkv, kept, heads


def _angles(cos: Tensor, sin: Tensor, seq: int, d_k: int) -> tuple[Tensor, Tensor]:
    if cos.numel():
        return cos.contiguous(), sin.contiguous()
    return cos.new_ones(seq, d_k // 2), cos.new_zeros(seq, d_k // 2)


@self_attention.register_fake
def _(
    h: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    u: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, seq, d_model = h.shape
    qkv = h.new_empty(3, batch, num_heads, seq, d_model // num_heads)
    sums = h.new_empty(batch, num_heads, seq, dtype=torch.float32)
    kept = sums if fused else new_probabilities(qkv[0].flatten(0, 1))
    w_in, w_out = h.new_empty(3 * d_model, d_model), h.new_empty(d_model, d_model)
    return h.new_empty(h.shape), w_in, w_out, qkv, kept, h.new_empty(h.shape)


@operator("lm::self_attention_backward")
def _self_attention_backward(
    d_a: Tensor,
    h: Tensor,
    cos: Tensor,
    sin: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    qkv: Tensor,
    kept: Tensor,
    heads: Tensor,
    dtype: torch.dtype,
    with_u: bool,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns dh, in this dtype the gradients of the weights of q, k and v, as one, and of w_o, and du or nothing."""
    _, batch, num_heads, seq, width = qkv.shape
    flat = d_a.reshape(batch * seq, -1)
    with torch.autocast("cpu", enabled=False):
        d_out = weight_gradient(flat, heads.view(flat.shape), dtype)
        if fused:
            by_head = (batch, seq, num_heads, width)
            d_values, values = (x.view(by_head).transpose(1, 2) for x in (flat @ w_out, heads))
            q, k, v = qkv
            d_qkv = torch.stack(fused_attention_backward(d_values, q, k, v, values, kept))
        else:
            d_heads = to_heads((flat @ w_out).view(batch, seq, -1), 1, num_heads)
            d_qkv = torch.empty_like(qkv)
            q, k, v = qkv.flatten(1, 2)
            d_q, d_k, d_v = d_qkv.flatten(1, 2)
            attend_backward(q, k, v, kept, d_heads.view(-1, seq, width), d_q, d_k, d_v, kernels=True)
        d_rows = from_heads(d_qkv, _angles(cos, sin, seq, width)).view(batch * seq, -1)
        d_in = weight_gradient(d_rows, h.reshape(batch * seq, -1), dtype)
        d_h = (d_rows @ w_in).view(h.shape)
        d_u = d_rows[:, 2 * h.shape[-1] :].reshape(h.shape).clone() if with_u else h.new_empty(0)
    return d_h, d_in, d_out, d_u


@_self_attention_backward.register_fake
def _(_d_a: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, _, w_in, w_out, *_, dtype, with_u, _ = rest
    d_in, d_out = w_in.new_empty(w_in.shape, dtype=dtype), w_out.new_empty(w_out.shape, dtype=dtype)
    return h.new_empty(h.shape), d_in, d_out, h.new_empty(h.shape if with_u else 0)


def _keep_for_attention(ctx: Any, inputs: Any, output: Any) -> None:
    h, w_q, _, _, _, u, cos, sin, _, fused = inputs
    ctx.dtype, ctx.dtype_u, ctx.fused = w_q.dtype, None if u is None else u.dtype, fused
    _keep(ctx, h, cos, sin, *output[1:])


def _backward_of_attention(ctx: Any, d_a: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    how = ctx.dtype, ctx.dtype_u is not None, ctx.fused
    d_h, d_in, d_out, d_u = _self_attention_backward(d_a, *ctx.saved_tensors, *how)
    return d_h, *d_in.chunk(3), d_out, None if ctx.dtype_u is None else d_u.to(ctx.dtype_u), None, None, None, None


self_attention.register_autograd(_backward_of_attention, setup_context=_keep_for_attention)


# --- the feed-forward network ----------------------------------------------------------------------------------------


@operator("lm::swiglu")
def swiglu(h: Tensor, w_1: Tensor, w_2: Tensor, w_3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns f, and what the backward pass needs: two weights in h's dtype, and the inputs of gate and product."""
    with torch.autocast("cpu", enabled=False):
        w_in, w_out = joined([w_1, w_3], h.dtype), w_2.to(h.dtype, copy=True)
        wide = h.reshape(-1, h.shape[-1]) @ w_in.T
        gated = gate(wide)
        f = h.new_empty(h.shape)  # not a view of the product, against which FSDP warns
        torch.mm(gated, w_out.T, out=f.view(-1, h.shape[-1]))
    return f, w_in, w_out, wide, gated


@swiglu.register_fake
def _(h: Tensor, w_1: Tensor, w_2: Tensor, w_3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (d_ff, d_model), rows = w_1.shape, h.numel() // h.shape[-1]
    w_in, w_out = h.new_empty(2 * d_ff, d_model), h.new_empty(d_model, d_ff)
    return h.new_empty(h.shape), w_in, w_out, h.new_empty(rows, 2 * d_ff), h.new_empty(rows, d_ff)


@operator("lm::swiglu_backward")
def _swiglu_backward(
    d_f: Tensor, h: Tensor, w_in: Tensor, w_out: Tensor, wide: Tensor, gated: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dh, and in this dtype the gradients of w_1 and w_3, as one, and of w_2."""
    flat = d_f.reshape(len(wide), -1)
    with torch.autocast("cpu", enabled=False):
        d_out = weight_gradient(flat, gated, dtype)
        d_wide = gate_backward(wide, flat @ w_out)
        d_in = weight_gradient(d_wide, h.reshape(len(wide), -1), dtype)
        d_h = (d_wide @ w_in).view(h.shape)
    return d_h, d_in, d_out


@_swiglu_backward.register_fake
def _(
    d_f: Tensor, h: Tensor, w_in: Tensor, w_out: Tensor, wide: Tensor, gated: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return h.new_empty(h.shape), w_in.new_empty(w_in.shape, dtype=dtype), w_out.new_empty(w_out.shape, dtype=dtype)


def _keep_for_swiglu(ctx: Any, inputs: Any, output: Any) -> None:
    h, w_1, _, _ = inputs
    ctx.dtype = w_1.dtype
    _keep(ctx, h, *output[1:])


def _backward_of_swiglu(ctx: Any, d_f: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    d_h, d_in, d_out = _swiglu_backward(d_f, *ctx.saved_tensors, ctx.dtype)
    d_1, d_3 = d_in.chunk(2)
    return d_h, d_1, d_out, d_3


swiglu.register_autograd(_backward_of_swiglu, setup_context=_keep_for_swiglu)
