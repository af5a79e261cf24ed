"""Proves that the activations counted are those that autograd keeps, and that the largest batch still fits."""

import pytest
import torch

from lm.accounting import activations
from lm.accounting.activations import Arrangement, arrange, kept_bytes, make_model, peak_bytes
from lm.accounting.estimate import _largest_batch
from lm.model import fast_attention
from lm.model.fast import speed_up

SMALL = {"vocab_size": 100, "context_length": 24, "d_model": 32, "num_layers": 3, "num_heads": 4}


def really_kept(settings: dict, batch_size: int, how: Arrangement) -> int:
    """Bytes of what autograd saves of a real forward pass, parameters and tables excepted, each storage once."""
    model = make_model(settings).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.normal_(tensor, std=0.1)
    if how.fast:
        speed_up(model, how.attention, kernels=how.kernels)
    if how.compiled:  # what is kept is decided before code is generated, for which no compiler is needed
        torch._dynamo.reset()
        model.compile(backend="aot_eager_decomp_partition")
    known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor):
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    tokens = torch.randint(settings["vocab_size"], (batch_size, settings["context_length"] + 1))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=how.half),
    ):
        loss = model(tokens[:, :-1], targets=tokens[:, 1:])
    loss.backward()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in known)


VARIANTS = [{}, {"feed_forward": "silu"}, {"norm_position": "post"}, {"norm_position": "none"}]
VARIANTS += [{"position_encoding": "none", "vocab_multiple": 64}]
WAYS = [("plain", False), ("plain", True), ("blocks", True), ("sdpa", True)]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_what_is_kept_is_what_autograd_saves(changes, half):
    settings = {**SMALL, "context_length": 160, **changes}
    ways = [Arrangement(attention, fast, half) for attention, fast in WAYS]
    for how in [*ways, Arrangement("blocks", True, half, kernels=True), Arrangement("sdpa", True, half, kernels=True)]:
        assert sum(kept_bytes(settings, 2, how).values()) == really_kept(settings, 2, how), how


def test_what_several_blocks_keep(monkeypatch):
    monkeypatch.setattr(fast_attention, "WHOLE", 0)
    activations._traced.cache_clear()
    try:
        for kernels in (False, True):
            settings, how = {**SMALL, "context_length": 300}, Arrangement("blocks", True, True, kernels=kernels)
            assert sum(kept_bytes(settings, 2, how).values()) == really_kept(settings, 2, how)
    finally:
        activations._traced.cache_clear()


@pytest.mark.parametrize("changes", [{}, {"context_length": 256, "num_heads": 16, "d_model": 64}], ids=str)
@pytest.mark.parametrize("room", [1e5, 3e7, 1e9])
def test_the_largest_batch_is_the_last_that_fits(changes, room):
    """Also where small batches attend in one block, and large ones in several."""
    settings, how = {**SMALL, **changes}, Arrangement("blocks", True, True, kernels=True)

    def kept(batch_size: int) -> int:
        return sum(kept_bytes(settings, batch_size, how).values()) if batch_size else 0

    largest = _largest_batch(room, settings, how)
    assert kept(largest) <= room < kept(largest + 1)


@pytest.mark.parametrize(
    ("changes", "attention", "half"),
    [({}, "blocks", True), ({"norm_position": "post", "feed_forward": "silu"}, "sdpa", False)],
)
def test_what_is_kept_when_compiled(changes, attention, half):
    settings = {**SMALL, "context_length": 160, "num_layers": 2, **changes}
    how = Arrangement(attention, True, half, compiled=True)
    assert sum(kept_bytes(settings, 2, how).values()) == pytest.approx(really_kept(settings, 2, how), rel=0.01)


def test_recomputing_keeps_one_block_and_what_each_begins_with():
    whole, less = (Arrangement("blocks", True, recompute=recompute) for recompute in (False, True))
    one, three = ({**SMALL, "num_layers": layers} for layers in (1, 3))
    assert kept_bytes(one, 2, less) == kept_bytes(one, 2, whole)
    more = sum(kept_bytes(three, 2, less).values()) - sum(kept_bytes(one, 2, less).values())
    assert more == 2 * 4 * 2 * 24 * 32
    assert sum(kept_bytes(three, 2, less).values()) < sum(kept_bytes(three, 2, whole).values())


def test_arrangement_is_the_one_that_fit_chooses():
    settings = {**SMALL, "fast": True, "attention": "auto", "compile": "auto", "recompute_activations": False}
    assert arrange(settings, "bf16-mixed", 1e4) == Arrangement("blocks", True, True, False, kernels=True)
    assert arrange(settings, "32-true", 1e12) == Arrangement("blocks", True, False, False, kernels=True)
    for changes in ({"qk_norm": True}, {"norm_position": "post"}, {"feed_forward": "silu"}):
        assert arrange({**settings, **changes}, "32-true", 1e12).compiled
        assert not arrange({**settings, **changes}, "32-true", 10).compiled
    assert arrange({**settings, "context_length": 2048}, "32-true", 10).attention == "sdpa"
    assert arrange({**settings, "fast": False}, "32-true", 1e12) == Arrangement()


def test_gradients_that_wait_for_the_next_batch_count_beside_what_is_kept():
    settings, how = {**SMALL, "optimizer": "adamw"}, Arrangement("blocks", True, True, kernels=True)
    gradients = 4 * make_model(settings).num_parameters()
    for batch_size in (1, 200):  # less than the gradients, and more
        once, several = (peak_bytes(settings, batch_size, how, batches) for batches in (1, 4))
        kept = peak_bytes(settings, batch_size, how, 4) - peak_bytes(settings, 0, how, 4)
        assert several - once == pytest.approx(min(gradients, kept), rel=0.2)
