"""How fast the GPU trains the handout's base: `lm fit`, and transformers' models compiled, in bfloat16."""

import statistics
import time
from functools import partial
from typing import Any

import torch
from training_stages.others import their_model

from gpu_stages.bench import Bench, Part, curve, fit, make_batch, random_data
from lm.accounting.costs import training_flops_per_token
from lm.machine.compiling import compile_graph, why_not_compiled
from lm.machine.peaks import peak_flops
from lm.machine.resources import native_precision
from lm.model.transformer import TransformerLM

TOKENS = 4_000_000  # that are timed, about
CONTESTS = (  # with so many windows in a batch, the most important first
    ("lm fit", 128),
    ("gpt2", 128),
    ("lm fit", 512),
    ("gpt2", 512),
    ("lm fit", 32),
    ("llama", 128),
    ("gpt2", 32),
    ("llama", 512),
    ("llama", 32),
)


def parts(bench: Bench) -> dict[str, Part]:
    found: dict[str, Part] = {}
    for name, batch in CONTESTS[:1] + CONTESTS[-1:] if bench.small else CONTESTS:
        speed = partial(our_speed, bench) if name == "lm fit" else partial(their_speed, bench, name)
        found[f"{name} {batch}"] = partial(speed, batch)
    return found | {"copy, product": partial(ceilings, bench)}


def ceilings(bench: Bench) -> dict[str, Any]:
    """What the card gives at best: random numbers, as zeros are multiplied faster."""
    size = 256 if bench.small else 8192
    a, b = (torch.randn(size, size, device=bench.device).bfloat16() for _ in range(2))
    source = torch.randn(size * size * 8, device=bench.device)
    target = torch.empty_like(source)
    found = {}
    for name, function, amount in (
        ("TFLOP/s", lambda: a @ b, 2 * size**3 / 1e12),
        ("copied TB/s", lambda: target.copy_(source), 2 * source.nbytes / 1e12),
    ):
        bench.seconds(function)
        found[name] = amount / statistics.median(bench.seconds(function) for _ in range(20))
    return found


def num_steps(bench: Bench, batch: int) -> int:
    tokens = batch * bench.shape["context_length"]
    return 8 if bench.small else max(40, min(400, TOKENS // tokens // 4 * 4))


def figures(bench: Bench, speed: float, start: float) -> dict[str, Any]:
    """start: seconds until the first step that is timed."""
    flops = training_flops_per_token(TransformerLM(**bench.shape, device="meta"))
    peak = peak_flops(bench.device, native_precision(bench.device))[0]
    return {
        "tokens/s": round(speed),
        "mfu": round(speed * flops / peak, 4),
        "peak GB": round(bench.peak_gigabytes(), 2),
        "start s": round(start, 1),
    }


def our_settings(bench: Bench, batch: int, steps: int) -> dict[str, Any]:
    return {
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
        "trainer.limit_val_batches": 1,
        "trainer.log_every_n_steps": steps // 4,
        "model.warmup_steps": 1,
        "model.compile": not bench.small and not why_not_compiled(bench.device),
        "data.batch_size": batch,
        "norms.every_n_steps": 0,
        "checkpoints.every_n_steps": 2 * steps,
        **{f"model.{name}": size for name, size in bench.shape.items()},
        **random_data(bench, bench.shape["vocab_size"]),
    }


def our_speed(bench: Bench, batch: int) -> dict[str, Any]:
    """From the curves that the run itself has written; its first quarter is the start."""
    steps, begun = num_steps(bench, batch), time.perf_counter()
    run = bench.folder / f"fit-{batch}"
    fit(bench, run, "tinystories.yaml", our_settings(bench, batch, steps))
    seconds = time.perf_counter() - begun
    speed = statistics.median(curve(run, "train/tokens_per_second")[1:])
    timed = 0.75 * steps * batch * bench.shape["context_length"] / speed
    return figures(bench, speed, seconds - timed) | {"steps": steps, "loss": curve(run, "train/loss")[-1]}


def their_speed(bench: Bench, name: str, batch: int) -> dict[str, Any]:
    """nanoGPT's loop: clipping, torch's fused AdamW, its cross_entropy; the batches are on the device already."""
    begun, steps, shape = time.perf_counter(), num_steps(bench, batch), bench.shape
    model = their_model(name, **shape).to(bench.device)
    compiled = model if bench.small else torch.compile(model, backend=compile_graph)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = make_batch(bench, shape, batch)

    def step() -> None:
        with bench.half:
            logits = compiled(inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def several(count: int) -> None:
        for _ in range(count):
            step()

    several(5)
    bench.wait()
    start = time.perf_counter() - begun
    # Three times, as `lm fit` tells its speed after each quarter but the first.
    seconds = statistics.median(bench.seconds(partial(several, steps // 4)) for _ in range(3))
    return figures(bench, steps // 4 * inputs.numel() / seconds, start) | {"steps": steps}
