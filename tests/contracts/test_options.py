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
    own, of_model = (inspect.signature(kind).parameters for kind in (LanguageModel, TransformerLM))
    offered = set(get_args((own if name in own else of_model)[name].annotation))
    file = "lm/training/module.py" if name in own else "lm/model/transformer.py"
    for missing in set(CHOICES[name]) - offered:
        pytest.fail(f"the command line does not offer {name} {missing}: add it to the Literal in {file}")
    for unknown in offered - set(CHOICES[name]):
        pytest.fail(f"{name} {unknown} is offered, but is in no registry: remove it from the Literal in {file}")
