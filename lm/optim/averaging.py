"""Averages a model's weights over its last steps: the mean lies below the noise that each step adds.

    a <- d a + (1 - d) w        after each step;  d = min(decay, (1 + t) / (10 + t))

w are the weights that training goes on with, a those to evaluate and to keep. The average reaches back about
1 / (1 - decay) steps; in the first ones less far, so that it forgets the random start (Polyak and Juditsky 1992; the
warmup of d is TensorFlow's). What it gains, it gains where the learning rate is still high: with a schedule that falls
to 0, the last weights are an average already.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class WeightAverage:
    """An exponential moving average of weights, which can take their place in the model and give it back.

    Raises ValueError for a decay that is not at least 0 and below 1; 0 is no average.
    """

    def __init__(self, weights: Iterable[Tensor], decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay is {decay}; it must be at least 0, which averages nothing, and below 1")
        self.weights, self.decay = list(weights), decay
        self.steps = 0  # averaged so far
        self.others: list[Tensor] = []  # the averages; while these are in the model, the weights of training
        self.in_model = False

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights after a step into the average."""
        if not self.decay:
            return
        self.steps += 1
        if self.steps == 1:
            self.others = [weight.detach().clone() for weight in self.weights]
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self._join_devices()
        torch._foreach_lerp_(self.others, [weight.detach() for weight in self.weights], 1 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Puts the average into the model, or the weights of training back; does nothing before the first update."""
        self._join_devices()
        for weight, other in zip(self.weights, self.others, strict=False):  # of which there are none at first
            kept = weight.detach().clone()
            weight.copy_(other)
            other.copy_(kept)
        self.in_model = bool(self.others) and not self.in_model

    def _join_devices(self) -> None:
        """Moves what a checkpoint has brought to the weights' devices, which may have changed since."""
        self.others = [other.to(weight.device) for weight, other in zip(self.weights, self.others, strict=False)]

    def states(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns a model's state with the averages in it, and with the weights of training, wherever each is now.

        state: by name, with the very weights as values.
        """
        others = dict(zip(self.weights, self.others, strict=True))
        shown = {name: value.detach() for name, value in state.items()}
        hidden = {name: others.get(value, value.detach()) for name, value in state.items()}
        return (shown, hidden) if self.in_model else (hidden, shown)

    def load(self, state: Mapping[str, Tensor], averages: Mapping[str, Tensor], steps: int) -> None:
        """Takes over the averages that `states` has returned for this state, after so many steps."""
        names = {weight: name for name, weight in state.items()}
        self.others = [averages[names[weight]].clone() for weight in self.weights]
        self.steps, self.in_model = steps, False
