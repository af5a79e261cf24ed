"""Five additions as made by a newcomer who follows one name through the files.

Three are right in the plain model, and the metric everywhere; the export ignores its dtype. Each leaves the rest of
the project as it was. Each takes pytest's monkeypatch, and all of it is gone after the test.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.foreign_models import READERS, loaded
from lm.commands.export import FORMATS, Format
from lm.evaluation import METRICS
from lm.model import attention, fast_attention, transformer
from lm.model.attention import MultiHeadSelfAttention
from lm.model.layers import Linear
from lm.model.transformer import TransformerLM
from lm.training.optimizers import OPTIMIZERS
from tokenization import Tokenizer


def add_alibi(patch: pytest.MonkeyPatch) -> None:
    """position_encoding "alibi": scores fall with the distance, in each head by a slope of its own (Press et al. 2022).

    The bias is in the plain attention: a new entry of POSITION_ENCODINGS, slopes in each attention, and their use.
    """
    patch.setattr(transformer, "POSITION_ENCODINGS", (*transformer.POSITION_ENCODINGS, "alibi"))
    build, forward, plain = TransformerLM.__init__, MultiHeadSelfAttention.forward, attention.causal_attention
    slopes_at_hand: list[Tensor | None] = [None]

    @functools.wraps(build)
    def build_with_slopes(self: TransformerLM, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        for layer in self.layers if self.settings["position_encoding"] == "alibi" else ():
            layer.attn.slopes = 2.0 ** -torch.arange(1, self.num_heads + 1)

    def forward_with_slopes(self: MultiHeadSelfAttention, x: Tensor, *others: Any) -> Tensor:
        slopes_at_hand[0] = getattr(self, "slopes", None)
        return forward(self, x, *others)

    def biased_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        slopes = slopes_at_hand[0]
        if slopes is None:
            return plain(q, k, v)
        positions = torch.arange(q.shape[-2])
        distances = (positions[:, None] - positions).float()
        scores = (q / q.shape[-1] ** 0.5) @ k.mT - slopes[:, None, None] * distances
        return torch.softmax(scores.masked_fill(distances < 0, -torch.inf), dim=-1) @ v

    patch.setattr(TransformerLM, "__init__", build_with_slopes)
    patch.setattr(MultiHeadSelfAttention, "forward", forward_with_slopes)
    patch.setattr(attention, "causal_attention", biased_attention)
    patch.setitem(fast_attention.CAUSAL_ATTENTIONS, "plain", biased_attention)


def add_grouped_queries(patch: pytest.MonkeyPatch) -> None:
    """num_kv_heads: several heads of queries share one of keys and values (Ainslie et al. 2023).

    A new setting, smaller projections, and heads that are repeated where they are split.
    """
    build = TransformerLM.__init__
    signature = inspect.signature(build)
    new = inspect.Parameter("num_kv_heads", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=int | None)

    @functools.wraps(build)
    def build_grouped(self: TransformerLM, *arguments: Any, num_kv_heads: int | None = None, **settings: Any) -> None:
        build(self, *arguments, **settings)
        self.settings["num_kv_heads"] = num_kv_heads
        for layer in self.layers if num_kv_heads else ():
            for name in ("k_proj", "v_proj"):
                width, device = self.num_heads * self.d_k, settings.get("device")
                setattr(layer.attn, name, Linear(width, num_kv_heads * self.d_k, device))

    def split_and_repeat(self: MultiHeadSelfAttention, x: Tensor) -> Tensor:
        d_k = len(self.q_proj.weight) // self.num_heads
        heads = x.unflatten(-1, (-1, d_k)).transpose(-3, -2)
        return heads.repeat_interleave(self.num_heads // heads.shape[-3], dim=-3)

    build_grouped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), new])  # type: ignore[attr-defined]
    patch.setattr(TransformerLM, "__init__", build_grouped)
    patch.setattr(MultiHeadSelfAttention, "split_heads", split_and_repeat)


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a momentum (Chen et al. 2023)."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float, **_: Any):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                m = self.state[weight].setdefault("m", torch.zeros_like(weight))
                direction = m.lerp(weight.grad, 1 - group["betas"][0]).sign()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                m.lerp_(weight.grad, 1 - group["betas"][1])
        return loss


def add_accuracy(patch: pytest.MonkeyPatch) -> None:
    """metric "accuracy": the share of tokens that are the likeliest one; an entry in METRICS."""
    patch.setitem(METRICS, "accuracy", lambda logits, targets: logits.argmax(dim=-1) == targets)


def add_lion(patch: pytest.MonkeyPatch, kind: type[Lion] = Lion) -> None:
    """optimizer "lion": a class, and an entry in OPTIMIZERS, which is AdamW's but for the class."""
    make, settings = (lambda task, **settings: kind(task.parameters(), **settings)), OPTIMIZERS["adamw"][1]
    patch.setitem(OPTIMIZERS, "lion", (make, settings))


def add_npz(patch: pytest.MonkeyPatch) -> None:
    """--format npz: NumPy's archive of the weights, in float32 whatever the dtype; with its reader."""

    def write(model: TransformerLM, tokenizer: Tokenizer, path: Path, dtype: str) -> None:
        with path.open("wb") as file:
            np.savez(file, **{name: weight.numpy() for name, weight in model.state_dict().items()})

    def read(path: Path, model: TransformerLM) -> Iterator[Callable[[Tensor], Tensor]]:
        with np.load(path) as weights:
            yield loaded(model.settings, {name: torch.tensor(weights[name]) for name in weights.files})

    patch.setitem(FORMATS, "npz", Format(write, ("fp32", "fp16"), None, {"--output demo.npz": "weights for NumPy"}))
    patch.setitem(READERS, "npz", read)
