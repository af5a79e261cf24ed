"""Proves that AdamW walks the path of torch.optim.AdamW over many steps, through a state dict and with several
groups, and that gradients are clipped as torch clips them; by kernels, too, which must not be passed over."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lm.optim.adamw import AdamW
from lm.optim.clipping import clip_gradients


def make_parameters(dtype=torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (3,), (4, 5), (2, 3, 4)]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** (index - 2)
        parameter.grad = gradient.to(parameter.dtype)
    if step % 3 == 1:
        parameters[1].grad = None  # passed over, its clock stands still


SETTINGS = [
    {"lr": 1e-2},
    {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-4, "weight_decay": 0.0},
    {"lr": 3e-1, "betas": (0.5, 0.6), "eps": 1e-8, "weight_decay": 0.7},
    {"lr": 1e-2, "betas": (0.0, 0.0), "eps": 1e-2, "weight_decay": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_is_torchs(settings, dtype):
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1} | settings
    ours, theirs = make_parameters(dtype), make_parameters(dtype)
    our_adamw = AdamW(ours, **settings)
    torch_adamw = torch.optim.AdamW([{"params": [parameter]} for parameter in theirs], **settings)
    clocks = [0] * len(theirs)
    for step in range(100):
        for parameters, optimizer in ((ours, our_adamw), (theirs, torch_adamw)):
            set_gradients(parameters, step)
            for index, group in enumerate(optimizer.param_groups):
                group["lr"] = settings["lr"] * (1 + math.sin(step))
                if optimizer is torch_adamw:  # adds eps to the corrected root of v, the handout to the root itself
                    clocks[index] += parameters[index].grad is not None
                    group["eps"] = settings["eps"] / math.sqrt(1 - settings["betas"][1] ** max(1, clocks[index]))
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


def test_defaults_are_the_documented_ones():
    assert AdamW(make_parameters()).defaults == {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_kernel_is_one_tensor_after_another(settings, monkeypatch):
    ours, expected = ([*make_parameters(), nn.Parameter(torch.ones(3, 7001))] for _ in range(2))
    kernel, single = AdamW(ours, kernel=True, **settings), AdamW(expected, foreach=False, **settings)
    for step in range(6):
        for parameters, optimizer in ((ours, kernel), (expected, single)):
            set_gradients(parameters, step)
            with monkeypatch.context() as patch:
                if optimizer is kernel:
                    patch.setattr("lm.optim.adamw.adamw_update", None)  # would fail
                optimizer.step()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)
        for name in "mv":
            found, known = kernel.state[a][name], single.state[b][name]
            torch.testing.assert_close(found, known, rtol=1e-6, atol=1e-6 * known.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_leaves_what_it_does_not_know(dtype, monkeypatch):
    monkeypatch.setattr("lm.optim.adamw_kernel.update", None)  # would fail
    whole = torch.ones(6, 4, dtype=dtype)
    weight = nn.Parameter(whole.T if dtype == torch.float32 else whole)
    weight.grad = torch.ones_like(weight)
    AdamW([weight], lr=0.1, weight_decay=0, kernel=True).step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.9))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_compiled_pass_is_one_tensor_after_another(settings, monkeypatch):
    """Without compiling anew as t and lr change, and without changing anything where a step is not to be taken."""
    monkeypatch.setattr("lm.optim.adamw.compile_or_run", "aot_eager")
    torch._dynamo.reset()
    ours, expected = make_parameters()[2:], make_parameters()[2:]
    compiled, single = AdamW(ours, compiled=True, **settings), AdamW(expected, foreach=False, **settings)
    for step in range(6):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            for parameters, optimizer in ((ours, compiled), (expected, single)):
                set_gradients([*make_parameters()[:2], *parameters], step)
                optimizer.param_groups[0]["lr"] = settings["lr"] * (1 + math.sin(step))
                compiled.take = torch.tensor(True)
                optimizer.step()
            for a, b in zip(ours, expected, strict=True):
                torch.testing.assert_close(a, b)
                a.grad.fill_(math.nan)
            before = copy.deepcopy([*ours, *(state[name] for state in compiled.state.values() for name in "mv")])
            compiled.take = torch.tensor(False)
            compiled.step()
            for state in compiled.state.values():
                state["t"] -= 1  # the clock is not the device's, and goes on
            after = [*ours, *(state[name] for state in compiled.state.values() for name in "mv")]
            assert all(map(torch.equal, before, after))


def test_groups_with_values_of_their_own():
    ours, theirs = make_parameters(), make_parameters()
    for step in range(10):
        optimizers = []
        for parameters, kind in ((ours, AdamW), (theirs, torch.optim.AdamW)):
            set_gradients(parameters, step)
            groups = [{"params": parameters[:2], "weight_decay": 0.0}, {"params": parameters[2:], "lr": 0.5}]
            optimizers.append(kind(groups, lr=0.1, betas=(0.8, 0.9), weight_decay=0.3))
            optimizers[-1].step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_state_dict_goes_on_bit_for_bit():
    straight = make_parameters()
    optimizer = AdamW(straight, lr=0.01)
    for step in range(10):
        if step == 5:
            state = copy.deepcopy(optimizer.state_dict())
            resumed = [nn.Parameter(parameter.detach().clone()) for parameter in straight]
        set_gradients(straight, step)
        optimizer.step()
    other = AdamW(resumed, lr=9.0)
    other.load_state_dict(state)
    for step in range(5, 10):
        set_gradients(resumed, step)
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copied", "pickled"]
)
@pytest.mark.parametrize("settings", [{}, {"kernel": True}, {"foreach": True}, {"compiled": True}])
def test_a_copy_goes_on_bit_for_bit(settings, copied, monkeypatch):
    """With the parameters that it was copied with, whose learning rates are their own there, too."""
    monkeypatch.setattr("lm.optim.adamw.compile_or_run", "eager")
    parameters = make_parameters()
    optimizer = AdamW(parameters, lr=0.01, **settings)
    optimizer.rates = {parameters[2]: 0.1}
    for step in range(4):
        if step == 2:
            others, its = copied((parameters, optimizer))
        set_gradients(parameters, step)
        optimizer.step()
    for step in (2, 3):
        set_gradients(others, step)
        its.step()
    assert all(map(torch.equal, parameters, others))
    assert its.rates == {others[2]: 0.1}
    assert {name: getattr(its, name) for name in settings} == settings


@pytest.mark.parametrize("way", ["one by one", "at once", "compiled"])
def test_float64_is_updated_in_float64(way, monkeypatch):
    monkeypatch.setattr("lm.optim.adamw.compile_or_run", "eager")
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-20, "weight_decay": 0.3}  # an eps that is nothing
    ours, theirs = make_parameters(torch.float64), make_parameters(torch.float64)
    optimizers = AdamW(ours, compiled=way == "compiled", **settings), torch.optim.AdamW(theirs, **settings)
    optimizers[0].take = torch.tensor(True) if way == "at once" else None
    for step in (0, 2, 3):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(parameters, step)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_an_eps_that_float16_cannot_hold_is_refused():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
    with pytest.raises(
        ValueError, match=r"eps is 1e-08; for parameters in torch\.float16 it must be at least 6\.1e-05"
    ):
        AdamW([weight])
    optimizer = AdamW(make_parameters())
    with pytest.raises(ValueError, match="eps is 1e-08"):
        optimizer.add_param_group({"params": [weight]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [weight], "eps": 1e-4})
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert weight.isfinite().all()


def test_step_runs_the_closure_with_gradients_and_returns_its_loss():
    weight = nn.Parameter(torch.tensor(3.0))
    optimizer = AdamW([weight], lr=0.1, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = weight**2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9
    assert weight.item() == pytest.approx(2.9)
    for _ in range(300):
        optimizer.step(closure)
    assert abs(weight.item()) < 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        *({"lr": -1.0}, {"eps": -1e-8}, {"weight_decay": -0.1}),
        *({"betas": betas} for betas in ((1.0, 0.9), (0.9, -0.1), (0.9,), (0.9, 0.95, 0.99))),
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))[1:4]):
        AdamW(make_parameters(), **wrong)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e4, 1e39, math.inf])
def test_clipping_is_torchs(max_norm, kernel):
    ours, theirs = ([*make_parameters(), nn.Parameter(torch.ones(3, 7001))] for _ in range(2))
    for parameters in (ours, theirs):
        set_gradients(parameters, step=1)
    addresses = [p.grad.data_ptr() for p in ours if p.grad is not None]
    norm, expected = clip_gradients(iter(ours), max_norm, kernel), nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(norm, expected)
    assert ours[1].grad is None
    assert addresses == [p.grad.data_ptr() for p in ours if p.grad is not None]  # in place
    for a, b in zip(ours, theirs, strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)
    total = math.sqrt(sum(p.grad.square().sum().item() for p in ours if p.grad is not None))
    assert total == pytest.approx(min(max_norm, expected.item()), rel=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("numbers", [1, 15, 17, 4097, 3 * 4096 + 5, 100_003])
def test_the_kernel_clips_arrays_of_any_length(numbers, threads, monkeypatch):
    monkeypatch.setattr("lm.optim.clipping.joint_norm", None)  # would fail
    gradients = torch.randn(3, numbers + 1, generator=torch.Generator().manual_seed(numbers))
    parameters = [nn.Parameter(torch.zeros(numbers)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient[1:]  # not aligned to vectors
    expected, behind = gradients[:, 1:].double(), gradients[:, 0].clone()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        norm = clip_gradients(parameters, 0.5, kernel=True)
    finally:
        torch.set_num_threads(before)
    assert norm.shape == ()
    assert norm.item() == pytest.approx(expected.norm().item(), rel=1e-6)
    scaled = (expected * 0.5 / (expected.norm() + 1e-6)).float()
    torch.testing.assert_close(gradients[:, 1:], scaled, rtol=1e-6, atol=0)
    assert torch.equal(gradients[:, 0], behind)


@pytest.mark.parametrize("kernel", [False, True])
def test_clipping_without_gradients_and_below_the_bound(kernel):
    assert clip_gradients(make_parameters(), 1.0, kernel) == 0
    parameters = make_parameters()
    set_gradients(parameters, step=0)
    before = [p.grad.clone() for p in parameters]
    clip_gradients(parameters, 1e9, kernel)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, parameters, strict=True))


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_clipping_tells_what_is_not_finite(wrong, kernel):
    parameters = [nn.Parameter(torch.zeros(40_000)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones(40_000)
    parameters[1].grad[12_345] = wrong
    assert clip_gradients(parameters, 1.0, kernel).item() == pytest.approx(abs(wrong), nan_ok=True)
    assert torch.all(parameters[0].grad == (1.0 if math.isnan(wrong) else 0.0))


@pytest.mark.parametrize("gradient", [torch.ones(6, 4).T, torch.ones(6, 4).double(), torch.ones(6, 4).bfloat16()])
def test_the_kernel_clips_nothing_that_it_does_not_know(gradient, monkeypatch):
    monkeypatch.setattr("lm.optim.clipping_kernel.clip", None)  # would fail
    weight = nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient.clone()
    assert clip_gradients([weight], 1.0, kernel=True).item() == pytest.approx(24**0.5)
    torch.testing.assert_close(weight.grad, gradient / 24**0.5)


def test_clipping_bfloat16():
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    parameter.grad = torch.full((4,), 3.0, dtype=torch.bfloat16)
    assert clip_gradients([parameter], 1.0) == 6
    assert parameter.grad.dtype == torch.bfloat16
    assert parameter.grad.tolist() == [0.5] * 4


@pytest.mark.parametrize("dtypes", [(torch.float64,), (torch.float32, torch.float64), (torch.bfloat16, torch.float64)])
def test_clipping_float64(dtypes):
    parameters = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in dtypes]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3.0 + 2**-30)  # a float64 alone holds all of it
    squares = sum(p.grad.double().square().sum() for p in parameters)
    before = [p.grad.clone() for p in parameters]
    norm = clip_gradients(parameters, 1.0)
    assert norm.dtype == torch.float64
    assert norm.item() == pytest.approx(squares.sqrt().item(), rel=1e-15)
    for parameter, gradient, dtype in zip(parameters, before, dtypes, strict=True):
        assert parameter.grad.dtype == dtype
        torch.testing.assert_close(parameter.grad, (gradient.double() / (norm + 1e-6)).to(dtype))


def test_a_step_that_is_not_to_be_taken_changes_nothing():
    ours, usual = make_parameters(), make_parameters()
    optimizer, other = AdamW(ours, lr=0.1), AdamW(usual, lr=0.1)
    for step in (0, 2, 3):
        set_gradients(ours, step)
        set_gradients(usual, step)
        optimizer.take = torch.tensor(True)
        optimizer.step()
        other.step()
    for a, b in zip(ours, usual, strict=True):
        torch.testing.assert_close(a, b)
    before = copy.deepcopy([[p.detach(), optimizer.state[p]["m"], optimizer.state[p]["v"]] for p in ours])
    ours[0].grad.fill_(torch.nan)
    ours[3].grad.fill_(torch.inf)
    optimizer.take = torch.tensor(False)
    optimizer.step()
    for parameter, (weight, m, v) in zip(ours, before, strict=True):
        assert torch.equal(parameter, weight)
        assert torch.equal(optimizer.state[parameter]["m"], m)
        assert torch.equal(optimizer.state[parameter]["v"], v)
