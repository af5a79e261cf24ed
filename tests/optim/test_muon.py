"""Proves that Muon's orthogonalization is the singular value decomposition's to what five iterations promise, that its
step is the equations', matrix by matrix, that everything else walks AdamW's path, and that it can be gone on with."""

import copy
import math

import pytest
import torch

from lm.model.transformer import TransformerLM
from lm.optim.adamw import AdamW
from lm.optim.muon import COEFFICIENTS, Muon, orthogonalize


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3), (2, 16, 5)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    matrices = torch.randn(shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    a, b, c = COEFFICIENTS
    s = s / torch.linalg.matrix_norm(matrices)[..., None]
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    result = orthogonalize(matrices)
    torch.testing.assert_close(result, u @ torch.diag_embed(s) @ vh, atol=1e-5, rtol=1e-5)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(20, 24, 64)))
    assert values.min() > 0.4
    assert values.max() < 1.3


def make(dtype=torch.float64) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(20, 8, 8, num_layers=2, num_heads=2, d_ff=16, qk_norm=True, dtype=dtype)


def set_gradients(model: TransformerLM, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight.dtype)


def test_the_step_is_the_equations():
    model, other = make(), make()
    settings = {"lr": 0.01, "weight_decay": 0.3, "betas": (0.9, 0.95)}
    muon = Muon(model.named_parameters(), momentum=0.9, rate=0.5, dtype=torch.float64, **settings)
    rest = [weight for name, weight in other.named_parameters() if "layers" not in name or weight.ndim == 1]
    assert len(rest) == 3 + 2 * 4  # the tables, and all gains
    adamw, momenta = AdamW(rest, **settings), {}
    for step in range(5):
        set_gradients(model, step), set_gradients(other, step)
        muon.step(), adamw.step()
        for name, weight in other.named_parameters():
            if not any(weight is known for known in rest):
                m = momenta.get(name, torch.zeros_like(weight))
                momenta[name] = m = 0.9 * m + 0.1 * weight.grad
                update = orthogonalize(0.1 * weight.grad + 0.9 * m) * 0.2 * math.sqrt(max(weight.shape))
                weight.data = weight.data - 0.005 * 0.3 * weight.data - 0.005 * update
    for (name, weight), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, msg=name)


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="muon_rate is 0"):
        Muon(make().named_parameters(), rate=0)


def test_a_state_dict_goes_on_bit_for_bit():
    straight = make(torch.float32)
    optimizer = Muon(straight.named_parameters(), lr=0.01)
    for step in range(6):
        if step == 3:
            state, resumed = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(straight)
        set_gradients(straight, step)
        optimizer.step()
    other = Muon(resumed.named_parameters(), lr=9.0)
    other.load_state_dict(state)
    for step in range(3, 6):
        set_gradients(resumed, step)
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_step_that_is_not_taken_changes_nothing():
    model = make(torch.float32)
    optimizer = Muon(model.named_parameters(), lr=0.1)
    set_gradients(model, 0)
    optimizer.step()
    weights = [weight.detach().clone() for weight in model.parameters()]
    momenta = [state["m"].clone() for state in optimizer.state.values()]
    for weight in model.parameters():
        weight.grad.fill_(torch.nan)
    optimizer.take = torch.tensor(False)
    optimizer.step()
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(torch.equal(m, state["m"]) for m, state in zip(momenta, optimizer.state.values(), strict=True))


def test_lm_fit_with_every_option_learns_and_goes_on(lm, fit_arguments, tmp_path):
    options = ("--model.optimizer=muon", "--model.muon_rate=0.5", "--model.tie_embeddings=true", "--model.qk_norm=true")
    options += ("--model.z_loss=1e-4", "--model.schedule=trapezoid", "--model.min_learning_rate=0")
    options += ("--trainer.max_steps=12",)
    run = tmp_path / "run"
    assert lm(*fit_arguments(run, *options)).code == 0
    arguments = ("-c", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
    assert lm("fit", *arguments, "--trainer.max_steps=14").code == 0
    refused = lm("fit", *arguments, "--trainer.max_steps=16", "--model.optimizer=adamw")
    assert refused.code == 2
    assert "was trained with model.optimizer muon" in refused.err
    refused = lm("fit", *arguments, "--trainer.max_steps=16", "--model.qk_norm=false")
    assert "was trained with model.qk_norm True" in refused.err
    written = lm("generate", run / "last.ckpt", "--max-new-tokens=5")
    assert written.code == 0
    sharded = lm(*fit_arguments(tmp_path / "fsdp", "--model.optimizer=muon", "--trainer.strategy=fsdp"))
    assert sharded.code == 2
    assert "needs whole matrices" in sharded.err
