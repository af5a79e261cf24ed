"""Operators: the short ways compute what torch.library's operator does, and refuse what it refuses."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from lm.machine import operators
from lm.machine.operators import operator
from lm.machine.torch_inside import without_memory

calls: list[str] = []


@operator("lm_tests::scaled_square")
def scaled_square(x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Returns factor x^2, and x once more for the backward pass."""
    calls.append(type(x).__name__)
    return factor * x * x, x.clone()


@operator("lm_tests::scaled_square_backward")
def scaled_square_backward(d_y: Tensor, x: Tensor, factor: float) -> Tensor:
    return 2 * factor * x * d_y


def keep(ctx, inputs, output) -> None:
    ctx.factor = inputs[1]
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


scaled_square.register_fake(lambda x, factor: (torch.empty_like(x), torch.empty_like(x)))
scaled_square_backward.register_fake(lambda d_y, x, factor: torch.empty_like(x))
scaled_square.register_autograd(
    lambda ctx, d_y, d_x: (scaled_square_backward(d_y, *ctx.saved_tensors, ctx.factor), None), setup_context=keep
)


def test_torch_finds_nothing_wrong():
    torch.library.opcheck(scaled_square.op, (torch.randn(3, requires_grad=True), 2.0))


@pytest.mark.parametrize("way", ["alone", "watched", "compiled"])
def test_the_gradient(way):
    def square(x):
        return scaled_square(x, 3.0)[0].sum()

    x = torch.randn(5, requires_grad=True)
    function = torch.compile(square, backend="aot_eager", fullgraph=True) if way == "compiled" else square
    with FlopCounterMode(display=False) if way == "watched" else contextlib.nullcontext():
        y = function(x)
        (gradient,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(y, (3 * x.square()).sum())
    torch.testing.assert_close(gradient, 6 * x.detach())


@pytest.mark.parametrize("way", [torch.no_grad, torch.inference_mode])
def test_without_gradients(way):
    x = torch.randn(5, requires_grad=True)
    with way():
        y, _ = scaled_square(x, 3.0)
    assert not y.requires_grad
    torch.testing.assert_close(y, 3 * x.detach().square())


def test_whoever_looks_on_sees_one_operator():
    """The function itself, which may hand addresses to a kernel, never gets a tensor without memory."""
    calls.clear()
    with without_memory():
        assert scaled_square(torch.empty(1 << 40), 2.0)[0].shape == (1 << 40,)
    assert calls == []
    graphs = []

    def collect(graph, _):
        graphs.append(graph.print_readable(print_output=False))
        return graph

    torch.compile(lambda x: scaled_square(x, 2.0)[0], backend=collect, fullgraph=True)(torch.zeros(2))
    assert len(graphs) == 1
    assert graphs[0].count("lm_tests.scaled_square") == 1


def test_traced_and_vectorized():
    x = torch.randn(2, 5)
    with torch.no_grad(), pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        traced = torch.jit.trace(lambda x: scaled_square(x, 3.0)[0], x, check_trace=False)
    assert "lm_tests::scaled_square" in str(traced.graph)
    torch.testing.assert_close(torch.vmap(lambda row: scaled_square(row, 3.0)[0])(x), 3 * x.square())


def test_a_second_derivative_is_refused():
    x = torch.randn(5, requires_grad=True)
    (first,) = torch.autograd.grad(scaled_square(x, 3.0)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("gradients", [False, True])
def test_other_derivatives_are_refused(gradients):
    """In forward mode torch would find no derivative in the function, and go on with 0."""

    def square(x):
        return scaled_square(x, 3.0)[0]

    x = torch.randn(5)
    with torch.set_grad_enabled(gradients):
        with pytest.raises(NotImplementedError, match="lm_tests::scaled_square has no derivative in forward mode"):
            torch.func.jvp(square, (x,), (torch.ones(5),))
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
            square(forward_ad.make_dual(x, torch.ones(5)))
        torch.testing.assert_close(square(x), 3 * x.square())
    with pytest.raises(RuntimeError, match=r"autograd\.Function"):
        torch.func.grad(lambda x: square(x).sum())(x)


def test_an_operator_without_a_backward_pass_is_not_differentiated():
    x = torch.randn(5, requires_grad=True)
    y = scaled_square_backward(x, x, 1.0)
    with pytest.raises(RuntimeError, match="autograd"):
        y.sum().backward()


def test_digest_of_the_sources_changes_with_them(tmp_path, monkeypatch):
    """Compiled code that relies on an older version's shapes must not be used; what runs is what was read at import."""
    monkeypatch.setattr(operators, "_SOURCES", {})
    digests = []
    for content in ("x = 1\n", "x = 2\n"):
        (tmp_path / "a.py").write_text(content)
        operators._add_source(str(tmp_path / "a.py"))
        digests.append(operators.sources_digest())
        (tmp_path / "a.py").write_text("changed\n")
        assert operators.sources_digest() == digests[-1]
    operators._add_source("<ipython-input-1>")
    assert digests[0] != digests[1] == operators.sources_digest()


def test_files_of_all_operators_are_known():
    import lm.model.fast_kernels  # noqa: F401

    names = {Path(source).name for source in operators._SOURCES}
    assert names >= {"fast.py", "fast_attention.py", "fast_head.py", "fast_loss.py", "fast_sublayers.py"}
