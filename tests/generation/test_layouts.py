"""Proves that weights in each layout multiply as before, and that a layout is chosen once, by the clock, and kept."""

import os

import pytest
import torch

from lm.generation.decoding import CachedReader, PlainReader
from lm.generation.layouts import LAYOUTS, PACKED, PLAIN, can_pack, choose_layout, join, lay_out, time_layouts
from lm.generation.program import obstacle
from lm.model.transformer import TransformerLM


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_weights_in_each_layout_multiply_as_before(layout, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, 24, generator=generator) for rows in (40, 7)]
    x = torch.randn(3, 5, 24, generator=generator)
    if layout == PACKED and not can_pack(x, dtype):
        pytest.skip("not on this processor")
    expected = torch.cat([x @ weight.T for weight in weights], dim=-1)
    error = lay_out(join(weights, dtype), layout)(x.to(dtype)).float() - expected
    assert error.abs().amax() < tolerance * expected.abs().amax()


@pytest.mark.parametrize("rows", [1, 8, 9, 40])
@pytest.mark.parametrize("reason", ["", "llvmlite is not installed"])
def test_without_instructions_for_bfloat16_the_weight_is_converted(reason, rows, monkeypatch):
    """By the kernel or by torch; sums are taken in float32, and rounded once."""
    monkeypatch.setattr("lm.generation.layouts.has_packed_product", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr("lm.generation.layouts.obstacle", lambda: reason or obstacle())
    generator = torch.Generator().manual_seed(rows)
    weight, x = (torch.randn(size, 48, generator=generator).bfloat16() for size in (70, rows))
    expected = x.double() @ weight.double().T
    product = lay_out(weight, PLAIN)(x[:, None])
    assert (product.dtype, product.shape) == (torch.bfloat16, (rows, 1, 70))
    assert ((product[:, 0] - expected).abs() <= expected.abs() * 2**-8 + 1e-4).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reader_reads_as_the_model_does_in_each_layout(layout, monkeypatch):
    """Against the plain reader, for a prompt, one row and several."""
    torch.manual_seed(0)
    model, token_ids = TransformerLM(300, 16, 64, 2, num_heads=2), torch.randint(300, (2, 30)).tolist()
    monkeypatch.setattr("lm.generation.decoding.choose_layout", lambda *_: layout)
    plain, cached = PlainReader(model), CachedReader(model, 2, torch.float32)
    for row in range(2):
        torch.testing.assert_close(cached.read(row, token_ids[row][:7]), plain.read(row, token_ids[row][:7]))
    for new in zip(*(ids[7:] for ids in token_ids), strict=True):
        torch.testing.assert_close(cached.step(new), plain.step(new), atol=1e-4, rtol=1e-4)


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """timed(packed, plain): the seconds that each layout is to take from now on. Choices are kept in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("lm.generation.layouts.can_pack", lambda *_: True)
    calls = []

    def set_times(packed: float, plain: float) -> list:
        monkeypatch.setattr(
            "lm.generation.layouts.time_layouts",
            lambda *arguments: calls.append(arguments) or {PACKED: packed, PLAIN: plain},
        )
        return calls

    return set_times


LARGE = [[torch.zeros(700, 900), torch.zeros(500, 900)]]


def test_a_layout_is_chosen_once(timed, tmp_path):
    """By the shape, the dtype, the rows up to a power of two, and the threads; then it stays, whatever it is later."""
    calls = timed(packed=2.0, plain=1.0)
    assert choose_layout(LARGE, torch.float32, 1) == PLAIN
    timed(packed=1.0, plain=2.0)
    assert choose_layout(LARGE, torch.float32, 1) == PLAIN
    assert len(calls) == 1
    assert choose_layout(LARGE, torch.bfloat16, 1) == PACKED
    assert [choose_layout(LARGE, torch.float32, rows) for rows in (2, 3, 4, 5, 8, 64, 100)] == [PACKED] * 7
    assert [rows for *_, rows in calls] == [1, 1, 2, 4, 8, 64]
    assert choose_layout([*LARGE, *LARGE], torch.float32, 1) == PACKED
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert choose_layout(LARGE, torch.float32, 1) == PACKED
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*/*")
    for content in ("{", path.read_text().replace(PLAIN, "as you like").replace(PACKED, "7")):
        path.write_text(content)
        calls.clear()
        assert choose_layout(LARGE, torch.float32, 1) == PACKED
        assert choose_layout(LARGE, torch.float32, 1) == PACKED
        assert len(calls) == 1


def test_a_layout_that_cannot_be_kept_is_always_the_same(timed, monkeypatch):
    timed(packed=2.0, plain=1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert choose_layout(LARGE, torch.float32, 1) == PACKED
    monkeypatch.undo()
    assert choose_layout([[torch.zeros(3, 2)]], torch.float32, 1) == PACKED  # too small to be worth it
    assert choose_layout([[torch.zeros(3, 2, device="meta")]], torch.float32, 1) == PLAIN


def test_a_tie_keeps_the_packed_order(timed):
    for plain, chosen, width in ((1.0, PACKED, 901), (0.96, PACKED, 902), (0.9, PLAIN, 903)):
        timed(packed=1.0, plain=plain)
        assert choose_layout([[torch.zeros(1300, width)]], torch.float32, 1) == chosen


def test_layouts_are_timed():
    seconds = time_layouts([[torch.ones(64, 32)], [torch.ones(8, 64), torch.ones(8, 64)]], torch.float32, 2)
    assert list(seconds) == list(LAYOUTS)
    assert all(0 < value < 1 for value in seconds.values())
