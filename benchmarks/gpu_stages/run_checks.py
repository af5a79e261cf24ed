"""What only a GPU can get wrong in a whole run, by `lm fit` and by the commands that use its checkpoint.

The oracle is the same run once more, the CPU, or transformers.
"""

import contextlib
import json
import os
import signal
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from gpu_stages.bench import Bench, call, curve, fit, largest, make_batch, random_data
from lm.runs.checkpoint import load_checkpoint, load_model
from lm.runs.folder import BEST, LAST

STEPS = 20


def settings(bench: Bench, **more: Any) -> dict[str, Any]:
    """A short run of configs/debug.yaml."""
    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 1} if bench.small else {"d_model": 128, "num_layers": 2}
    own = {
        "trainer.precision": "bf16-mixed",
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": STEPS,
        "trainer.limit_val_batches": 2,
        "trainer.log_every_n_steps": 5,
        "norms.every_n_steps": 0,
        "checkpoints.every_n_steps": 10,
        **{f"model.{name}": size for name, size in sizes.items()},
    }
    return own | random_data(bench, 257, 100_000) | {name.replace("__", "."): value for name, value in more.items()}


def short_fit(bench: Bench) -> dict[str, Any]:
    run = fit(bench, bench.folder / "short", "debug.yaml", settings(bench, samples__max_new_tokens=20))
    losses = curve(run, "train/loss")
    assert losses[-1] < losses[0], f"losses {losses}"
    found = {
        "loss": losses[-1],
        "tokens/s": curve(run, "train/tokens_per_second")[-1],
        "mfu": curve(run, "train/mfu")[-1],
        "peak GB": curve(run, "train/peak_memory_gb")[-1],
    }
    assert found["mfu"] > 0
    assert found["peak GB"] > 0
    return found


class WaitWatch(Callback):
    """Collects where the program waits for the GPU, from one step to another."""

    def __init__(self, bench: Bench, first: int, last: int):
        self.bench, self.first, self.last, self.caught = bench, first, last, contextlib.ExitStack()
        self.places: list[str] = []

    def mode(self, mode: str) -> None:
        if self.bench.device == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def note(self, message: Any, *_: Any) -> None:
        if str(message).startswith("called a synchronizing"):
            frames = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_stack()[:-1]]
            self.places.append(" < ".join(reversed(frames[-6:])))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.first:
            self.caught.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            warnings.showwarning = self.note  # type: ignore[assignment]
            self.mode("warn")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.last:
            self.mode("default")
            self.caught.close()


def step_waits_for_nothing(bench: Bench) -> dict[str, Any]:
    """Between two logged steps, with everything that `lm fit` does around them."""
    watch = WaitWatch(bench, 6, 9)
    changes = settings(bench, trainer__log_every_n_steps=10, model__compile=not bench.small)
    fit(bench, bench.folder / "waits", "debug.yaml", changes | {"checkpoints.every_n_steps": 1000}, [watch])
    for place in dict.fromkeys(watch.places):
        print(f"waits {watch.places.count(place)} times at {place}")
    distinct = list(dict.fromkeys(watch.places))
    assert not distinct, f"{len(watch.places)} times in 4 steps, at {len(distinct)} places, the first: {distinct[0]}"
    return {"steps watched": 4 if bench.device == "cuda" else 0}


class Spoil(Callback):
    """Two steps whose gradients are not finite, between good ones; notes whether weights and moments changed."""

    def __init__(self, bad: dict[int, float]):
        self.bad = bad
        self.changed: dict[int, bool] = {}

    def state(self, trainer: Trainer, module: LightningModule) -> list[torch.Tensor]:
        moments = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
        return [t.detach().clone() for t in (*module.parameters(), *moments) if isinstance(t, torch.Tensor)]

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.before = self.state(trainer, module)
        if (value := self.bad.get(trainer.global_step + 1)) is not None:
            next(module.parameters()).grad[0, 0] = value  # type: ignore[index]

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.changed[trainer.global_step] = not all(map(torch.equal, self.before, self.state(trainer, module)))


def skipped_steps(bench: Bench) -> dict[str, Any]:
    spoil = Spoil({5: torch.nan, 7: torch.inf})
    run = fit(bench, bench.folder / "skips", "debug.yaml", settings(bench, model__warmup_steps=1), [spoil])
    wrong = [step for step, changed in spoil.changed.items() if changed == (step in spoil.bad)]
    assert not wrong, f"steps {wrong}: changed where they were bad, or did not where they were good"
    assert curve(run, "train/skipped_steps")[-1] == 2
    return {"skipped": 2}


class StopAt(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def resume(bench: Bench) -> dict[str, Any]:
    """A resumed run against the whole one, and that against itself, which says how much is the GPU's own doing."""
    runs = [fit(bench, bench.folder / name, "debug.yaml", settings(bench)) for name in ("whole", "again")]
    stopped = bench.folder / "stopped"
    with contextlib.suppress(SystemExit):
        fit(bench, stopped, "debug.yaml", settings(bench), [StopAt(12)])
    at = load_checkpoint(stopped / LAST)["global_step"]
    assert at == 12, f"was stopped at step {at}"
    fit(bench, stopped, "debug.yaml", settings(bench, ckpt_path=stopped / LAST))
    whole, again, resumed = (load_checkpoint(run / LAST)["state_dict"] for run in (*runs, stopped))
    found = {"repeated": largest(again, whole), "resumed": largest(resumed, whole)}
    assert found["resumed"] <= 10 * found["repeated"], f"a resumed run is another: {found}"
    return found


# --- what is made of a run --------------------------------------------------------------------------------------------


def trained_run(bench: Bench) -> Path:
    run = bench.folder / "short"
    if not (run / BEST).exists():
        short_fit(bench)
    return run


@torch.inference_mode()
def export(bench: Bench) -> dict[str, Any]:
    from transformers import LlamaForCausalLM

    run, folder = trained_run(bench), bench.folder / "exported"
    call("export", run, "--output", folder)
    theirs = LlamaForCausalLM.from_pretrained(folder, local_files_only=True).to(bench.device)
    model = load_model(run / BEST).to(bench.device)
    inputs, _ = make_batch(bench, {"vocab_size": model.vocab_size, "context_length": model.context_length}, 3)
    logits, expected = model(inputs), theirs(inputs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    return {"logits": (logits - expected).abs().max().item()}


def commands(bench: Bench) -> dict[str, Any]:
    """On this device and on the CPU."""
    run, data = trained_run(bench), random_data(bench, 257, 100_000)
    devices = [bench.device, "cpu"]
    texts = [
        call("generate", run, "--device", device, "--max-new-tokens", 30, "--temperature", 0) for device in devices
    ]
    scores = [
        json.loads(call("test", run, data["data.val_path"], "--device", device, "--json"))["loss"] for device in devices
    ]
    assert abs(scores[0] - scores[1]) < 1e-4, f"lm test: {scores}"
    validate = ["validate", "-c", run / "config.yaml", "--ckpt_path", run / BEST, "--trainer.enable_progress_bar=false"]
    for device in devices:
        call(*validate, "--device", device)
    return {"same text": texts[0] == texts[1], "loss": scores[0]}
