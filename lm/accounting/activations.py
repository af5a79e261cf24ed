"""What our ways of training keep in memory between the forward and the backward pass, by part, from shapes alone.

Without torch.compile, autograd is asked: one and two layers run forward on tensors that have shapes and no content,
and what it saves for the backward pass is added up; every further layer keeps what the second adds. A new setting of
the model needs no new formula. Compiled, it is this, for T tokens, s bytes a number in the precision of the products,
and 4 in float32:

    norms         4 T (d_model + 1) each: its input and its scale
    projections   s T 2 d_model a layer: what the four products read
    scores        s (3 T d_model + weights) a layer: q, k, v and the attention weights, of which sdpa keeps none
    feed-forward  s T (d_model + 3 d_ff) a layer, s T (d_model + 2 d_ff) with silu: what its products read
    head          s T d_model + 4 rows d_model: the gradients, which the chunked loss computes on the way forward
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from lm.accounting.costs import PARTS, SUPPORT, state_bytes, worth_compiling
from lm.machine.torch_inside import storage_id, without_memory
from lm.model.attention import MultiHeadSelfAttention
from lm.model.fast import speed_up
from lm.model.fast_attention import choose_attention, spans
from lm.model.fast_loss import ROWS
from lm.model.layers import Embedding, Linear, RMSNorm, SiLUFeedForward, SwiGLU
from lm.model.transformer import MODEL_SETTINGS, TransformerLM

INTERPRETER, COMPILER = 550e6, 150e6  # bytes: Python, torch and Lightning at rest; what compiling leaves behind
# What passes through the heap between the kept tensors leaves holes that the next large one does not fit. By these
# factors was the peak of `lm fit` larger than what it keeps, on a CPU with glibc (docs/accounting.md).
HOLES_FLOAT32, HOLES_HALF, HOLES_COMPILED = 2.4, 1.6, 1.3


@dataclass(frozen=True)
class Arrangement:
    """How a model is computed; attention is one of fast_attention.CAUSAL_ATTENTIONS, half is bf16-mixed."""

    attention: str = "plain"
    fast: bool = False
    half: bool = False
    compiled: bool = False
    recompute: bool = False

    def __str__(self) -> str:
        words = ["bfloat16" if self.half else "float32", f"attention {self.attention}"]
        return ", ".join([*words, *(word for word in ("fast", "compiled", "recompute") if getattr(self, word))])


def arrange(settings: Mapping[str, Any], precision: str, num_tokens: float) -> Arrangement:
    """As `lm fit` would on a CPU. settings: those of a LanguageModel; num_tokens: of the whole run."""
    half, recompute = precision.startswith("bf16"), settings["recompute_activations"]
    if not settings["fast"]:
        return Arrangement(half=half, recompute=recompute)
    attention, compiled = settings["attention"], settings["compile"]
    if attention == "auto":
        attention = choose_attention("cpu", settings["context_length"])
    if compiled == "auto":
        compiled = worth_compiling(make_model(settings), num_tokens, "cpu")
    return Arrangement(attention, True, half, compiled, recompute)


def make_model(settings: Mapping[str, Any]) -> TransformerLM:
    """Shapes and no weights."""
    model = TransformerLM(**{name: settings[name] for name in MODEL_SETTINGS if name in settings}, device="meta")
    model.z_loss = settings.get("z_loss", 0.0)
    return model


def kept_bytes(settings: Mapping[str, Any], batch_size: int, how: Arrangement) -> dict[str, int]:
    """Bytes kept for batch_size texts of the context length, by part. settings: those of a TransformerLM."""
    SUPPORT.check(make_model(settings))
    if how.compiled:
        first, second = (_compiled({**settings, "num_layers": layers}, batch_size, how) for layers in (1, 2))
    else:
        first, second = (_traced({**settings, "num_layers": layers}, batch_size, how) for layers in (1, 2))
    layers = settings["num_layers"]
    if not how.recompute:
        return {part: first[part] + (layers - 1) * (second[part] - first[part]) for part in PARTS}
    # One block at a time is whole; of each, what it begins with is kept.
    stream = 4 * batch_size * settings["context_length"] * settings["d_model"]
    return first | {"norms": first["norms"] + (layers - 1) * stream}


def _traced(settings: Mapping[str, Any], batch_size: int, how: Arrangement) -> dict[str, int]:
    model = make_model(settings)
    if how.fast:
        speed_up(model, how.attention)
    kept = dict.fromkeys(PARTS, 0)
    counted: set[int] = set()
    with without_memory():
        model.to_empty(device="cpu")
        ours = {storage_id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        tokens = torch.empty(batch_size, settings["context_length"] + 1, dtype=torch.int64)
        alive = []  # or another tensor could get a counted one's address

        def count(tensor: Tensor) -> Tensor:
            if storage_id(tensor) not in ours | counted:
                counted.add(storage_id(tensor))
                alive.append(tensor)
                kept[parts[-1]] += tensor.untyped_storage().nbytes()
            return tensor

        with (
            _watching(model) as parts,
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=how.half),
        ):
            model(tokens[:, :-1], targets=tokens[:, 1:])
    return kept


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[str]]:
    """A list whose last item is always the part that is being computed."""
    parts = ["head"]
    handles = []
    for name, module in model.named_modules():
        part = _part_of_module(name, module)
        if part:
            handles.append(module.register_forward_pre_hook(lambda *_, part=part: parts.append(part)))
            handles.append(module.register_forward_hook(lambda *_: parts.pop() and None))
    yield parts
    for handle in handles:
        handle.remove()


def _part_of_module(name: str, module: nn.Module) -> str | None:
    kinds = {Embedding: "embeddings", RMSNorm: "norms", MultiHeadSelfAttention: "scores"}
    kinds |= {SwiGLU: "feed-forward", SiLUFeedForward: "feed-forward"}
    if isinstance(module, Linear) and ".attn." in name:
        return "projections"
    return next((part for kind, part in kinds.items() if isinstance(module, kind)), None)


def _compiled(settings: Mapping[str, Any], batch_size: int, how: Arrangement) -> dict[str, int]:
    model = make_model(settings)
    length, tokens = model.context_length, batch_size * model.context_length
    d_model, size = settings["d_model"], 2 if how.half else 4
    stream = size * tokens * d_model
    kept = dict.fromkeys(PARTS, 0)
    kept["embeddings"] = 8 * batch_size * (length + 1)
    kept["head"] = stream + 4 * model.lm_head.weight.numel()
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            kept["norms"] += 4 * tokens * (1 + d_model)
        elif isinstance(module, MultiHeadSelfAttention):
            kept["projections"] += 2 * stream
            if how.attention == "blocks":
                weights = size * sum((end - start) * end for start, end in spans(length))
            elif how.attention == "plain":  # before and after softmax, and one mask
                weights = 2 * size * length**2
            else:  # a number a query, and its result, once as the kernel wrote it
                weights = 4 * length + (size * length * d_model // model.num_heads if module.rope is not None else 0)
            kept["scores"] += 3 * stream + batch_size * model.num_heads * weights
        elif isinstance(module, SwiGLU | SiLUFeedForward):
            wide = 3 if isinstance(module, SwiGLU) else 2
            kept["feed-forward"] += stream + wide * size * tokens * len(module.w1.weight)
        elif isinstance(module, Linear) and name.startswith("layers") and how.half:
            kept["projections" if ".attn." in name else "feed-forward"] += 2 * module.weight.numel()  # its rounded copy
    if how.half and settings.get("norm_position") != "none":
        # The first block reads the table's vectors: a norm gives the projections' rounded input once more, while
        # without one before them that input is a rounded copy beside the vectors.
        kept["projections"] += -stream if model.ln_final is not None else stream
    return kept


def peak_bytes(settings: Mapping[str, Any], batch_size: int, how: Arrangement) -> float:
    """A guess at a CPU process's peak memory while it trains.

    Weights and moments are always there. As the backward pass gives back what was kept, gradients take its place, and
    the larger of both counts; beside what was kept there is a chunk of logits, or all of them, and their gradients.
    """
    model = make_model(settings)
    state = state_bytes(model, settings.get("optimizer", "adamw"))
    tokens = batch_size * settings["context_length"]
    rows = min(tokens, ROWS) if how.fast else tokens
    logits = rows * settings["vocab_size"] * ((8 if how.half else 12) if how.fast else 8)
    holes = HOLES_COMPILED if how.compiled else HOLES_HALF if how.half else HOLES_FLOAT32
    kept = sum(kept_bytes(settings, batch_size, how).values()) * holes
    rest = INTERPRETER + (COMPILER if how.compiled else 0)
    return rest + state["parameters"] + state["optimizer state"] + max(state["gradients"], kept + logits)


def expected_peak(config: Namespace) -> float:
    """peak_bytes of the run that a parsed configuration of `lm fit` describes."""
    how = arrange(vars(config.model), config.trainer.precision, run_tokens(config))
    return peak_bytes(vars(config.model), config.data.batch_size, how)


def run_tokens(config: Namespace) -> int:
    """That the run trains on, on one device."""
    batches = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    return batches * config.data.batch_size * config.model.context_length
