"""What the stages of benchmarks/gpu.py share: `lm fit` in this process, watched; token files; a clock that waits."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from lm.__main__ import main as lm
from lm.commands.fit import training
from lm.model.transformer import TransformerLM
from lm.runs.events import read_curves
from lm.training.cli import RunCLI
from tokenization import END_OF_TEXT, Tokenizer
from tokenization.tokens.token_file import TokenFileWriter

ROOT = Path(__file__).parent.parent.parent
BASE = {"vocab_size": 10_000, "context_length": 256, "d_model": 512, "num_layers": 4, "num_heads": 16, "d_ff": 1344}
TINY = {"vocab_size": 300, "context_length": 32, "d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64}

Part = Callable[[], dict[str, Any] | None]  # -> its figures; fails by an exception


@dataclass(frozen=True)
class Bench:
    """small: whether the script itself is tried out. folder: of the stage, for its files."""

    device: str
    small: bool
    folder: Path

    @property
    def shape(self) -> dict[str, Any]:
        """Of the model that is measured: configs/tinystories.yaml's."""
        return TINY if self.small else BASE

    @property
    def half(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], Any]) -> float:
        self.wait()
        begun = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - begun

    def peak_gigabytes(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0


def fresh(device: str) -> None:
    """What one part leaves behind is not the next one's: compiled code, memory, random numbers."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def describe_machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__, "device": device}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "gigabytes": round(properties.total_memory / 1e9, 1)}
        found |= {"cuda": torch.version.cuda, "processors": properties.multi_processor_count}
    return found


# --- data ------------------------------------------------------------------------------------------------------------


def random_data(bench: Bench, vocab_size: int, tokens: int = 2_000_000) -> dict[str, Any]:
    """Settings for a token file of random ids, as unevenly distributed as words are; its tokenizer knows the bytes."""
    folder, path = bench.folder / "tok", bench.folder / f"random-{vocab_size}.bin"
    if not path.exists():
        vocab = {i: bytes([i]) for i in range(256)} | {256: END_OF_TEXT.encode()}
        Tokenizer(vocab, [], [END_OF_TEXT]).save(folder)
        shares = 1 / (np.arange(vocab_size) + 2.7)  # Zipf and Mandelbrot
        ids = np.random.default_rng(0).choice(vocab_size, tokens, p=shares / shares.sum())
        with TokenFileWriter(path, vocab_size, Tokenizer.load(folder).digest, 256) as writer:
            writer.write(ids)
            writer.num_bytes = 4 * tokens
    return {"data.train_path": path, "data.val_path": path, "data.tokenizer": folder, "model.vocab_size": vocab_size}


# --- lm fit ----------------------------------------------------------------------------------------------------------


class WatchedCLI(RunCLI):
    def __init__(self, argv: list[str], callbacks: Sequence[Callback]):
        self.callbacks = callbacks
        super().__init__(argv)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks[:0] = self.callbacks  # type: ignore[attr-defined]
        return trainer


def fit(bench: Bench, run: Path, config: str, settings: dict[str, Any], callbacks: Sequence[Callback] = ()) -> Path:
    """`lm fit` in this process, on the bench's device -> the run; SystemExit where a signal has ended it."""
    common = {
        "trainer.default_root_dir": run,
        "trainer.accelerator": bench.device,
        "trainer.enable_progress_bar": False,
        "samples.max_new_tokens": 0,
    }
    flags = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in (common | settings).items()
    ]
    with training():
        WatchedCLI(["fit", "-c", str(ROOT / "configs" / config), *flags], callbacks)
    return run


def curve(run: Path, name: str) -> list[float]:
    return read_curves(run)[name].values


def call(*arguments: object) -> str:
    """The command `lm` in this process -> what it printed."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out):
        code = lm([str(argument) for argument in arguments])
    text = out.buffer.getvalue().decode()
    assert code == 0, f"lm {arguments[0]} ended with {code}: {text[-200:]}"
    return text


# --- training steps without Lightning --------------------------------------------------------------------------------


def make_model(bench: Bench, shape: dict[str, Any]) -> TransformerLM:
    """Always the same weights, whatever the device draws."""
    torch.manual_seed(1)
    return TransformerLM(**shape).to(bench.device)


def make_batch(bench: Bench, shape: dict[str, Any], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(shape["vocab_size"], (rows, shape["context_length"] + 1), generator=generator)
    tokens = tokens.to(bench.device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def gradients(
    bench: Bench, model: TransformerLM, batch: tuple[torch.Tensor, torch.Tensor], half: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with bench.half if half else contextlib.nullcontext():
        loss = model(batch[0], targets=batch[1])
    model.zero_grad()
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}  # type: ignore[union-attr]
    return loss.detach(), found


def largest(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of all their numbers."""
    return max((ours[name].float() - theirs[name].float()).abs().max().item() for name in theirs)
