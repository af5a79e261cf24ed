"""What every part must hold to for every model: each contract takes a model's settings and fails by naming the part.

The plain model is the measure, and torch's own counters are. A part that refuses the settings breaks its contract, but
for an export, which may refuse by name.
"""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from helpers.registries import WIDE, Settings, label
from lm.accounting import costs
from lm.accounting.activations import Arrangement, kept_bytes
from lm.commands.export import FORMATS
from lm.generation.decoding import CachedReader
from lm.model.fast import speed_up
from lm.model.fast_attention import CAUSAL_ATTENTIONS
from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import load_model, save_checkpoint
from lm.training.module import LanguageModel
from tokenization import InputError, Tokenizer

BATCH = 3
Result = TypeVar("Result")


class Broken(AssertionError):
    """A part does not hold to its contract."""


def contract(part: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Makes whatever goes wrong in a contract name the part and the settings."""

    def wrap(check: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(check)
        def checked(settings: Settings, *arguments: Any) -> Result:
            try:
                return check(settings, *arguments)
            except Broken:  # which names another part
                raise
            except Exception as error:
                promise = (check.__doc__ or "").partition("\n")[0]
                raise Broken(f"{part}: {promise} Not so for {label(settings)}: {error}") from error

        return checked

    return wrap


def make(settings: Settings) -> TransformerLM:
    """Returns a model whose gains are not all 1, and tables and skips not all 0: those would hide one in a wrong place.

    Without norms its matrices are half as large: 1e-5 of a gradient of 60 would be within the rounding of float32.
    """
    torch.manual_seed(0)
    model = TransformerLM(**settings)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.data.uniform_(*((0.1, 0.2) if name.startswith("skips") else (0.5, 1.5)))  # no norm tames large skips
        elif not weight.any():
            weight.data.normal_(std=0.3)
        elif name.startswith("layers") and model.settings["norm_position"] == "none":
            weight.data.mul_(0.5)
    return model


@contextlib.contextmanager
def measure() -> Iterator[None]:
    """Blames what fails on the plain model: it is the measure, and no part can be compared with it."""
    try:
        yield
    except Exception as error:
        raise Broken(f"lm/model/transformer.py: The plain model computes a loss and logits. Not so: {error}") from error


def tokens(settings: Settings) -> Tensor:
    """Returns (BATCH, context_length + 1) token ids."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(settings["vocab_size"], (BATCH, settings["context_length"] + 1), generator=generator)


def close(found: Tensor, expected: Tensor, what: str) -> None:
    if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-5):
        return  # assert_close takes three times as long to say so
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda words: f"{what}: {words}")


def loss_and_gradients(model: TransformerLM, settings: Settings) -> dict[str, Tensor]:
    ids = tokens(settings)
    loss = model(ids[:, :-1], targets=ids[:, 1:])
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach()} | gradients


def ways() -> list[dict[str, Any]]:
    """Returns all arguments of speed_up: each attention with each value of each of the others."""
    flags = [name for name, of in inspect.signature(speed_up).parameters.items() if of.default is False]
    chosen = itertools.product(CAUSAL_ATTENTIONS, *[(False, True)] * len(flags))
    return [{"attention": attention, **dict(zip(flags, values, strict=True))} for attention, *values in chosen]


@contract("lm/model/fast.py")
def fast_is_plain(settings: Settings, ways: Sequence[dict[str, Any]]) -> None:
    """Every fast way has the plain model's loss, gradients and logits."""
    plain = make(settings)
    plain.z_loss = 0.01
    with measure():
        expected, logits = loss_and_gradients(plain, settings), logits_alone(plain, settings)
    for way in ways:
        fast = make(settings)
        speed_up(fast, **way)
        fast.z_loss = plain.z_loss
        found = loss_and_gradients(fast, settings)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            close(value, expected[name], f"{way}, {name}")
        close(logits_alone(fast, settings), logits, f"{way}, logits")


@torch.no_grad()
def logits_alone(model: TransformerLM, settings: Settings) -> Tensor:
    """Returns the logits as generation computes them; with gradients, the loss has shown the same path."""
    return model(tokens(settings)[:, :-1])


@contract("lm/generation/decoding.py")
@torch.inference_mode()
def cached_is_plain(settings: Settings) -> None:
    """What comes next by the cache is what the model itself says, in a batch and alone, and as the window slides."""
    model, context = make(settings).eval(), settings["context_length"]
    texts = [[1], list(range(3, 2 + context)), list(range(context))]
    reader = CachedReader(model, len(texts), torch.float32)
    for row, (text, logits) in enumerate(zip(texts, logits_of(model, texts), strict=True)):
        close(reader.read(row, text, every=True), logits, f"prompt {row}")
    for step in range(4):
        if step >= 2:
            reader.drop(0)
            texts[0] = texts.pop()  # the last row takes its place
        drawn = [(step * 7 + row) % settings["vocab_size"] for row in range(len(texts))]
        texts = [[*text, token_id] for text, token_id in zip(texts, drawn, strict=True)]
        texts = [text if len(text) <= context else text[-(context // 2) :] for text in texts]
        expected = torch.stack([logits[-1] for logits in logits_of(model, texts)])
        close(reader.step(drawn), expected, f"step {step}")
    alone = CachedReader(model, 1, torch.float32)
    for cache in (alone.keys, alone.values):
        cache.fill_(torch.nan)  # which the memory of a new cache may hold
    prompt = list(range(context - 1))
    close(alone.read(0, prompt), logits_of(model, [prompt])[0][-1], "a row alone")
    for step, text in enumerate(([*prompt, 3], [*prompt, 3, 4][-(context // 2) :])):
        close(alone.step(text[-1:]), logits_of(model, [text])[0][-1:], f"step {step} of a row alone")


@measure()
def logits_of(model: TransformerLM, texts: Sequence[list[int]]) -> list[Tensor]:
    """Returns what the model says after each token of each text; of those added behind, it sees none before."""
    together = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    return [logits[: len(text)] for text, logits in zip(texts, model(together), strict=True)]


@contract("lm/generation/one_row.py")
@torch.inference_mode()
def one_row_is_plain(settings: Settings) -> bool:
    """A text that is alone is read by the kernel as by the model itself, also as the window slides.

    Returns False if the kernel leaves the model to torch. All are made WIDE: it knows no other widths.
    """
    settings = settings | WIDE
    model, context, text = make(settings).eval(), settings["context_length"], [1, 5]
    reader = CachedReader(model, 1, torch.float32)
    if not reader.fast:
        return False
    close(reader.read(0, text), logits_of(model, [text])[0][-1], "prompt")
    for step in range(context + 2):
        token_id = (step * 7 + 3) % settings["vocab_size"]
        text = [*text, token_id]
        text = text if len(text) <= context else text[-(context // 2) :]
        close(reader.step([token_id])[0], logits_of(model, [text])[0][-1], f"step {step}")
    return True


@contract("lm/runs/checkpoint.py")
@torch.inference_mode()
def loaded_is_saved(settings: Settings, folder: Path) -> None:
    """A trained model comes back from its checkpoint as the same one."""
    task = LanguageModel(**settings)
    assert task.model.settings == make(settings).settings, "the task does not hand on its settings"
    task.model.load_state_dict(make(settings).state_dict())
    content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), "global_step": 1}
    save_checkpoint(content, folder / "best.ckpt")
    ids = tokens(settings)[:, :-1]
    with measure():
        expected = make(settings)(ids)
    close(load_model(folder / "best.ckpt")(ids), expected, "logits")


@contract("lm/interchange/")
@torch.inference_mode()
def exported_is_the_model(settings: Settings, form: str, tokenizer: Tokenizer, folder: Path) -> None:
    """What is exported has the model's scores, or the export names a setting that it does not support."""
    settings = settings | {"vocab_size": tokenizer.vocab_size + 3}
    model = make(settings).eval()
    reader = reader_of(form)
    try:
        FORMATS[form].write(model, tokenizer, folder / "exported", "fp32")
    except InputError as error:
        if not any(f"{name} {value}" in str(error) for name, value in settings.items()):
            raise
        return
    ids = tokens(settings)[:, :-1]
    for scores in reader(folder / "exported", model):
        close(scores(ids), model(ids), form)


@contract("lm/interchange/, FORMATS in lm/commands/export.py")
@torch.inference_mode()
def exported_in_the_dtype(settings: Settings, form: str, dtype: str, tokenizer: Tokenizer, folder: Path) -> None:
    """What is exported in a dtype has the scores of the model whose matrices are rounded to that dtype."""
    from helpers.foreign_models import ROUNDED

    assert dtype in ROUNDED, f"no rounding for the new dtype {dtype}: tests/helpers/foreign_models.py needs one"
    settings = settings | {"vocab_size": tokenizer.vocab_size + 3}
    model = make(settings).eval()
    for weight in model.parameters():
        if weight.ndim == 1:  # gains, which a format may keep in float32
            weight.data = (8 * weight).round() / 8  # every dtype holds these
    sizes = {}
    for each in {"fp32", dtype}:
        FORMATS[form].write(model, tokenizer, folder / each, each)
        sizes[each] = sum(file.stat().st_size for file in [folder / each, *(folder / each).glob("*")] if file.is_file())
    readers = list(reader_of(form)(folder / dtype, model))
    ids = tokens(settings)[:, :-1]
    exact = model(ids)
    for weight in model.parameters():
        weight.data = weight if weight.ndim == 1 else ROUNDED[dtype](weight)
    assert dtype == "fp32" or (model(ids) - exact).abs().max() > 1e-3, "rounding changes nothing"
    for scores in readers:
        close(scores(ids), model(ids), f"{form} in {dtype}")
    assert dtype == "fp32" or sizes[dtype] < sizes["fp32"], f"takes {sizes[dtype]} bytes, and fp32 {sizes['fp32']}"


def reader_of(form: str) -> Callable[[Path, TransformerLM], Iterator[Callable[[Tensor], Tensor]]]:
    """Returns the reader of a format."""
    from helpers.foreign_models import READERS

    assert form in READERS, f"no way to read the new format {form}: tests/helpers/foreign_models.py needs one"
    return READERS[form]


class FlopsOfTorch(TorchDispatchMode):
    """Counts the FLOPs of each operator by torch's formula for it, as FlopCounterMode does, but not by module."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.total += formula(*arguments, **(keywords or {}), out_val=result)
        return result


@contract("lm/accounting/costs.py")
def counted_is_measured(settings: Settings) -> None:
    """Parameters and FLOPs are those that torch counts."""
    model, ids = make(settings), tokens(settings)
    assert sum(costs.parameters_by_part(model).values()) == sum(w.numel() for w in model.parameters())
    with FlopsOfTorch() as forward:
        loss = model(ids[:, :-1], targets=ids[:, 1:])
    with FlopsOfTorch() as backward:
        loss.backward()
    rows, d_model = model.lm_head.weight.shape  # those that vocab_multiple adds are not counted
    added = 2 * settings["context_length"] * (rows - settings["vocab_size"]) * d_model
    expected = BATCH * (sum(costs.forward_flops(model).values()) + added)
    assert forward.total == expected, f"{forward.total} forward, {expected} counted"
    assert backward.total == 2 * expected


@contract("lm/accounting/activations.py")
def kept_is_measured(settings: Settings, how: Arrangement) -> None:
    """What is kept for the backward pass is what autograd saves."""
    found, expected = sum(kept_bytes(settings, BATCH, how).values()), really_kept(settings, how)
    # Compiled, the partitioner of torch weighs what it keeps.
    assert abs(found - expected) <= (0.01 * expected if how.compiled else 0), f"{found} counted, {expected} kept"


def really_kept(settings: Settings, how: Arrangement) -> int:
    """Returns the bytes that a real forward pass saves; parameters and tables excepted, each storage once."""
    model, ids = make(settings), tokens(settings)
    if how.fast:
        speed_up(model, how.attention, kernels=how.kernels)
    if how.compiled:  # what is kept is decided before code is generated, for which no compiler is needed
        model.compile(backend="aot_eager_decomp_partition")
    known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=how.half),
    ):
        loss = model(ids[:, :-1], targets=ids[:, 1:])
    loss.backward()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in known)
