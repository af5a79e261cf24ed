"""Proves for every combination of the model's settings that what `lm account` counts is what torch measures:
parameters, FLOPs, and what is kept for the backward pass."""

import itertools

import pytest
from helpers.contracts import counted_is_measured, kept_is_measured
from helpers.registries import combinations, few, label

from lm.accounting.activations import Arrangement
from lm.model.fast_attention import CAUSAL_ATTENTIONS

ARRANGEMENTS = [Arrangement(half=half) for half in (False, True)]
ARRANGEMENTS += [Arrangement(name, fast=True, half=half) for name in CAUSAL_ATTENTIONS for half in (False, True)]
ARRANGEMENTS += [Arrangement("blocks", fast=True, half=half, kernels=True) for half in (False, True)]


@pytest.mark.parametrize("settings", combinations(), ids=label)
def test_parameters_and_flops(settings):
    counted_is_measured(settings)


@pytest.mark.parametrize(("settings", "how"), list(zip(few(), itertools.cycle(ARRANGEMENTS), strict=False)))
def test_what_is_kept(settings, how):
    kept_is_measured(settings, how)


@pytest.mark.slow
def test_what_is_kept_when_compiled():
    kept_is_measured(few()[0] | {"context_length": 160}, Arrangement("blocks", fast=True, compiled=True))
