"""The learning rate as a function of the step alone, so that nothing has to be remembered across a restart.

step < warmup                 lr = step / warmup * max
warmup <= step <= end         lr = min + (1 + cos(pi (step - warmup) / (end - warmup))) / 2 * (max - min)
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
