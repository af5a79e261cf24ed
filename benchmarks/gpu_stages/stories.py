"""From the stories that come with the repository to a story: tokenizer, token files, training, all timed.

They are 2.0M tokens, of which a GPU sees a pass in two seconds: a model soon knows them by heart. What can be done
against that is much weight decay, all the more with many passes. The handout's base model reads them with Muon, without
and with the other parts of the recipe (configs/tinystories-gpu.yaml). The best checkpoint counts.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from gpu_stages.bench import ROOT, Bench, Part, call, curve, fit
from lm.runs.folder import BEST
from tokenization.__main__ import main as tokenization
from tokenization.tokens.token_file import TokenFile

VOCAB_SIZE = 2048
BATCH = 32  # windows
PASSES = 10
SETTINGS: dict[str, dict[str, Any]] = {
    "tinystories.yaml": {
        "model.optimizer": "muon",
        "model.muon_rate": 0.5,
        "model.learning_rate": 8e-3,
        "model.min_learning_rate": 0.0,
        "model.weight_decay": 1.5,
        "model.warmup_steps": 100,
    },
    "tinystories-gpu.yaml": {},
}
SMALL = {
    "model.d_model": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.context_length": 16,
    "model.vocab_size": 300,
    "model.warmup_steps": 3,
}


def parts(bench: Bench) -> dict[str, Part]:
    training = {config: partial(train, bench, config) for config in SETTINGS}
    return {"tokenizer, token files": partial(encode, bench), **training, "a story": partial(story, bench)}


def tokenize(*arguments: object) -> None:
    code = tokenization([str(argument) for argument in arguments])
    assert code == 0, f"tokenization {arguments[0]} ended with {code}"


def encode(bench: Bench) -> dict[str, Any]:
    """What `make data` does."""
    folder, names, found = bench.folder / "data", ("train", "valid"), {}
    texts = {name: ROOT / f"data/tinystories-{name}.txt.gz" for name in names}
    if bench.small:
        texts = dict.fromkeys(names, ROOT / "data/README.md")
    begun = time.perf_counter()
    size = 300 if bench.small else VOCAB_SIZE
    tokenizer = folder / "tokenizer"
    tokenize("train", texts["train"], "--vocab-size", size, "--output", tokenizer, "--overwrite")
    found["train s"] = time.perf_counter() - begun
    for name in names:
        tokenize("encode", texts[name], "--tokenizer", tokenizer, "--output", folder / f"{name}.bin")
    return found | {"all s": time.perf_counter() - begun, "tokens": len(TokenFile.open(folder / "train.bin"))}


def train(bench: Bench, config: str) -> dict[str, Any]:
    """All passes by a configuration, validated after each on all of the validation text."""
    data = bench.folder / "data"
    batch = 2 if bench.small else BATCH
    context = 16 if bench.small else 256
    per_pass = 3 if bench.small else len(TokenFile.open(data / "train.bin")) // (batch * context)
    steps = 2 * per_pass if bench.small else PASSES * per_pass
    settings = {
        "trainer.max_steps": steps,
        "trainer.val_check_interval": per_pass,
        "trainer.limit_val_batches": 1.0,
        "model.compile": not bench.small,
        "model.vocab_size": VOCAB_SIZE,
        "data.train_path": data / "train.bin",
        "data.val_path": data / "valid.bin",
        "data.tokenizer": data / "tokenizer",
        "data.batch_size": batch,
        "checkpoints.every_n_steps": steps,
        "norms.every_n_steps": 0,
    }
    run = bench.folder / Path(config).stem
    begun = time.perf_counter()
    fit(bench, run, config, settings | SETTINGS[config] | (SMALL if bench.small else {}))
    losses, bits = curve(run, "val/loss"), curve(run, "val/bits_per_byte")
    found = {"lowest": min(losses), "bits/byte": min(bits), "at pass": losses.index(min(losses)) + 1}
    found |= {"last": losses[-1], "train/loss": curve(run, "train/loss")[-1], "all s": time.perf_counter() - begun}
    speeds = curve(run, "train/tokens_per_second") if steps >= 20 else [0.0]
    (run / "lowest.json").write_text(json.dumps(min(losses)))
    return found | {"tokens/s": max(speeds), "steps": steps}


def story(bench: Bench) -> dict[str, Any]:
    """By the best of the runs."""
    losses = {path.parent: json.loads(path.read_text()) for path in bench.folder.glob("*/lowest.json")}
    run: Path = min(losses, key=lambda folder: losses[folder])
    text = call(
        "generate", run / BEST, "--device", bench.device, "--temperature", 0.6, "--max-new-tokens", 250, "--seed", 1
    )
    return {"run": run.name, "long": text}
