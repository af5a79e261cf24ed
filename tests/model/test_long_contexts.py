"""Proves that memory grows with the context, and not with its square: the largest tensor of a training step and of
reading a prompt at twice the context has twice the size. The plain attention, whose scores are (seq, seq), does not."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lm.generation.decoding import CachedReader
from lm.model.fast import speed_up
from lm.model.fast_attention import LONGEST_FOR_BLOCKS, choose_attention
from lm.model.transformer import TransformerLM

SHAPE = {"vocab_size": 64, "d_model": 16, "num_layers": 1, "num_heads": 1, "d_ff": 32}


class Largest(TorchDispatchMode):
    """Notes the most numbers that an operator has returned in one tensor."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result


def make(context_length: int) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(context_length=context_length, **SHAPE)


def of_a_step(context_length: int, attention: str) -> int:
    """Trains on one window."""
    model = make(context_length)
    speed_up(model, attention)
    token_ids = torch.randint(64, (1, context_length + 1))
    with Largest() as largest:
        model(token_ids[:, :-1], targets=token_ids[:, 1:]).backward()
    return largest.numbers


def of_a_prompt(context_length: int, _: str) -> int:
    reader = CachedReader(make(context_length), 1, torch.float32)
    with Largest() as largest:
        reader.read(0, torch.randint(64, (context_length,)).tolist())
    return largest.numbers


@pytest.mark.parametrize("measure", [of_a_step, of_a_prompt])
def test_twice_the_context_takes_twice_the_memory(measure):
    lengths = (LONGEST_FOR_BLOCKS + 64, 2 * (LONGEST_FOR_BLOCKS + 64))
    small, large = (measure(length, choose_attention("cpu", length)) for length in lengths)
    assert small < lengths[0] ** 2 / 10  # no matrix of scores
    assert large <= 2.01 * small


def test_the_plain_attention_takes_four_times():
    """So that what the test above looks at is what grows."""
    small, large = (of_a_step(length, "plain") for length in (512, 1024))
    assert (small, large) == (512**2, 1024**2)
