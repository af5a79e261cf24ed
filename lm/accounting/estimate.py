"""Estimates what a configuration costs, from shapes alone, as one dict that JSON can hold.

The figures are computed in costs.py and activations.py. They are for one process on a CPU, in float32 or with bfloat16
products; not_counted lists the settings of a configuration for which they do not hold.
"""

import math
from typing import Any

from jsonargparse import Namespace

from lm.accounting import activations, costs
from lm.accounting.activations import Arrangement, arrange, make_model, run_tokens

COUNTED: dict[str, tuple[object, ...]] = {  # the values of the Trainer's settings for which the figures hold
    "accelerator": ("auto", "cpu"),
    "devices": ("auto", 1),
    "num_nodes": (1,),
    "strategy": ("auto",),
    "precision": ("32", "32-true", "bf16", "bf16-mixed"),
}


def estimate(config: Namespace, edition: int, memory: float) -> dict[str, Any]:
    """Returns the costs of a configuration by part: parameters, FLOPs and bytes, and the largest batch that fits.

    edition: of the handout, for its count of activations; memory: in bytes.
    """
    settings, batch_size = vars(config.model), config.data.batch_size
    model, how = make_model(settings), arrange(settings, config.trainer.precision, run_tokens(config))
    forward = costs.forward_flops(model)
    handout = {part: 4 * count for part, count in costs.handout_activations(model, edition).items()}
    ours = activations.kept_bytes(settings, batch_size, how)
    state = costs.state_bytes(model, settings["optimizer"], settings["ema_decay"] > 0)
    fixed = sum(state.values())
    return {
        "settings": settings | model.settings,
        "batch_size": batch_size,
        "edition": edition,
        "arrangement": str(how),
        "parameters": costs.parameters_by_part(model),
        "state_bytes": state,
        "matrix_products": [
            product._asdict() | {"times": times, "flops": product.flops * times}
            for product, times in costs.matrix_products(model).items()
        ],
        "forward_flops": forward,
        "training_flops": {part: 3 * flops for part, flops in forward.items()},
        "training_flops_per_token": costs.training_flops_per_token(model),
        "adamw_flops": costs.adamw_flops(model.num_parameters()) if settings["optimizer"] == "adamw" else None,
        "activation_bytes": {"handout": handout, "ours": ours},  # of one sequence; of the batch
        "memory": memory,
        "largest_batch": {
            "handout": costs.largest_batch(memory, fixed, sum(handout.values())),
            "ours": _largest_batch(memory - fixed, settings, how),
        },
        "peak_bytes": activations.expected_peak(config),
        "not_counted": not_counted(config.trainer),
    }


def _largest_batch(room: float, settings: dict[str, Any], how: Arrangement) -> int:
    """Returns the largest batch that keeps no more bytes than there is room.

    They grow linearly with the batch, but for a step where attention changes to blocks: a second estimate begins where
    the first one ends.
    """
    batch = 1
    for _ in range(2):
        start = max(1, batch)
        here, more = (sum(activations.kept_bytes(settings, size, how).values()) for size in (start, start + 1))
        batch = start + math.floor((room - here) / (more - here))
    return max(0, batch)


def not_counted(trainer: Namespace) -> list[str]:
    """Lists the settings of the Trainer for which the figures do not hold."""
    return [f"trainer.{name} {trainer[name]}" for name, values in COUNTED.items() if trainer[name] not in values]


def training_time(config: Namespace, tokens: float | None, device: str, peak: float, mfu: float) -> dict[str, Any]:
    """Estimates the seconds of a training of so many tokens (default: the run's) on a device.

    peak: the device's FLOP/s; mfu: the share of them that is used.
    """
    tokens = tokens or run_tokens(config)
    seconds = costs.training_seconds(make_model(vars(config.model)), tokens, peak, mfu)
    return {"tokens": tokens, "device": device, "flops_per_second": peak, "mfu": mfu, "seconds": seconds}
