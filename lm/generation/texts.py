"""A text that is being generated: its prompt, its settings, and the tokens drawn so far.

How tokens are drawn for many texts at once is in writer.py; which characters of a text can be shown is in
continuation.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch

from lm.generation.sampling import Sampling
from tokenization import InputError


@dataclass(eq=False)
class Text:
    """A prompt and its completion, as token ids.

    max_new_tokens: the most tokens to draw. seed: of the random numbers, which decide the completion. top: how many
    of the likeliest tokens to report at each place, with their log-probabilities and that of the token drawn; None
    reports nothing. number: chosen by the owner, to recognize the text. score_prompt: also reports the prompt's
    log-probabilities; then the prompt must fit the context. Raises InputError for a number that is not whole, or is
    below 0.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int = 0
    top: int | None = None
    number: int = 0
    score_prompt: bool = False
    ids: list[int] = field(init=False)  # the prompt and the tokens drawn
    scored: list["Drawn"] = field(init=False, default_factory=list)  # the prompt's tokens; the first has no probability
    finish: str = field(init=False, default="")  # "stop": the model ended it; "length": max_new_tokens did; "error"
    error: Exception | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens)
        check_whole("seed", self.seed, bits=64)  # each further prompt takes the next one
        self.ids = list(self.prompt)
        self.generator = torch.Generator().manual_seed(int(self.seed))


@dataclass(frozen=True)
class Drawn:
    """A token drawn for a text, or the end of the text.

    token_id: None at the end; if the model ended the text, the log-probability is that of its end-of-text token. last:
    nothing follows. likeliest: (token id, log-probability) of the likeliest tokens. All log-probabilities are natural
    logarithms and the model's own, before temperature, filters and penalty.
    """

    text: Text
    token_id: int | None
    last: bool
    log_probability: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class NonFiniteLogits(InputError):
    """The error of a text for which the model gives no next-token distribution."""

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite; its training has diverged")


def check_whole(name: str, value: Any, least: int = 0, bits: int = 63) -> None:
    """Raises InputError for a value that is no whole number, is below `least`, or needs more bits."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} {value!r}: it must be a whole number")
    if not least <= value < 1 << bits:  # type: ignore[operator]  # Integral has no order for mypy
        raise InputError(f"{name} {value}: it must be at least {least} and below 2^{bits}")


def check_prompt(number: int, prompt: Sequence[int], vocab_size: int) -> None:
    """Raises InputError for a prompt that is empty, or has an id outside the vocabulary."""
    if not prompt:
        raise InputError(f"prompt {number} has no tokens; to begin a new document, use the end-of-text token")
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        wrong = next(token_id for token_id in prompt if not 0 <= token_id < vocab_size)
        raise InputError(f"prompt {number} has the id {wrong}; there are ids from 0 to {vocab_size - 1}")
