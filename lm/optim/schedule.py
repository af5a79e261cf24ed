"""Learning-rate schedules: each is a function of the step alone, so a resumed run has nothing to restore.

step < warmup                   lr = step / warmup * max
warmup <= step <= end
                    cosine      lr = min + (1 + cos(pi (step - warmup) / (end - warmup))) / 2 * (max - min)
                    linear      lr = min + (end - step) / (end - warmup) * (max - min)
                    trapezoid   lr = max;  in the last `decay` steps  min + (end - step) / decay * (max - min)
step > end                      lr = min
"""

import functools
import math
from collections.abc import Callable

DECAY_SHARE = 0.3  # of the trapezoid


def cosine_warmup(
    step: int, max_learning_rate: float, min_learning_rate: float, warmup_steps: int, end_step: int
) -> float:
    """Returns the learning rate of an optimizer step, from 0: warmup, then half a cosine (handout, section 4)."""
    if step < warmup_steps:
        return step / warmup_steps * max_learning_rate
    if step > end_step:
        return min_learning_rate
    progress = (step - warmup_steps) / max(1, end_step - warmup_steps)
    return min_learning_rate + (1 + math.cos(math.pi * progress)) / 2 * (max_learning_rate - min_learning_rate)


def trapezoid(
    step: int,
    max_learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    end_step: int,
    decay_share: float = DECAY_SHARE,
) -> float:
    """Returns the learning rate of an optimizer step: warmup, constant, then linear decay (Hu et al. 2024, "WSD").

    decay_share: the share of the steps after warmup that decays; with all of them, this is the linear schedule. Until
    the decay begins, the rate does not depend on end_step.
    """
    if step <= warmup_steps != 0:  # the peak is reached even where the run ends with it
        return step / warmup_steps * max_learning_rate
    decay_steps = max(1, decay_share * (end_step - warmup_steps))
    height = min(1.0, max(0.0, (end_step - step) / decay_steps))
    return min_learning_rate + height * (max_learning_rate - min_learning_rate)


SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine_warmup,
    "linear": functools.partial(trapezoid, decay_share=1.0),
    "trapezoid": trapezoid,
}
