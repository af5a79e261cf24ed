"""This package as a contestant: its command, also of an older version, and its parts in a bare loop."""

import importlib
from pathlib import Path
from typing import Any

from training_stages.shapes import CONTEXT, D_FF, D_MODEL, HEADS, LAYERS, SHAPES, VOCAB_SIZE
from training_stages.turns import Turns

ROOT = Path(__file__).parents[2]
COMPILE = {"lm fit": "auto", "lm fit compiled": "true", "old": "true", "old eager": "false"}


def make_data(folder: Path) -> None:
    """Makes a token file of random tokens, as `tokenization encode` writes it; the speed is that of any text."""
    import numpy as np

    from tokenization import END_OF_TEXT, Tokenizer

    Tokenizer({i: bytes([i]) for i in range(256)} | {256: END_OF_TEXT.encode()}, [], [END_OF_TEXT]).save(folder / "tok")
    tokenizer = Tokenizer.load(folder / "tok")
    letters = np.random.default_rng(0).integers(97, 123, 400_000, dtype=np.uint8)
    (folder / "text.txt").write_bytes(letters.tobytes())
    tokenizer.encode_files([folder / "text.txt"], folder / "text.bin", num_processes=1)


def lm_fit(folder: Path, name: str, shape: str, turns: Turns) -> None:
    """Runs the command, of whichever version is on the path; a turn ends where the next training step begins."""
    from lm.__main__ import main as lm

    try:
        module = importlib.import_module("lm.training.module")
    except ModuleNotFoundError:  # e3ae780
        module = importlib.import_module("lm.module")
    step = module.LanguageModel.training_step

    def training_step(self: Any, *arguments: Any) -> Any:
        turns.next()
        return step(self, *arguments)

    module.LanguageModel.training_step = training_step
    steps = 100_000
    model = {key: value for key, value in SHAPES[shape].items() if key != "batch_size"}
    settings = {
        "trainer.default_root_dir": folder / "run",
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
        "trainer.limit_val_batches": 1,
        "checkpoints.every_n_steps": steps,
        "data.train_path": folder / "text.bin",
        "data.val_path": folder / "text.bin",
        "data.tokenizer": folder / "tok",
        "data.batch_size": SHAPES[shape]["batch_size"],
        "samples.max_new_tokens": 0,
        "model.compile": COMPILE[name],
        "model.optimizer": "muon" if shape == "fast" else "adamw",
    } | {f"model.{key}": value for key, value in model.items()}
    lm(["fit", "-c", str(ROOT / "configs/tinystories-cpu.yaml"), *(f"--{k}={v}" for k, v in settings.items())])


def our_loop(folder: Path, parts: set[str], turns: Turns) -> None:
    import torch

    from lm.data.windows import RandomWindows
    from lm.machine.compiling import compile_graph
    from lm.machine.resources import native_precision
    from lm.model.fast import speed_up
    from lm.model.transformer import TransformerLM
    from lm.optim.adamw import AdamW
    from lm.optim.clipping import clip_gradients
    from tokenization import TokenFile

    torch.manual_seed(0)
    model = TransformerLM(VOCAB_SIZE, CONTEXT, D_MODEL, LAYERS, num_heads=HEADS, d_ff=D_FF)
    kernels = "kernels" in parts
    if "attention" in parts:
        speed_up(model, "blocks", keep_logits="loss" not in parts, kernels=kernels)
    model.recompute = "recompute" in parts
    if "compile" in parts:
        model.compile(backend=compile_graph)
    optimizer = AdamW(model.parameters(), kernel=kernels)
    half = "float32" not in parts and native_precision("cpu") == "bf16-mixed"
    windows = RandomWindows(TokenFile.open(folder / "text.bin").tokens, CONTEXT, 32, 0, 1000)
    for number in turns:
        inputs, targets = windows[number % 1000]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(inputs, targets=targets)
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
