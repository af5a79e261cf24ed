"""Computes, from shapes alone, the activations that a training step keeps for its backward pass, by part, in bytes.

Autograd is asked: models of one and of two layers run forward on tensors without memory, and what autograd saves is
summed; each further layer keeps what the second one adds. So a new setting of the model needs no formula here, except
under torch.compile without our own kernels, where a step keeps, for T tokens and numbers of s bytes in the precision of
the products (float32: 4):

    norms         4 T (d_model + 1) for each norm: its input and its scale
    projections   s T 2 d_model for each layer: the inputs of the four products
    scores        s (3 T d_model + weights) for each layer: q, k, v and the attention weights; sdpa keeps no weights
    feed-forward  s T (d_model + 3 d_ff) for each layer, or s T (d_model + 2 d_ff) without a gate: the products' inputs
    head          s T d_model + 4 rows d_model: the gradients, which the chunked loss computes in the forward pass
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from lm.accounting.costs import PARTS, SUPPORT, state_bytes, worth_compiling
from lm.machine.torch_inside import storage_id, without_memory
from lm.model.attention import MultiHeadSelfAttention
from lm.model.embedding_skips import EmbeddingSkips
from lm.model.fast import speed_up, why_no_kernels
from lm.model.fast_attention import choose_attention, spans
from lm.model.fast_loss import KERNEL_ROWS, ROWS
from lm.model.layers import Embedding, Linear, RMSNorm, SwiGLU, UngatedFeedForward
from lm.model.smear import Smear
from lm.model.transformer import MODEL_SETTINGS, TransformerLM

INTERPRETER, COMPILER = 550e6, 150e6  # bytes: of Python, torch and Lightning at rest; of what compiling leaves behind
# Temporary tensors leave holes in the heap between the kept ones, too small for the next large tensor. By these factors
# the peak of `lm fit` exceeded what it keeps, on a CPU with glibc (docs/accounting.md).
HOLES_FLOAT32, HOLES_HALF, HOLES_COMPILED = 2.4, 1.6, 1.3


@dataclass(frozen=True)
class Arrangement:
    """The way in which a model is trained.

    attention: one of fast_attention.CAUSAL_ATTENTIONS; half: in bf16-mixed; kernels: by our own (fast.py).
    """

    attention: str = "plain"
    fast: bool = False
    half: bool = False
    compiled: bool = False
    recompute: bool = False
    kernels: bool = False

    def __str__(self) -> str:
        words = ["bfloat16" if self.half else "float32", f"attention {self.attention}"]
        flags = ("fast", "kernels", "compiled", "recompute")
        return ", ".join([*words, *(word for word in flags if getattr(self, word))])


def arrange(settings: Mapping[str, Any], precision: str, num_tokens: float) -> Arrangement:
    """Returns the way in which `lm fit` would train on a CPU.

    settings: of a LanguageModel; precision: the Trainer's; num_tokens: of the whole run.
    """
    half, recompute = precision.startswith("bf16"), settings["recompute_activations"]
    if not settings["fast"]:
        return Arrangement(half=half, recompute=recompute)
    attention, compiled, kernels = settings["attention"], settings["compile"], not why_no_kernels()
    if attention == "auto":
        attention = choose_attention("cpu", settings["context_length"])
    if compiled == "auto":
        compiled = worth_compiling(make_model(settings), num_tokens, "cpu", attention)
    return Arrangement(attention, True, half, compiled, recompute, kernels)


def make_model(settings: Mapping[str, Any]) -> TransformerLM:
    """Builds the model on the meta device, with shapes and no weights. settings: of a LanguageModel."""
    model = TransformerLM(**{name: settings[name] for name in MODEL_SETTINGS if name in settings}, device="meta")
    model.z_loss = settings.get("z_loss", 0.0)
    return model


def kept_bytes(settings: Mapping[str, Any], batch_size: int, how: Arrangement) -> dict[str, int]:
    """Returns the bytes kept for batch_size sequences of the context length, by part, dropout's masks among them.

    settings: of a LanguageModel. Raises InputError for a setting that is not supported.
    """
    SUPPORT.check(make_model(settings))
    keep = _compiled if how.compiled and not how.kernels else _traced
    shape = {name: settings[name] for name in (*MODEL_SETTINGS, "z_loss") if name in settings}
    first, second = (keep(frozenset({**shape, "num_layers": n}.items()), batch_size, how) for n in (1, 2))
    layers = settings["num_layers"]
    kept = {part: first[part] + (layers - 1) * (second[part] - first[part]) for part in PARTS}
    numbers = batch_size * settings["context_length"] * settings["d_model"]  # of the residual stream
    if how.recompute:  # every block keeps its input; one block at a time keeps all
        kept = first | {"norms": first["norms"] + (layers - 1) * 4 * numbers}
    if settings.get("dropout"):  # drawn before the first block, a byte for each number
        for part, times in {"embeddings": 1, "projections": layers, "feed-forward": layers}.items():
            kept[part] += times * numbers
    return kept


@cache  # an estimate asks for the same shapes again
def _traced(shape: frozenset[tuple[str, Any]], batch_size: int, how: Arrangement) -> dict[str, int]:
    settings = dict(shape)
    model = make_model(settings)
    if how.fast:
        speed_up(model, how.attention, kernels=how.kernels)
    kept = dict.fromkeys(PARTS, 0)
    counted: set[int] = set()
    with without_memory():
        _give_weights(model)
        ours = {storage_id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        tokens = torch.empty(batch_size, settings["context_length"] + 1, dtype=torch.int64)
        alive = []  # keeps the counted tensors, or another could get a counted one's id

        def count(tensor: Tensor) -> Tensor:
            if storage_id(tensor) not in ours | counted:
                counted.add(storage_id(tensor))
                alive.append(tensor)
                kept[parts[-1]] += tensor.untyped_storage().nbytes()
            return tensor

        with (
            _watching(model, how) as parts,
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=how.half),
        ):
            model(tokens[:, :-1], targets=tokens[:, 1:])
    return kept


def _give_weights(model: nn.Module) -> None:
    """Moves a model from the meta device to the CPU; without memory, this takes a third of the time of to_empty."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype)))
        for name, table in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(table.shape, dtype=table.dtype))


@contextmanager
def _watching(model: nn.Module, how: Arrangement) -> Iterator[list[str]]:
    """Yields a list whose last item is always the part that is being computed.

    Our own kernels count a projection among the scores: they read its weight, and would leave it to torch if its calls
    were watched.
    """
    parts = ["head"]
    handles = []
    for name, module in model.named_modules():
        part = _part_of_module(name, module)
        if part and not (how.kernels and part == "projections"):
            handles.append(module.register_forward_pre_hook(lambda *_, part=part: parts.append(part)))
            handles.append(module.register_forward_hook(lambda *_: parts.pop() and None))
    yield parts
    for handle in handles:
        handle.remove()


def _part_of_module(name: str, module: nn.Module) -> str | None:
    kinds: dict[type[nn.Module], str] = {Embedding: "embeddings", Smear: "norms", EmbeddingSkips: "norms"}
    kinds |= {RMSNorm: "norms", MultiHeadSelfAttention: "scores"}
    kinds |= {SwiGLU: "feed-forward", UngatedFeedForward: "feed-forward"}
    if isinstance(module, Linear) and ".attn." in name:
        return "projections"
    return next((part for kind, part in kinds.items() if isinstance(module, kind)), None)


def _compiled(shape: frozenset[tuple[str, Any]], batch_size: int, how: Arrangement) -> dict[str, int]:
    settings = dict(shape)
    model = make_model(settings)
    length, tokens = model.context_length, batch_size * model.context_length
    d_model, size = settings["d_model"], 2 if how.half else 4
    stream = size * tokens * d_model
    kept = dict.fromkeys(PARTS, 0)
    kept["embeddings"] = 8 * batch_size * (length + 1)
    if model.skips is not None or model.smear is not None:
        kept["norms"] += 4 * tokens * d_model
    kept["head"] = stream + 4 * model.lm_head.weight.numel()
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            kept["norms"] += 4 * tokens * (1 + d_model)
        elif isinstance(module, MultiHeadSelfAttention):
            kept["projections"] += 2 * stream
            if how.attention == "blocks":
                blocks = spans(batch_size * model.num_heads, length, size)
                weights = size * sum((end - start) * end for start, end in blocks)
            elif how.attention == "plain":  # before and after softmax, and one mask
                weights = 2 * size * length**2
            else:  # one number for each query; without our kernels the output as torch's kernel wrote it, too
                as_written = module.rope is not None and not how.kernels
                weights = 4 * length + (size * length * d_model // model.num_heads if as_written else 0)
            kept["scores"] += 3 * stream + batch_size * model.num_heads * weights
        elif isinstance(module, SwiGLU | UngatedFeedForward):
            wide = 3 if isinstance(module, SwiGLU) else 2
            kept["feed-forward"] += stream + wide * size * tokens * len(module.w1.weight)
        elif isinstance(module, Linear) and name.startswith("layers") and how.half:
            kept["projections" if ".attn." in name else "feed-forward"] += 2 * module.weight.numel()  # its rounded copy
    if how.half and settings.get("norm_position") != "none":
        # The first block reads the embeddings: after a norm its rounded input is already counted, while without one
        # the rounded copy comes in addition.
        kept["projections"] += -stream if model.ln_final is not None else stream
    return kept


def peak_bytes(settings: Mapping[str, Any], batch_size: int, how: Arrangement, accumulated: int = 1) -> float:
    """Estimates the peak memory of a training process on a CPU, in bytes.

    Parameters and moments are always there. During the backward pass gradients replace the kept activations, so that
    the larger of the two counts; where a step accumulates several batches, the gradients of those before are there as
    well, and both count. The activations are accompanied by the logits, a chunk or all, and their gradients.
    """
    model = make_model(settings)
    state = state_bytes(model, settings.get("optimizer", "adamw"), settings.get("ema_decay", 0) > 0)
    tokens = batch_size * settings["context_length"]
    rows = min(tokens, KERNEL_ROWS if how.kernels else ROWS) if how.fast else tokens
    logits: int = rows * settings["vocab_size"] * ((8 if how.half else 12) if how.fast else 8)
    holes = HOLES_COMPILED if how.compiled or how.kernels else HOLES_HALF if how.half else HOLES_FLOAT32
    kept = sum(kept_bytes(settings, batch_size, how).values()) * holes
    rest = INTERPRETER + (COMPILER if how.compiled else 0)
    gradients = state.pop("gradients")
    both = gradients + kept + logits if accumulated > 1 else max(gradients, kept + logits)
    return rest + sum(state.values()) + both


def expected_peak(config: Namespace) -> float:
    """Estimates the peak memory, in bytes, of the run that a parsed configuration of `lm fit` describes."""
    how = arrange(vars(config.model), config.trainer.precision, run_tokens(config))
    return peak_bytes(vars(config.model), config.data.batch_size, how, config.trainer.accumulate_grad_batches)


def run_tokens(config: Namespace) -> int:
    """Returns the number of tokens that a run trains on, on one device."""
    batches: int = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    tokens: int = batches * config.data.batch_size * config.model.context_length
    return tokens
