"""Proves for every combination of the model's settings that each other way to compute it computes the same: the fast
path in every way, the cache, a checkpoint, and an export in every format, or that the export refuses by name."""

import pytest
from helpers.contracts import (
    cached_is_plain,
    counted_is_measured,
    exported_in_the_dtype,
    exported_is_the_model,
    fast_is_plain,
    kept_is_measured,
    loaded_is_saved,
    one_row_is_plain,
    ways,
)
from helpers.models import LLAMA, SHAPE
from helpers.registries import EXAMPLES, combinations, few, label

from lm.accounting.activations import Arrangement
from lm.commands.export import FORMATS
from lm.generation.one_row import SUPPORT
from lm.generation.program import obstacle

ALL, FEW = (pytest.mark.parametrize("settings", of, ids=label) for of in (combinations(), few()))


@ALL
def test_the_fast_path(settings):
    """Each attention, with all other ways at once."""
    fast_is_plain(settings, [way for way in ways() if all(way.values())])


@FEW
def test_the_fast_path_in_every_way(settings):
    fast_is_plain(settings, ways())


@ALL
def test_the_cache(settings):
    cached_is_plain(settings)


@pytest.mark.skipif(bool(obstacle()), reason=obstacle())
def test_one_row():
    """Every combination, among which the kernel reads each value that it lists."""
    read = [settings for settings in combinations() if one_row_is_plain(settings)]
    for name, listed in SUPPORT.options.items():
        assert {settings.get(name, False) for settings in read} == set(listed), name
    assert {settings.get("bigram_rows") for settings in read} == set(EXAMPLES["bigram_rows"])


def test_a_deeper_model():
    """What all others show for two layers."""
    deeper = few()[0] | {"num_layers": 4, "value_embeddings": True, "smear": True}
    fast_is_plain(deeper, [way for way in ways() if all(way.values())])
    cached_is_plain(deeper)
    one_row_is_plain(deeper)
    counted_is_measured(deeper)
    kept_is_measured(deeper, Arrangement())


@FEW
def test_a_checkpoint(settings, tmp_path):
    loaded_is_saved(settings, tmp_path)


@pytest.mark.parametrize("form", FORMATS)
@ALL
def test_an_export(settings, form, small, tmp_path):
    exported_is_the_model(settings, form, small, tmp_path)


@pytest.mark.parametrize(("form", "dtype"), [(form, dtype) for form, of in FORMATS.items() for dtype in of.dtypes])
def test_the_dtype_of_an_export(form, dtype, small, tmp_path):
    exported_in_the_dtype(LLAMA | SHAPE, form, dtype, small, tmp_path)
