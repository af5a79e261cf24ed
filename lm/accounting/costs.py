"""Counts, from shapes alone, what a model costs: parameters, FLOPs, and memory as in the handout.

    a product of (m, n) and (n, p)    2 m n p FLOPs; the backward pass has two such products for each
    forward, a sequence of T tokens   num_layers (8 T d^2 + 4 T^2 d + 6 T d d_ff) + 2 T d vocab_size
    memory, float32                   16 bytes a parameter: itself, gradient, two moments; 4 bytes a kept activation

Everything is counted by part: a dict from the names in PARTS to numbers. A model on the device "meta" has shapes and no
weights, so that even the largest is counted at once. Source: handout, transformer_accounting and adamw_accounting. What
our own training keeps in memory is in activations.py.
"""

import math
from collections import Counter
from typing import NamedTuple

from lm.model.attention import MultiHeadSelfAttention
from lm.model.fast import kernels_do_all
from lm.model.layers import RMSNorm, SwiGLU, UngatedFeedForward
from lm.model.support import Support
from lm.model.transformer import TransformerLM
from lm.optim.muon import uses_muon
from tokenization import InputError

SUPPORT = Support(
    part="the accounting of parameters, FLOPs and memory",
    remedy="add it to lm/accounting/costs.py, and to the formulas for torch.compile in activations.py",
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
# scores: Q K^T, softmax, and the weights times V. head: lm_head and the loss.
PARTS = ("embeddings", "norms", "projections", "scores", "feed-forward", "head")
OWNERS = {**dict.fromkeys(("token_embeddings", "bigrams", "value_embeddings"), "embeddings"), "lm_head": "head"}
OWNERS |= {"smear": "norms", "skips": "norms", "attn": "projections", "ffn": "feed-forward"}

GPT2 = {"vocab_size": 50257, "context_length": 1024}
PRESETS: dict[str, dict[str, int]] = {
    "gpt2-small": GPT2 | {"d_model": 768, "num_layers": 12, "num_heads": 12},
    "gpt2-medium": GPT2 | {"d_model": 1024, "num_layers": 24, "num_heads": 16},
    "gpt2-large": GPT2 | {"d_model": 1280, "num_layers": 36, "num_heads": 20},
    "gpt2-xl": GPT2 | {"d_model": 1600, "num_layers": 48, "num_heads": 25},
    "gpt2-xl-16k": GPT2 | {"d_model": 1600, "num_layers": 48, "num_heads": 25, "context_length": 16384},
    "tinystories": {"vocab_size": 10000, "context_length": 256, "d_model": 512, "num_layers": 4, "num_heads": 16}
    | {"d_ff": 1344},
}
EDITIONS = (2025, 2026)


def preset(name: str, edition: int = 2026) -> dict[str, int]:
    """Returns the settings of a preset; GPT-2's d_ff is 4 d_model in the handout of 2025, SwiGLU's default in 2026."""
    settings = PRESETS[name]
    d_model = settings["d_model"]
    return {"d_ff": 4 * d_model if edition == 2025 else SwiGLU.default_d_ff(d_model)} | settings


def part_of(name: str) -> str:
    """Returns the part that a parameter belongs to: "layers.0.attn.q_proj.weight" -> "projections"."""
    words = name.split(".")
    if any(word.startswith("ln") or "norm" in word for word in words):
        return "norms"
    return next(OWNERS[word] for word in words if word in OWNERS)


def parameters_by_part(model: TransformerLM) -> dict[str, int]:
    """Counts the parameters (not bytes) of each part; a weight that two parts share counts in the first."""
    SUPPORT.check(model)
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


class Product(NamedTuple):
    """A matrix product of the forward pass: (rows, inner) by (inner, columns)."""

    part: str
    name: str
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns


def matrix_products(model: TransformerLM, context_length: int | None = None) -> dict[Product, int]:
    """Counts how often each product is computed for one sequence of context_length tokens (default: the model's).

    As in the handout, attention counts every query with every key, though the causal half would do. The padding of the
    head does not count.
    """
    SUPPORT.check(model)
    length = context_length or model.context_length
    d_model = model.token_embeddings.weight.shape[1]
    times: Counter[Product] = Counter()
    for module in model.modules():
        if isinstance(module, MultiHeadSelfAttention):
            for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
                times[Product("projections", name, length, d_model, d_model)] += 1
            d_k = d_model // module.num_heads
            times[Product("scores", "queries by keys", length, d_k, length)] += module.num_heads
            times[Product("scores", "weights by values", length, length, d_k)] += module.num_heads
        elif isinstance(module, SwiGLU | UngatedFeedForward):
            for name, weight in module.named_parameters():
                d_out, d_in = weight.shape
                times[Product("feed-forward", name.removesuffix(".weight"), length, d_in, d_out)] += 1
    times[Product("head", "lm_head", length, d_model, model.vocab_size)] += 1
    return times


def forward_flops(model: TransformerLM, context_length: int | None = None) -> dict[str, int]:
    """Counts the FLOPs of the matrix products for one sequence of context_length tokens (default: the model's)."""
    flops = dict.fromkeys(PARTS, 0)
    for product, times in matrix_products(model, context_length).items():
        flops[product.part] += product.flops * times
    return flops


def forward_flops_per_token(model: TransformerLM, context_length: int | None = None) -> int:
    """Counts the FLOPs for one token of a sequence of context_length tokens (default: the model's)."""
    return sum(forward_flops(model, context_length).values()) // (context_length or model.context_length)


def training_flops_per_token(model: TransformerLM, context_length: int | None = None) -> int:
    """Counts the FLOPs of forward and backward pass for one token, 3 times forward; recomputation does not count.

    context_length: of the sequence that the token is in (default: the model's).
    """
    return 3 * forward_flops_per_token(model, context_length)


def adamw_flops(num_parameters: int) -> int:
    """Counts the FLOPs of one optimizer step by the handout's formulas: 14 for each parameter.

    m: 3 (two products, a sum); v: 4 (three products, a sum); weight decay: 2; the update: 5 (root, + eps, quotient,
    product, difference). What is computed once a step is negligible.
    """
    return 14 * num_parameters


def handout_activations(model: TransformerLM, edition: int = 2026) -> dict[str, int]:
    """Counts the activations (not bytes) that the handout takes as kept for one sequence of the context length.

    These are: norms, Q K V, Q K^T, softmax, the weighted sum, the output projection, the feed-forward network, the
    logits and their cross-entropy. The edition of 2025 counts a network of two products, though its model has three.
    """
    SUPPORT.check(model)
    length, d_model = model.context_length, model.token_embeddings.weight.shape[1]
    kept = dict.fromkeys(PARTS, 0)
    kept["head"] = 2 * length * model.vocab_size
    for module in model.modules():
        if isinstance(module, RMSNorm):
            kept["norms"] += length * d_model
        elif isinstance(module, MultiHeadSelfAttention):
            kept["projections"] += 4 * length * d_model
            kept["scores"] += 2 * module.num_heads * length**2 + length * d_model
        elif isinstance(module, SwiGLU | UngatedFeedForward):
            wide = 4 if isinstance(module, SwiGLU) and edition == 2026 else 2
            kept["feed-forward"] += length * (wide * len(module.w1.weight) + d_model)
    return kept


def num_moments(model: TransformerLM, optimizer: str = "adamw") -> int:
    """Counts the numbers that the optimizer keeps: two for each parameter, or one where Muon updates it.

    NorMuon keeps one more for each row.
    """
    matrices = [weight for name, weight in model.named_parameters() if uses_muon(name, weight)]
    kept = {"adamw": 2 * model.num_parameters()}
    kept["muon"] = kept["adamw"] - sum(weight.numel() for weight in matrices)
    kept["normuon"] = kept["muon"] + sum(map(len, matrices))
    if optimizer not in kept:
        raise InputError(
            f"the accounting of memory does not know what optimizer {optimizer} keeps, only {' or '.join(kept)};"
            " add it to lm/accounting/costs.py"
        )
    return kept[optimizer]


def state_bytes(model: TransformerLM, optimizer: str = "adamw", averaged: bool = False) -> dict[str, int]:
    """Returns the bytes of parameters, gradients and optimizer state, in float32, whatever the batch.

    averaged: count the averaged weights, too.
    """
    weights = 4 * model.num_parameters()
    state = {"parameters": weights, "gradients": weights, "optimizer state": 4 * num_moments(model, optimizer)}
    return state | ({"averaged weights": weights} if averaged else {})


def largest_batch(memory: float, fixed: float, per_sequence: float) -> int:
    """Returns the largest batch that fits: bytes of memory, of what any batch needs, and of each sequence."""
    return max(0, math.floor((memory - fixed) / per_sequence))


def training_seconds(model: TransformerLM, num_tokens: float, peak: float, mfu: float) -> float:
    """Estimates the seconds of a training. peak: FLOP/s of all devices; mfu: the share of them that is used."""
    return training_flops_per_token(model) * num_tokens / (peak * mfu)


def worth_compiling(model: TransformerLM, num_tokens: float, device_type: str, attention: str) -> bool:
    """Tells whether a run, by a rough guess at the device's speed, takes the minutes that make compiling pay.

    attention: one of CAUSAL_ATTENTIONS. Where our own kernels compute all that lies between the products, they leave
    nothing to a compiler. Without them, compiling the demo took 45 s on two cores; its steps became a quarter shorter.
    """
    if device_type == "cpu" and kernels_do_all(model, attention):
        return False
    speed, seconds = (1e11, 240) if device_type == "cpu" else (1e14, 120)
    return num_tokens * training_flops_per_token(model) / speed > seconds
