"""What would make a training step faster: the same step without Lightning, with one thing done in another way.

All with configs/tinystories.yaml's model, bfloat16 and batch 128; the first line is the step as `lm fit` computes it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import lm.fast
from gpu_stages.bench import Bench, Part, make_batch, make_model
from gpu_stages.throughput import figures
from lm.layers import Embedding
from lm.optimizer import AdamW, clip_gradients
from lm.transformer import TransformerLM

BATCH, STEPS = 128, 60
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "logits kept": {"logits_kept": True},
    "optimizer compiled": {"optimizer": "compiled"},
    "torch's fused AdamW": {"optimizer": "fused"},
    "looked-up embeddings": {"lookup": True},
    "CUDA graphs": {"mode": "reduce-overhead"},
    "logits kept, optimizer compiled": {"logits_kept": True, "optimizer": "compiled", "lookup": True},
    "logits kept, CUDA graphs": {
        "logits_kept": True,
        "optimizer": "compiled",
        "lookup": True,
        "mode": "reduce-overhead",
    },
    "loss in chunks of 2^24": {"chunk": 1 << 24},
    "loss in chunks of 2^28": {"chunk": 1 << 28},
    "vocabulary to 64": {"vocab_multiple": 64},
    "autotuned": {"mode": "max-autotune-no-cudagraphs"},
}


def parts(bench: Bench) -> dict[str, Part]:
    return {name: partial(measure, bench, **variant) for name, variant in VARIANTS.items()}


def update(
    weights: list[Tensor], gradients: list[Tensor], ms: list[Tensor], vs: list[Tensor], step_size: Tensor, take: Tensor
) -> None:
    """AdamW over all tensors, to be compiled: for each tensor one kernel, which reads and writes everything once."""
    for weight, gradient, m, v in zip(weights, gradients, ms, vs, strict=True):
        gradient = torch.where(take, gradient, 0.0)
        m.copy_(torch.where(take, 0.9 * m + 0.1 * gradient, m))
        v.copy_(torch.where(take, 0.95 * v + 0.05 * gradient * gradient, v))
        weight.copy_(torch.where(take, weight * (1 - 1e-3 * 0.1) - step_size * m / (v.sqrt() + 1e-8), weight))


def make_update(model: TransformerLM, kind: str, compiled: bool) -> Callable[[Tensor], None]:
    """kind: ours, compiled, or fused, which is torch's -> what makes a step where its argument is true."""
    weights = list(model.parameters())
    if kind == "fused":
        theirs = torch.optim.AdamW(weights, 1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        return lambda take: theirs.step()
    if kind == "ours":
        optimizer = AdamW(weights, 1e-3, together=True)

        def step(take: Tensor) -> None:
            optimizer.take = take
            optimizer.step()

        return step
    ms, vs = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    function, t = torch.compile(update) if compiled else update, 0

    @torch.no_grad()
    def own(take: Tensor) -> None:
        nonlocal t
        t += 1
        step_size = torch.full((), 1e-3 * math.sqrt(1 - 0.95**t) / (1 - 0.9**t), device=take.device)
        function(weights, [weight.grad for weight in weights], ms, vs, step_size, take)  # type: ignore[misc]

    return own


def measure(
    bench: Bench,
    logits_kept: bool = False,
    optimizer: str = "ours",
    lookup: bool = False,
    mode: str | None = None,
    chunk: int | None = None,
    vocab_multiple: int = 1,
) -> dict[str, Any]:
    shape = bench.shape | {"vocab_multiple": vocab_multiple}
    model = make_model(bench, shape)
    model.speed_up("sdpa", joint_products=True)
    model.fast = not logits_kept
    original = Embedding.forward, lm.fast.GPU_LOGITS
    if lookup:
        Embedding.forward = lambda self, ids: torch.nn.functional.embedding(ids, self.weight)  # type: ignore
    lm.fast.GPU_LOGITS = chunk or lm.fast.GPU_LOGITS
    if not bench.small:
        model.compile(mode=mode)
    batch, steps = make_batch(bench, shape, 2 if bench.small else BATCH), 3 if bench.small else STEPS
    change = make_update(model, optimizer, not bench.small)
    losses: list[Tensor] = []

    def several(count: int) -> None:
        for _ in range(count):
            if mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            with bench.half:
                loss = model(batch[0], targets=batch[1])
            loss.backward()
            change(clip_gradients(model.parameters(), 1.0).isfinite())
            model.zero_grad()
            losses[:] = [loss.detach().clone()]

    try:
        several(5)
        seconds = sorted(bench.seconds(partial(several, steps // 3)) for _ in range(3))[1]
    finally:
        Embedding.forward, lm.fast.GPU_LOGITS = original
    speed = steps // 3 * batch[0].numel() / seconds
    return figures(bench, speed, 0.0) | {"ms a step": seconds / (steps // 3) * 1e3, "loss": losses[0].item()}
