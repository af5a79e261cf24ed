"""Proves that the command line offers what the registries hold, and nothing else."""

import inspect
from typing import get_args

import pytest
from helpers.registries import all_values

from lm.model.fast_attention import CAUSAL_ATTENTIONS
from lm.model.transformer import TransformerLM
from lm.optim.orthogonalization import ITERATIONS
from lm.optim.schedule import SCHEDULES
from lm.training.module import LanguageModel
from lm.training.optimizers import OPTIMIZERS

CHOICES = {name: of for name, of in all_values().items() if isinstance(of[0], str)}
CHOICES |= {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "muon_iteration": ITERATIONS}
CHOICES |= {"attention": ("auto", *CAUSAL_ATTENTIONS)}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_offered_in_full(name):
    parameters = {**inspect.signature(TransformerLM).parameters, **inspect.signature(LanguageModel).parameters}
    assert set(get_args(parameters[name].annotation)) == set(CHOICES[name])
