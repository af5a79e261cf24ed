"""Every setting of the model, with the values to test it with: those of the registries, and both of a bool.

    combinations()   each choice with each other, and each number of EXAMPLES
    few()            as many of these as have every pair of two settings' values

Nothing is listed here but numbers, so that a new entry of a registry is tested without a word, and a new setting, too,
or it is missing here and every contract fails.
"""

import inspect
import itertools
import random
from typing import Any

from lm.model import transformer

Settings = dict[str, Any]

SIZES = {"vocab_size": 45, "context_length": 6, "d_model": 16, "num_layers": 2, "num_heads": 2}
WIDE = {"d_model": 32, "d_ff": 48}  # widths that the kernel for one row knows
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "d_ff": (None, 24),
    "rope_theta": (10000.0, 50.0),
    "vocab_multiple": (1, 32),
    "bigram_rows": (None, 50),
    "embedding_skips": (False, True),
    "value_embeddings": (False, True),
    "smear": (False, True),
}
NO_SETTINGS = ("device", "dtype")


def values(name: str, default: Any) -> tuple[Any, ...]:
    """Returns the values to test a setting with; norm_position's are in NORM_POSITIONS, and so on."""
    registry = getattr(transformer, f"{name.upper()}S", None)
    if registry is not None:
        return tuple(registry)
    if isinstance(default, bool):
        return False, True
    if name in SIZES:
        return (SIZES[name],)
    if name not in EXAMPLES:
        raise LookupError(f"no example value for the new setting {name}: tests/helpers/registries.py needs some")
    return EXAMPLES[name]


def all_values() -> dict[str, tuple[Any, ...]]:
    parameters = inspect.signature(transformer.TransformerLM).parameters
    return {name: values(name, of.default) for name, of in parameters.items() if name not in NO_SETTINGS}


def combinations() -> list[Settings]:
    """Returns the product of all choices, each with numbers drawn from EXAMPLES; and all numbers by themselves."""
    known = all_values()
    choices = {name: known[name] for name in known if name not in EXAMPLES}
    numbers = {name: known[name] for name in known if name in EXAMPLES}
    found = [dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())]
    rng = random.Random(0)
    drawn = [settings | {name: rng.choice(of) for name, of in numbers.items()} for settings in found]
    return drawn + [found[0] | {name: value} for name, of in numbers.items() for value in of]


def few() -> list[Settings]:
    """Returns combinations in which every value of a setting meets every value of every other."""
    waiting = combinations()
    unmet = set().union(*(meetings(settings) for settings in waiting))
    chosen = []
    while unmet:
        chosen.append(max(waiting, key=lambda settings: len(unmet & meetings(settings))))
        unmet -= meetings(chosen[-1])
    return chosen


def meetings(settings: Settings) -> set[tuple[Any, ...]]:
    """Returns the pairs of two settings with their values."""
    return set(itertools.combinations(sorted((name, repr(value)) for name, value in settings.items()), 2))


def label(settings: Settings) -> str:
    """Names a combination in a test's id: what is not the same everywhere."""
    return "-".join(f"{name}={value}" for name, value in settings.items() if name not in SIZES)
