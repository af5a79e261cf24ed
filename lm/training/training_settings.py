"""Checks the settings of LanguageModel that are its own; those of the TransformerLM check themselves."""

import math
from collections.abc import Mapping
from typing import Any

from lm.model.dropout import MOST
from lm.model.transformer import check_choice
from lm.optim.orthogonalization import ITERATIONS
from lm.optim.schedule import DECAY_SHARE, SCHEDULES
from lm.training.optimizers import OPTIMIZERS


def check_training_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a value out of its range, and for one that would have no effect beside the others."""
    for name, registry in {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "muon_iteration": ITERATIONS}.items():
        check_choice(name, settings[name], registry)  # type: ignore[arg-type]
    for name in ("learning_rate", "min_learning_rate", "warmup_steps", "z_loss"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"{name} is {settings[name]}; it must be finite and not negative")
    if not 0 <= settings["dropout"] <= MOST:
        raise ValueError(f"dropout is {settings['dropout']}; it must be at least 0 and at most {MOST:.5f}")
    norm, skipped, share = (settings[name] for name in ("max_gradient_norm", "max_skipped_steps", "decay_share"))
    if not norm > 0:
        raise ValueError(f"max_gradient_norm is {norm}; it must be above 0; .inf never scales")
    if skipped < 1:
        raise ValueError(f"max_skipped_steps is {skipped}; it must be at least 1")
    if not 0 < share <= 1:
        raise ValueError(f"decay_share is {share}; it must be above 0 and at most 1")
    if share != DECAY_SHARE and settings["schedule"] != "trapezoid":
        raise ValueError(
            f"decay_share is {share}, which has no effect on schedule {settings['schedule']}; leave it out"
        )
    attention, compiles = settings["attention"], settings["compile"]
    if not settings["fast"] and (attention not in ("auto", "plain") or compiles is True):
        raise ValueError(f"fast is false: attention {attention} and compile {compiles} would have no effect; set fast")
