"""Proves that a small start changes what it names and nothing else, that every weight learns from it all the same, and
that a run does not change its start when it goes on."""

import math

import pytest
import torch

from lm.model.initialization import start_small
from lm.model.transformer import FEED_FORWARDS, NORM_POSITIONS, TransformerLM
from lm.optim.adamw import AdamW
from lm.training.checks import compare_settings
from lm.training.module import LanguageModel
from tokenization import InputError

SHAPE = {"vocab_size": 40, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2}


def made(**settings) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(**SHAPE, **settings)


IDS = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("feed_forward", FEED_FORWARDS)
@pytest.mark.parametrize("norm_position", NORM_POSITIONS)
def test_a_block_adds_nothing_and_all_else_stays(norm_position, feed_forward):
    drawn = made(norm_position=norm_position, feed_forward=feed_forward)
    model = made(norm_position=norm_position, feed_forward=feed_forward)
    start_small(model, zero_outputs=True, head_factor=0.5)
    x = drawn.token_embeddings(IDS)
    normed = x if norm_position == "none" else x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(model(IDS[:, :-1]), 0.5 * normed[:, :-1] @ drawn.lm_head.weight.T, rtol=1e-4, atol=1e-4)
    for (name, weight), before in zip(model.named_parameters(), drawn.parameters(), strict=True):
        if name.endswith(("output_proj.weight", "w2.weight")):
            assert not weight.any()
        elif not name.startswith("lm_head"):
            assert torch.equal(weight, before), name


def test_a_small_head_guesses():
    model = made()
    start_small(model, zero_outputs=False, head_factor=0.01)
    assert model(IDS[:, :-1], targets=IDS[:, 1:]).item() == pytest.approx(math.log(40), abs=0.02)


def test_every_weight_learns():
    task = LanguageModel(**SHAPE, zero_init=True, head_init=0.0)
    assert not any(task.model.state_dict()[f"{name}.weight"].any() for name in ("lm_head", "layers.1.ffn.w2"))
    before, optimizer = [weight.clone() for weight in task.parameters()], AdamW(task.parameters(), weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        task.model(IDS[:, :-1], targets=IDS[:, 1:]).backward()
        optimizer.step()
    assert not any(map(torch.equal, before, task.parameters()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"head_init": -1.0}, "head_init is -1.0; it must be finite and not negative"),
        ({"head_init": math.nan}, "head_init is nan"),
        ({"head_init": 0.5, "tie_embeddings": True}, "head_init 0.5 would shrink the embedding too"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        LanguageModel(**SHAPE, **wrong)


@pytest.mark.parametrize(("name", "other"), [("zero_init", True), ("head_init", 0.1)])
def test_a_run_keeps_its_start(name, other):
    before = dict(LanguageModel(**SHAPE).hparams)
    assert compare_settings({"hyper_parameters": before}, before, "run/last.ckpt") == []
    with pytest.raises(InputError, match=f"run/last.ckpt: was trained with model.{name} .* not {other}"):
        compare_settings({"hyper_parameters": before}, before | {name: other}, "run/last.ckpt")
