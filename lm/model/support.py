"""Which settings of a model a part of this project supports; it refuses the rest by name.

The plain model is the measure of what is right. Whoever computes the same in another way (faster, for one token at a
time, as a count of FLOPs, for another program) is right for the settings it was written for, and would be another
model under a setting that was added to the plain model alone. So each such part writes out what it supports. These
values are typed by hand and never taken from a registry, which grows without the part. tests/contracts holds every
part to what it claims.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm.model.transformer import TransformerLM
from tokenization import InputError

# Numbers that every part reads from the shapes of the weights.
NUMBERS = {"vocab_size", "context_length", "d_model", "num_layers", "num_heads", "d_ff"}
NUMBERS |= {"rope_theta", "vocab_multiple"}


@dataclass(frozen=True)
class Support:
    """The settings that one part supports.

    part: its name in messages. remedy: what a user can do without it. options: the supported values of each setting;
    one that is not named is supported at its default, as if it did not exist.
    """

    part: str
    remedy: str
    options: Mapping[str, tuple[Any, ...]]

    def check(self, model: TransformerLM) -> None:
        """Raises InputError for a setting or a module of the model that the part does not support."""
        parameters = inspect.signature(type(model).__init__).parameters  # fully_shard puts a __new__ before it
        for name, value in model.settings.items():
            default = parameters[name].default if name in parameters else None
            supported = self.options.get(name, (default,))
            if name not in NUMBERS and value not in supported:
                known = " or ".join(map(str, supported))
                raise InputError(f"{self.part} does not support {name} {value}, only {known}; {self.remedy}")
        for name, kind in foreign_modules(model).items():
            raise InputError(f"{self.part} does not support {kind.__name__}, the model's {name}; {self.remedy}")


def foreign_modules(model: TransformerLM) -> dict[str, type]:
    """Returns the modules that the settings do not describe: wrapped, replaced or subclassed ones, by name."""
    plain = TransformerLM(**model.settings, device="meta")
    expected = {name: type(module) for name, module in plain.named_modules()}
    found = {name: type(module) for name, module in model.named_modules()}
    # The fast path and fully_shard put subclasses of their own in a module's place.
    ours = {name for name, kind in found.items() if kind.__module__.startswith(("lm.", "torch."))}
    return {
        name: kind
        for name, kind in found.items()
        if kind is not expected.get(name) and not (name in ours and issubclass(kind, expected.get(name, ())))
    }
