"""Proves that dropout sets to 0 what its masks say, in every way of computing, that the masks follow from the batch's
number alone, and that evaluation knows nothing of it."""

import pytest
import torch

from lm.accounting.activations import Arrangement, kept_bytes
from lm.model.dropout import MOST, Dropout
from lm.model.fast import speed_up, why_no_kernels
from lm.model.loss import cross_entropy
from lm.model.transformer import TransformerLM

SHAPE = {"vocab_size": 30, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24}
SHARE = 0.3


def dropping(share: float = SHARE, batch: int = 3, **settings) -> tuple[TransformerLM, Dropout]:
    torch.manual_seed(0)
    model = TransformerLM(**SHAPE | settings)
    dropout = Dropout(model, share)
    dropout.draw(7, batch, torch.Size((4, 8)), torch.device("cpu"))
    return model, dropout


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(30, (4, 9), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def gradients(model: TransformerLM) -> dict[str, torch.Tensor]:
    model.zero_grad()
    inputs, targets = batch()
    model(inputs, targets).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("norm_position", ["pre", "post", "none"])
def test_it_is_the_model_with_parts_multiplied_by_the_masks(norm_position):
    model, dropout = dropping(norm_position=norm_position)
    masks, (inputs, targets) = iter(dropout.masks.float() / (1 - SHARE)), batch()
    plain = TransformerLM(**SHAPE, norm_position=norm_position)
    plain.load_state_dict(model.state_dict())
    x = plain.token_embeddings(inputs) * next(masks)
    for block in plain.layers:
        for part, norm in ((lambda y, b=block: b.attn(y, torch.arange(8)), block.ln1), (block.ffn, block.ln2)):
            if norm_position == "pre":
                x = x + part(norm(x)) * next(masks)
            else:
                x = x + part(x) * next(masks)
                x = norm(x) if norm is not None else x
    expected = cross_entropy(plain.logits(x if plain.ln_final is None else plain.ln_final(x)), targets)
    torch.testing.assert_close(model(inputs, targets), expected)
    assert next(masks, None) is None
    with torch.no_grad():
        assert (model(inputs, targets) - plain(inputs, targets)).abs() > 1e-3
        assert torch.equal(model.eval()(inputs), plain(inputs))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_other_ways_drop_the_same():
    expected = gradients(dropping()[0])
    recomputing, _ = dropping()
    recomputing.recompute = True
    for name, gradient in gradients(recomputing).items():
        assert torch.equal(gradient, expected[name])
    for attention, kernels in (("blocks", False), ("blocks", not why_no_kernels()), ("sdpa", False)):
        fast, _ = dropping()
        speed_up(fast, attention, joint_products=attention == "sdpa", kernels=kernels)
        for name, gradient in gradients(fast).items():
            torch.testing.assert_close(gradient, expected[name])


@pytest.mark.slow
def test_compiled_it_drops_the_same_and_is_compiled_once():
    model, dropout = dropping()
    fast, drawn = dropping()
    speed_up(fast, "blocks")
    fast.compile(backend="aot_eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for number in range(4):
        for drawing in (dropout, drawn):
            drawing.draw(7, number, torch.Size((4, 8)), torch.device("cpu"))
        expected = gradients(model)
        for name, gradient in gradients(fast).items():
            torch.testing.assert_close(gradient, expected[name])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_masks_drop_their_share_and_follow_from_the_number(share):
    _, first = dropping(share, batch=0)
    first.draw(7, 0, torch.Size((64, 8)), torch.device("cpu"))
    masks = first.masks.clone()
    assert masks.shape == (5, 64, 8, 16)
    deviation = (share * (1 - share) / masks[0].numel()) ** 0.5
    assert ((~masks).float().mean(dim=(1, 2, 3)) - share).abs().max() < 4 * deviation
    flat = masks.flatten(1).float()
    apart = torch.corrcoef(flat) - torch.eye(5)
    assert apart.abs().max() < 5 / flat.shape[1] ** 0.5
    for seed, number, same in ((7, 0, True), (7, 1, False), (8, 0, False)):
        first.draw(seed, number, torch.Size((64, 8)), torch.device("cpu"))
        assert torch.equal(first.masks, masks) == same


def test_nothing_is_drawn_from_the_global_generator():
    _, dropout = dropping()
    before = torch.get_rng_state()
    dropout.draw(7, 1, torch.Size((4, 8)), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_largest_share_drops_nearly_all():
    """And no larger one can be told from the next whole number of 65,536ths, at which nothing would be dropped."""
    _, dropout = dropping(MOST)
    dropout.draw(7, 0, torch.Size((512, 8)), torch.device("cpu"))
    assert 0 < dropout.masks.float().mean() < 3 / 65536


@pytest.mark.parametrize("recompute", [False, True])
def test_masks_are_accounted_for(recompute):
    _, dropout = dropping()
    how = Arrangement(recompute=recompute)
    without, kept = (sum(kept_bytes({**SHAPE, "dropout": share}, 4, how).values()) for share in (0.0, SHARE))
    assert kept - without == dropout.masks.numel() * dropout.masks.element_size()
