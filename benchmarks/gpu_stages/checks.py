"""What only a GPU can get wrong. The oracle is the plain model, on the same device, or the CPU, or transformers.

Tolerances are those of tests/model/test_fast.py; every check also says how far apart the two were.
"""

import contextlib
import json
import os
import signal
import traceback
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from gpu_stages.bench import (
    Bench,
    Part,
    call,
    curve,
    fit,
    gradients,
    make_batch,
    make_model,
    random_data,
)
from lm.generation.sampling import Sampling
from lm.generation.writer import generate
from lm.machine.compiling import compile_graph, why_not_compiled
from lm.model.fast import speed_up
from lm.model.transformer import TransformerLM
from lm.optim.adamw import AdamW
from lm.optim.clipping import clip_gradients
from lm.optim.muon import muon_update
from lm.optim.orthogonalization import orthogonalize
from lm.runs.checkpoint import load_checkpoint, load_model
from lm.runs.folder import BEST, LAST

SHAPE = {"vocab_size": 101, "context_length": 158, "d_model": 32, "num_layers": 2, "num_heads": 4}
STEPS = 20


def parts(bench: Bench) -> dict[str, Part]:
    fast = {
        f"{attention}, {precision} = plain": partial(fast_is_plain, bench, attention, precision == "bf16")
        for attention in ("sdpa", "blocks")
        for precision in ("fp32", "bf16")
    }
    return {
        "lm fit, bf16": partial(short_fit, bench),
        "a step waits for nothing": partial(step_waits_for_nothing, bench),
        **fast,
        "AdamW together = one by one": partial(adamw, bench, False),
        "AdamW compiled = one by one": partial(adamw, bench, True),
        "Muon = on the CPU": partial(muon, bench),
        "bad steps are skipped": partial(skipped_steps, bench),
        "generation, cached = plain": partial(generation, bench),
        "export = transformers": partial(export, bench),
        "stopped and resumed": partial(resume, bench),
        "generate, test, validate": partial(commands, bench),
        "compiled = eager": partial(compiled_is_eager, bench),
        "repeated, eager": partial(repeat, bench, False),
        "repeated, compiled": partial(repeat, bench, True),
    }


def largest(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of all their numbers."""
    return max((ours[name].float() - theirs[name].float()).abs().max().item() for name in theirs)


# --- the computation -------------------------------------------------------------------------------------------------


def fast_is_plain(bench: Bench, attention: str, half: bool) -> dict[str, Any]:
    plain, fast = make_model(bench, SHAPE), make_model(bench, SHAPE)
    speed_up(fast, attention, joint_products=True)
    batch = make_batch(bench, SHAPE, 3)
    (loss, grads), (plain_loss, plain_grads) = gradients(bench, fast, batch, half), gradients(bench, plain, batch, half)
    found = {"loss": (loss - plain_loss).item(), "gradients": largest(grads, plain_grads)}
    if not half:
        torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-5)
        for name, gradient in grads.items():
            torch.testing.assert_close(gradient, plain_grads[name], rtol=1e-5, atol=1e-5)
        return found
    true_loss, true_grads = gradients(bench, plain, batch, False)
    assert abs(loss - true_loss) < 2e-3, f"loss {loss} instead of {true_loss}"
    assert loss != true_loss, "bfloat16 was not used"
    for name, true in true_grads.items():
        distance, allowed = (grads[name] - true).norm(), 1.5 * (plain_grads[name] - true).norm()
        assert distance <= allowed + 1e-3 * true.norm(), f"{name} is off by {distance:.2g}, more than {allowed:.2g}"
    return found


def train(
    bench: Bench, model: TransformerLM, steps: int, half: bool = False, compiled: bool = False
) -> tuple[list[float], dict[str, Any]]:
    """-> losses and weights. compiled: as `lm fit` does it, model and optimizer."""
    speed_up(model, "sdpa", joint_products=True, keep_logits=compiled)
    if compiled:
        model.compile(backend=compile_graph)
    optimizer, losses = AdamW(model.parameters(), lr=3e-3, compiled=compiled), []
    for _ in range(steps):
        loss, _ = gradients(bench, model, make_batch(bench, SHAPE, 3), half)
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss)
    return torch.stack(losses).tolist(), {name: weight.detach() for name, weight in model.named_parameters()}


def compiled_is_eager(bench: Bench) -> dict[str, Any]:
    reason = why_not_compiled(bench.device)
    assert not reason, reason
    models = [make_model(bench, SHAPE) for _ in range(2)]
    (expected, weights), (losses, others) = (train(bench, model, 3, compiled=model is models[1]) for model in models)
    found = {"losses": max(abs(a - b) for a, b in zip(expected, losses, strict=True))}
    assert found["losses"] < 1e-5, found
    return found | {"weights": largest(others, weights)}


def repeat(bench: Bench, compiled: bool) -> dict[str, Any]:
    """The same twelve steps twice."""
    found: dict[str, Any] = {}
    for deterministic in (False,) if compiled else (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            weights = []
            for _ in range(2):
                model, steps = make_model(bench, SHAPE), 3 if bench.small else 12
                weights.append(train(bench, model, steps, half=True, compiled=compiled)[1])
        finally:
            torch.use_deterministic_algorithms(False)
        equal = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        words = "deterministic" if deterministic else "as it is"
        found[words] = "equal bit for bit" if equal else f"differs by {largest(*weights):.2g}"
    assert set(found.values()) == {"equal bit for bit"}, found
    return found


# --- the optimizers --------------------------------------------------------------------------------------------------


def adamw(bench: Bench, compiled: bool) -> dict[str, Any]:
    together, single = make_model(bench, SHAPE), make_model(bench, SHAPE)
    optimizers = (
        AdamW(together.parameters(), foreach=True, compiled=compiled),
        AdamW(single.parameters(), foreach=False),
    )
    optimizers[0].take = torch.tensor(True, device=bench.device)
    for _ in range(5):
        for model, optimizer in zip((together, single), optimizers, strict=True):
            gradients(bench, model, make_batch(bench, SHAPE, 3), False)
            optimizer.step()
    weights = dict(together.named_parameters()), dict(single.named_parameters())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-5, atol=2e-5)
    before = [weight.clone() for weight in together.parameters()]
    next(together.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]
    optimizers[0].take = torch.tensor(False, device=bench.device)
    optimizers[0].step()
    assert all(map(torch.equal, before, together.parameters())), "a step that was not to be taken changed weights"
    return {"weights": largest(*weights)}


def muon(bench: Bench) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    tensors = [[torch.randn(48, 32, generator=generator) for _ in range(3)] for _ in range(3)]  # weights, gradients, m
    there = [[tensor.to(bench.device) for tensor in kind] for kind in tensors]
    for (weights, grads, ms), device in ((tensors, "cpu"), (there, bench.device)):
        muon_update(weights, grads, ms, [], 0.02, 0.95, 0.1, take=torch.tensor(True, device=device))
    for ours, other in zip(tensors[0], there[0], strict=True):
        torch.testing.assert_close(other.cpu(), ours, rtol=1e-4, atol=1e-5)
    half = orthogonalize(there[1][0].bfloat16())
    values = torch.linalg.svdvals(half.float())
    assert 0.6 < values.min() < values.max() < 1.3, f"singular values from {values.min():.2f} to {values.max():.2f}"
    return {"singular values": f"{values.min():.2f} to {values.max():.2f}"}


# --- lm fit ----------------------------------------------------------------------------------------------------------


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


# --- what is made of a run -------------------------------------------------------------------------------------------


def generation(bench: Bench) -> dict[str, Any]:
    """Prompts longer than the context, too, and texts that outgrow it."""
    shape = SHAPE | {"context_length": 40}
    model, on_cpu = make_model(bench, shape), make_model(Bench("cpu", True, bench.folder), shape)
    same_as_cpu = []
    for sampling in (Sampling(0), Sampling(0.8), Sampling(1.0, top_k=20, min_p=0.01, repetition_penalty=1.2)):
        for length in (5, 60):
            prompt = torch.randint(101, (length,), generator=torch.Generator().manual_seed(length)).tolist()
            cached, plain = (list(generate(model, prompt, 60, sampling, use_cache=use)) for use in (True, False))
            assert cached == plain, f"with the cache another text, prompt of {length}, {sampling}"
            same_as_cpu.append(list(generate(on_cpu, prompt, 60, sampling)) == cached)
    half = list(generate(model, [1, 2, 3], 30, Sampling(0), dtype=torch.bfloat16))
    assert len(half) == 30
    return {"texts": len(same_as_cpu), "the CPU writes the same": sum(same_as_cpu)}


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
