"""Proves that Muon's orthogonalization is the singular value decomposition's to what five iterations promise, that its
step is PyTorch's, and that of each variant the equations', matrix by matrix, that everything else walks AdamW's path,
and that it can be gone on with."""

import copy
import math
import pickle

import pytest
import torch

from lm.model.transformer import TransformerLM
from lm.optim.adamw import AdamW
from lm.optim.muon import Muon, muon_update, normalize_rows
from lm.optim.orthogonalization import ITERATIONS, POLAR_EXPRESS, orthogonalize

VARIANTS = {
    "muon": {},
    "polar express": {"iteration": POLAR_EXPRESS},
    "NorMuon": {"normalize": True},
    "cautious": {"cautious": True},
    "all": {"iteration": POLAR_EXPRESS, "normalize": True, "cautious": True},
}
EACH = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@pytest.mark.parametrize("name", ITERATIONS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3), (2, 16, 5)])
def test_singular_values_become_about_one_and_directions_stay(shape, name):
    matrices, (coefficients, safety) = torch.randn(shape, dtype=torch.float64), ITERATIONS[name]
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    s = s / torch.linalg.matrix_norm(matrices)[..., None] / safety
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    result = orthogonalize(matrices, ITERATIONS[name])
    torch.testing.assert_close(result, u @ torch.diag_embed(s) @ vh, atol=1e-5, rtol=1e-5)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(20, 24, 64), ITERATIONS[name]))
    assert values.min() > 0.4
    assert values.max() < 1.3
    assert not orthogonalize(torch.zeros(2, 3), ITERATIONS[name]).any()  # the gradient behind a projection of zeros


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_polar_express_is_nearer_to_the_polar_factor(dtype):
    u, _, vh = torch.linalg.svd(torch.randn(24, 48, dtype=torch.float64), full_matrices=False)
    matrix = (u * torch.logspace(-2, 0, 24, dtype=torch.float64)) @ vh  # the condition number of a gradient
    factors = {name: orthogonalize(matrix.to(dtype), ITERATIONS[name]).double() for name in ITERATIONS}
    errors = {name: torch.linalg.matrix_norm(factor - u @ vh, ord=2).item() for name, factor in factors.items()}
    assert errors["polar-express"] < 0.17 < 0.25 < errors["jordan"] < 0.35


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_the_step_is_torchs(shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # or rounding alone would tell them apart
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(shape, generator=generator)
    theirs = torch.nn.Parameter(ours.clone())
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.3}
    muon, m = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings), torch.zeros(shape)
    for _ in range(10):
        theirs.grad = torch.randn(shape, generator=generator)
        muon_update([ours], [theirs.grad.clone()], [m], [], **settings)
        muon.step()
        torch.testing.assert_close(ours, theirs.data, rtol=1e-4, atol=1e-5)


def make(dtype=torch.float64) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(20, 8, 8, num_layers=2, num_heads=2, d_ff=16, qk_norm=True, dtype=dtype)


def set_gradients(model: TransformerLM, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight.dtype)


@EACH
def test_the_step_is_the_equations(variant):
    model, other = make(), make()
    settings = {"lr": 0.01, "weight_decay": 0.3, "betas": (0.9, 0.95)}
    muon = Muon(model.named_parameters(), momentum=0.9, rate=0.5, dtype=torch.float64, **variant, **settings)
    rest = [weight for name, weight in other.named_parameters() if "layers" not in name or weight.ndim == 1]
    assert len(rest) == 3 + 2 * 4  # the tables, and all gains
    adamw, momenta, means = AdamW(rest, **settings), {}, {}
    iteration = variant.get("iteration", ITERATIONS["jordan"])
    for step in range(5):
        set_gradients(model, step), set_gradients(other, step)
        muon.step(), adamw.step()
        for name, weight in other.named_parameters():
            if not any(weight is known for known in rest):
                m = momenta.get(name, torch.zeros_like(weight))
                momenta[name] = m = 0.9 * m + 0.1 * weight.grad
                update = orthogonalize(0.1 * weight.grad + 0.9 * m, iteration)
                rows, columns = weight.shape
                if "normalize" in variant:  # row by row, as Li et al. write it
                    v = means.get(name, [0.0] * rows)
                    v = means[name] = [0.95 * v[r] + 0.05 * float((update[r] ** 2).mean()) for r in range(rows)]
                    update = torch.stack([update[r] / math.sqrt(v[r]) for r in range(rows)])
                    update = 0.2 * math.sqrt(rows * columns) / update.norm() * update
                else:
                    update = update * 0.2 * math.sqrt(max(weight.shape))
                decays = weight.data * update >= 0 if "cautious" in variant else torch.ones_like(weight)
                weight.data = weight.data - 0.005 * 0.3 * weight.data * decays - 0.005 * update
    for (name, weight), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, msg=name)


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="muon_rate is 0"):
        Muon(make().named_parameters(), rate=0)
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"momentum is {momentum}"):
            Muon(make().named_parameters(), momentum=momentum)


def test_rows_become_equal_and_a_matrix_keeps_its_length():
    updates = torch.randn(3, 4, 9) * torch.tensor([0.01, 1.0, 5.0, 0.0])[:, None]
    rows = normalize_rows(updates, [torch.zeros(4, 1) for _ in range(3)]).norm(dim=-1)
    torch.testing.assert_close(rows[:, :3], torch.full((3, 3), math.sqrt(4 / 3)), rtol=1e-4, atol=0)
    assert not rows[:, 3].any()  # a neuron without a gradient


@EACH
def test_a_state_dict_goes_on_bit_for_bit(variant):
    straight = make(torch.float32)
    optimizer = Muon(straight.named_parameters(), lr=0.01, **variant)
    for step in range(6):
        if step == 3:
            state, resumed = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(straight)
        set_gradients(straight, step)
        optimizer.step()
    other = Muon(resumed.named_parameters(), lr=9.0, **variant)
    other.load_state_dict(state)
    for step in range(3, 6):
        set_gradients(resumed, step)
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


@EACH
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copied", "pickled"]
)
def test_a_copy_goes_on_bit_for_bit(variant, copied):
    model = make(torch.float32)
    optimizer = Muon(model.named_parameters(), lr=0.01, rate=0.3, **variant)
    optimizer.rates = {model.lm_head.weight: 0.1}
    for step in range(4):
        if step == 2:
            other, its = copied((model, optimizer))
        set_gradients(model, step)
        optimizer.step()
    for step in (2, 3):
        set_gradients(other, step)
        its.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@EACH
def test_a_step_that_is_not_taken_changes_nothing(variant):
    model = make(torch.float32)
    optimizer = Muon(model.named_parameters(), lr=0.1, **variant)
    set_gradients(model, 0)
    optimizer.step()
    weights = [weight.detach().clone() for weight in model.parameters()]
    kept = [state[name].clone() for state in optimizer.state.values() for name in state.keys() - {"t"}]
    for weight in model.parameters():
        weight.grad.fill_(torch.nan)
    optimizer.take = torch.tensor(False)
    optimizer.step()
    assert all(map(torch.equal, weights, model.parameters()))
    after = [state[name] for state in optimizer.state.values() for name in state.keys() - {"t"}]
    assert all(map(torch.equal, kept, after))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_a_step_that_is_taken_is_the_usual_one(variant, dtype):
    model, usual = make(dtype), make(dtype)
    optimizers = [Muon(of.named_parameters(), lr=0.1, **variant) for of in (model, usual)]
    optimizers[0].take = torch.tensor(True)
    for step in range(3):
        for of, optimizer in zip((model, usual), optimizers, strict=True):
            set_gradients(of, step)
            optimizer.step()
    exact = {"rtol": 1e-13, "atol": 1e-13} if dtype == torch.float64 else {}
    for ours, expected in zip(model.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, **exact)


def test_lm_fit_with_every_option_learns_and_goes_on(lm, fit_arguments, tmp_path):
    options = ("--model.optimizer=normuon", "--model.muon_rate=0.5", "--model.muon_iteration=polar-express")
    options += ("--model.cautious_decay=true", "--model.tie_embeddings=true", "--model.qk_norm=true")
    options += ("--model.z_loss=1e-4", "--model.schedule=trapezoid", "--model.min_learning_rate=0")
    options += ("--trainer.max_steps=12",)
    run = tmp_path / "run"
    assert lm(*fit_arguments(run, *options)).code == 0
    arguments = ("-c", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
    assert lm("fit", *arguments, "--trainer.max_steps=14").code == 0
    refused = lm("fit", *arguments, "--trainer.max_steps=16", "--model.optimizer=adamw")
    assert refused.code == 2
    assert "was trained with model.optimizer normuon" in refused.err
    refused = lm("fit", *arguments, "--trainer.max_steps=16", "--model.qk_norm=false")
    assert "was trained with model.qk_norm True" in refused.err
    written = lm("generate", run / "last.ckpt", "--max-new-tokens=5")
    assert written.code == 0
    sharded = lm(*fit_arguments(tmp_path / "fsdp", "--model.optimizer=muon", "--trainer.strategy=fsdp"))
    assert sharded.code == 2
    assert "needs whole matrices" in sharded.err
