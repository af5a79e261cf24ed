"""The model settings that each part of this project supports; a part refuses all others by name.

The plain model defines what is right. A part that computes it in another way (faster, one token at a time, as a count
of FLOPs, for another program) is right for the settings it was written for; under a setting that was later added to
the plain model alone, it would silently compute another model. So each such part lists the values that it supports.
They are typed by hand and never taken from a registry, which grows without the part. tests/contracts holds every part
to its list.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from lm.model.transformer import TransformerLM
from tokenization import InputError

# Every part supports any value of these.
NUMBERS = {"vocab_size", "context_length", "d_model", "num_layers", "num_heads", "d_ff"}
NUMBERS |= {"rope_theta", "vocab_multiple"}
OF_LAYERS = "layers", "value_embeddings.tables"  # the modules that hold one for each layer


@dataclass(frozen=True)
class Support:
    """The settings that one part supports.

    part: its name in messages. remedy: what to do instead, for the message. options: the supported values of each
    setting; a setting that is not listed is supported at its default alone. numbers: settings of which any value is
    supported, beside NUMBERS.
    """

    part: str
    remedy: str
    options: Mapping[str, tuple[Any, ...]]
    numbers: tuple[str, ...] = ()

    def check(self, model: TransformerLM) -> None:
        """Raises InputError for a setting or a module of the model that the part does not support."""
        parameters = inspect.signature(type(model).__init__).parameters  # of __init__, as fully_shard adds a __new__
        for name, value in model.settings.items():
            default = parameters[name].default if name in parameters else None
            supported = self.options.get(name, (default,))
            if name not in NUMBERS and name not in self.numbers and value not in supported:
                known = " or ".join(map(str, supported))
                raise InputError(f"{self.part} does not support {name} {value}, only {known}; {self.remedy}")
        for name, kind in foreign_modules(model).items():
            raise InputError(f"{self.part} does not support {kind.__name__}, the model's {name}; {self.remedy}")
        for name, module in model.named_modules():
            if hasattr(module, "weight") and "weight" not in dict(module.named_parameters(recurse=False)):
                computed = f"{name}.weight, which is no parameter but computed, as by pruning"
                raise InputError(f"{self.part} does not support {computed}; {self.remedy}")


def foreign_modules(model: TransformerLM) -> dict[str, type]:
    """Returns, by name, the types of modules that the settings do not ask for: wrapped, replaced or subclassed ones."""
    expected = plain_modules(frozenset(model.settings.items()))
    found = {name: type(module) for name, module in model.named_modules()}
    # The fast path and fully_shard change a module's class for a subclass of their own.
    ours = {name for name, kind in found.items() if kind.__module__.startswith(("lm.", "torch."))}
    return {
        name: kind
        for name, kind in found.items()
        if kind is not expected.get(name) and not (name in ours and issubclass(kind, expected.get(name, ())))
    }


@lru_cache(maxsize=16)  # a model is checked by each part that it meets
def plain_modules(settings: frozenset[tuple[str, Any]]) -> Mapping[str, type]:
    """Returns, by name, the types of modules that the settings ask for."""
    shape = dict(settings)
    layers = shape["num_layers"]
    plain = TransformerLM(**shape | {"num_layers": min(layers, 2)}, device="meta")
    expected = {name: type(module) for name, module in plain.named_modules()}
    for of_layers in OF_LAYERS:  # all like the second; the first alone names the rotation that they share
        second = f"{of_layers}.1"
        later = {name.removeprefix(second): kind for name, kind in expected.items() if name.startswith(second)}
        for number in range(2, layers):
            expected |= {f"{of_layers}.{number}{rest}": kind for rest, kind in later.items()}
    return MappingProxyType(expected)
