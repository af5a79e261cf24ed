"""What only a GPU can get wrong: the computation, the optimizers and generation here, whole runs in run_checks.py.

The oracle is the plain model, on the same device, or the CPU. Tolerances are those of tests/model/test_fast.py; every
check also says how far apart the two were.
"""

from functools import partial
from typing import Any

import torch

from gpu_stages.bench import Bench, Part, gradients, largest, make_batch, make_model
from gpu_stages.run_checks import commands, export, resume, short_fit, skipped_steps, step_waits_for_nothing
from lm.generation.sampling import Sampling
from lm.generation.writer import generate
from lm.machine.compiling import compile_graph, why_not_compiled
from lm.model.fast import speed_up
from lm.model.transformer import TransformerLM
from lm.optim.adamw import AdamW
from lm.optim.clipping import clip_gradients
from lm.optim.muon import muon_update
from lm.optim.orthogonalization import orthogonalize

SHAPE = {"vocab_size": 101, "context_length": 158, "d_model": 32, "num_layers": 2, "num_heads": 4}


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


# --- generation -------------------------------------------------------------------------------------------------------


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
