"""Makes a model faster in place, computing the same function.

    speed_up(model, "blocks")    the model is still a TransformerLM, with the same weights under the same names

Each module of a type below becomes an instance of a faster subclass; all others stay as they are. A setting or module
that is not known here is refused, as a path that ignored it would compute another model. The plain modules do not know
this file, and the tests compare each fast module with its plain one.

    FastEmbedding       sums its gradient in a fixed order, so that a run can be repeated.
    FastAttention       attends by fast_attention.py; optionally computes its three projections as one product.
    FastSwiGLU          optionally computes its first two products as one.
    FastTransformerLM   computes the loss by fast_loss.py.

On a CPU, kernels of our own make blocks, norms, attention, SwiGLU and loss faster still: fast_kernels.py.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lm.machine.operators import operator
from lm.model.attention import MultiHeadSelfAttention
from lm.model.fast_attention import CAUSAL_ATTENTIONS
from lm.model.fast_loss import linear_cross_entropy, whole_cross_entropy
from lm.model.layers import Embedding, SwiGLU, silu
from lm.model.plain_products import may_read
from lm.model.support import Support
from lm.model.transformer import TransformerLM, check_choice

SUPPORT = Support(
    part="the fast path",
    remedy="set model.fast to false",
    options={
        "norm_position": ("pre", "post", "none"),
        "position_encoding": ("rope", "none"),
        "feed_forward": ("swiglu", "silu", "relu2"),
        "tie_embeddings": (False, True),
        "qk_norm": (False, True),
        "embedding_skips": (False, True),
        "value_embeddings": (False, True),
        "smear": (False, True),
    },
    numbers=("bigram_rows",),
)


@operator("lm::embed")
def embed(weight: Tensor, token_ids: Tensor) -> Tensor:
    """Looks up weight[token_ids], with a gradient that is bit for bit repeatable: (rows, width), (...) -> (..., width).

    The gradient of plain indexing is summed by threads in parallel, in no fixed order, and so is what torch.compile
    makes of it: its rounding, and with it the whole run, would differ from one time to the next.
    """
    vectors = weight.new_empty((*token_ids.shape, weight.shape[-1]))  # no view of a result, of which FSDP warns
    torch.index_select(weight, 0, token_ids.flatten(), out=vectors.view(-1, weight.shape[-1]))
    return vectors


@embed.register_fake
def _(weight: Tensor, token_ids: Tensor) -> Tensor:
    return weight.new_empty((*token_ids.shape, weight.shape[-1]))


@operator("lm::embed_backward")
def _embed_backward(d_vectors: Tensor, token_ids: Tensor, rows: int) -> Tensor:
    """Computes dW_r, the sum of dY_i over all i with token_ids_i = r, in the order of i: one CPU thread sums a row."""
    d_weight: Tensor = torch.ops.aten.embedding_dense_backward(d_vectors, token_ids, rows, -1, False)
    return d_weight


@_embed_backward.register_fake
def _(d_vectors: Tensor, token_ids: Tensor, rows: int) -> Tensor:
    return d_vectors.new_empty((rows, d_vectors.shape[-1]))


def _keep_for_embed(ctx: Any, inputs: Any, output: Any) -> None:
    weight, token_ids = inputs
    ctx.rows = len(weight)
    ctx.save_for_backward(token_ids)


def _backward_of_embed(ctx: Any, d_vectors: Tensor) -> tuple[Any, None]:
    return _embed_backward(d_vectors.contiguous(), *ctx.saved_tensors, ctx.rows), None


embed.register_autograd(_backward_of_embed, setup_context=_keep_for_embed)


def joint_product(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Computes x @ w.T for each weight w, (out_features, in_features), as one product with all of them."""
    return torch.split(x @ torch.cat(weights).T, [len(weight) for weight in weights], dim=-1)


def gate_in_place(gate: Tensor, value: Tensor) -> Tensor:
    """Computes SiLU(gate) * value, without a gradient: torch's own SiLU is one pass over memory, ours two."""
    return nn.functional.silu(gate).mul_(value)


class FastEmbedding(Embedding):
    """An embedding whose gradient is summed in a fixed order."""

    def forward(self, token_ids: Tensor) -> Tensor:
        vectors: Tensor = embed(self.weight, token_ids)
        return vectors


class FastAttention(MultiHeadSelfAttention):
    """Attention by CAUSAL_ATTENTIONS[attention]; joint: the three projections are one product."""

    attention: str
    joint: bool

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        if not (self.joint and may_read(x, self.q_proj, self.k_proj, self.v_proj)):
            return super().project(x)
        return joint_product(x, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return CAUSAL_ATTENTIONS[self.attention](q, k, v)


class FastSwiGLU(SwiGLU):
    """The gated feed-forward network; joint: the products with W1 and W3 are one."""

    joint: bool

    def forward(self, x: Tensor) -> Tensor:
        if not (self.joint and may_read(x, self.w1, self.w3)):
            return super().forward(x)
        gate, value = joint_product(x, self.w1.weight, self.w3.weight)
        y: Tensor = self.w2(silu(gate) * value)
        return y


class FastTransformerLM(TransformerLM):
    """A model with a faster loss; keep_logits: in training it is computed from all logits at once, not in chunks."""

    keep_logits: bool

    def loss(self, x: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        if self.keep_logits and torch.is_grad_enabled():
            return whole_cross_entropy(self.logits(x), targets, z_loss)
        if not may_read(x, self.lm_head):
            return super().loss(x, targets, z_loss)
        return linear_cross_entropy(x, self.lm_head.weight, targets, self.vocab_size, z_loss)


FASTER: dict[type[nn.Module], type[nn.Module]] = {
    Embedding: FastEmbedding,
    MultiHeadSelfAttention: FastAttention,
    SwiGLU: FastSwiGLU,
    TransformerLM: FastTransformerLM,
}


@cache
def why_no_kernels() -> str:
    """Returns one line on why the kernels cannot be used here; "" if they can. The first call on a machine compiles."""
    try:
        from lm.model.fast_sublayers import load_kernels

        load_kernels()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # whatever LLVM raises
        return f"the kernels cannot be compiled: {' '.join(str(error).split()) or repr(error)}"
    return ""


def kernels_do_all(model: TransformerLM, attention: str) -> bool:
    """Tells whether our kernels compute what lies between the products, all but additions, of a model on a CPU."""
    settings = model.settings
    known = settings["norm_position"] == "pre" and settings["feed_forward"] == "swiglu" and not settings["qk_norm"]
    return known and attention in ("blocks", "sdpa") and not why_no_kernels()


def speed_up(
    model: TransformerLM,
    attention: str,
    joint_products: bool = False,
    keep_logits: bool = False,
    kernels: bool = False,
) -> None:
    """Makes a model faster in place; a second call changes the choices of the first.

    attention: one of CAUSAL_ATTENTIONS. joint_products: weights that read the same input are multiplied as one.
    keep_logits: the training loss is computed from all logits at once, which pays only when compiled for a GPU.
    kernels: on a CPU, kernels of our own compute what lies between the products (fast_kernels.py).
    Raises InputError for a setting or module that is not supported, and leaves the model as it was.
    """
    check_choice("attention", attention, CAUSAL_ATTENTIONS)
    SUPPORT.check(model)
    faster = FASTER
    if kernels:
        from lm.model.fast_kernels import WITH_KERNELS  # needs llvmlite

        faster = FASTER | WITH_KERNELS
    for module in model.modules():
        kind = plain_type(module)
        module.__class__ = faster.get(kind, kind)
        if isinstance(module, FastAttention):
            module.attention, module.joint = attention, joint_products
        elif isinstance(module, FastSwiGLU):
            module.joint = joint_products
        elif isinstance(module, FastTransformerLM):
            module.keep_logits = keep_logits


def plain_type(module: nn.Module) -> type[nn.Module]:
    """Returns the plain type of a module that was made faster here, and any other module's own type."""
    kind = type(module)
    made_here = kind.__module__ in (__name__, f"{__package__}.fast_kernels")
    return next(base for base in kind.__mro__ if not made_here or base.__module__ not in (__name__, kind.__module__))
