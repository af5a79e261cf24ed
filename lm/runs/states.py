"""Walks the tensors of a state: nested dicts and lists, as in checkpoints. A dotted name says where each lies."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def named_tensors(state: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a state, under dotted names."""
    if isinstance(state, Tensor):
        yield prefix, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from named_tensors(value, f"{prefix}.{key}" if prefix else str(key))


def replace_tensors(state: Any, change: Callable[[str, Tensor], Any], prefix: str = "") -> Any:
    """Returns a state with change(dotted name, tensor) in each tensor's place; tuples stay as they are."""
    if isinstance(state, Tensor):
        return change(prefix, state)
    if isinstance(state, dict):
        names = {key: f"{prefix}.{key}" if prefix else str(key) for key in state}
        return {key: replace_tensors(value, change, names[key]) for key, value in state.items()}
    if isinstance(state, list):
        return [replace_tensors(value, change, f"{prefix}.{key}") for key, value in enumerate(state)]
    return state
