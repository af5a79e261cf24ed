"""Gathers and checks the batches of LanguageModel: pairs of token ids and the tokens that follow them.

windows.py decides which tokens a batch holds. What is wrong with another loader's batches is reported in one line.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm.model.transformer import TransformerLM
from tokenization import InputError
from tokenization.tokens.token_set import Tokens

Batch = tuple[Tensor, Tensor]  # inputs and targets, each (batch, seq), int64


def gather_windows(tokens: Tokens, starts: np.ndarray, context_length: int) -> Batch:
    """Returns inputs and targets, each (len(starts), context_length), int64; targets are the inputs' next tokens."""
    return gather_mixed_windows([tokens] * len(starts), starts, context_length)


def gather_mixed_windows(tokens: Sequence[Tokens], starts: np.ndarray, context_length: int) -> Batch:
    """Returns inputs and targets as `gather_windows` does; window r is of tokens[r]."""
    windows = np.empty((len(starts), context_length + 1), np.int64)
    for row, of_row, start in zip(windows, tokens, starts.tolist(), strict=True):
        row[:] = of_row[start : start + context_length + 1]
    return to_batch(windows)


def to_batch(windows: np.ndarray) -> Batch:
    """Returns inputs and targets from windows, (n, context_length + 1), int64."""
    windows_tensor = torch.from_numpy(windows)
    # Contiguous: a strided tensor reaches a GPU through memory that is not pinned, and that blocks.
    return windows_tensor[:, :-1].contiguous(), windows_tensor[:, 1:].contiguous()


def check_batch(batch: Any, model: TransformerLM) -> Batch:
    """Returns the batch; InputError unless it is a pair of token id tensors that the model can be trained on."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch)):
        raise InputError(f"a batch is {in_words(batch)}; it must be a pair of tensors, (inputs, targets)")
    inputs, targets = batch
    for name, x in (("inputs", inputs), ("targets", targets)):
        if x.dtype != torch.int64:
            raise InputError(f"the {name} of a batch are {x.dtype}; they must be token ids, torch.int64")
    if inputs.ndim != 2 or inputs.shape != targets.shape or not inputs.numel():
        raise InputError(
            f"the inputs of a batch are {tuple(inputs.shape)}, its targets {tuple(targets.shape)}; both must be"
            " (batch, seq), with targets[i, j] the token that follows inputs[i, j]"
        )
    if inputs.shape[1] > model.context_length:
        raise InputError(
            f"the inputs of a batch are {tuple(inputs.shape)}, longer than the model's context_length"
            f" {model.context_length}; cut the sequences, or build a model with a longer context"
        )
    for name, x in (("inputs", inputs), ("targets", targets)):
        if x.is_cpu:  # on a GPU, this would wait for all pending work
            lowest, highest = (int(end) for end in torch.aminmax(x))
            if lowest < 0 or highest >= model.vocab_size:
                wrong = lowest if lowest < 0 else highest
                raise InputError(
                    f"the {name} of a batch hold the token id {wrong}; those of a model with vocab_size"
                    f" {model.vocab_size} are from 0 to {model.vocab_size - 1}"
                )
    return inputs, targets


def in_words(batch: Any) -> str:
    """Names the type of a batch and of its parts: "a list of Tensor, str"."""
    inside = f" of {', '.join(type(x).__name__ for x in batch)}" if isinstance(batch, (tuple, list)) else ""
    return f"a {type(batch).__name__}{inside}"
