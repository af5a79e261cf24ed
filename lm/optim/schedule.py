"""The learning rate as a function of the step alone, so that nothing has to be remembered across a restart.

step < warmup                 lr = step / warmup * max
warmup <= step <= end         lr = min + (1 + cos(pi (step - warmup) / (end - warmup))) / 2 * (max - min)
                       or, in a trapezoid: max, and in the last `decay` steps  min + (end - step) / decay * (max - min)
step > end                    lr = min
"""

import math


def cosine_warmup(
    step: int, max_learning_rate: float, min_learning_rate: float, warmup_steps: int, end_step: int
) -> float:
    """The learning rate of optimizer step number `step`, counted from 0 (handout, section 4)."""
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
    decay_share: float = 0.3,
) -> float:
    """Warmup, a constant rate, and a straight line down in the last decay_share of the steps (Hu et al. 2024, "WSD").

    Before the line begins, the rate does not depend on where the run will end.
    """
    if step < warmup_steps:
        return step / warmup_steps * max_learning_rate
    decay_steps = max(1, decay_share * (end_step - warmup_steps))
    height = min(1.0, max(0.0, (end_step - step) / decay_steps))
    return min_learning_rate + height * (max_learning_rate - min_learning_rate)


SCHEDULES = {"cosine": cosine_warmup, "trapezoid": trapezoid}
