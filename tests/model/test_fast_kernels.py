"""Proves that each kernel computes what its equation says, in torch's words: at widths that no vector divides, in
float32 and in bfloat16, by one thread and by a team, with numbers that are not finite, and twice the same bits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lm.machine.kernels import SMALL
from lm.machine.transposing import transposed
from lm.model.fast import speed_up
from lm.model.fast_head import kernel_cross_entropy
from lm.model.fast_sublayers import swiglu
from lm.model.kernels.gate import gate, gate_backward
from lm.model.kernels.heads import from_heads, to_heads
from lm.model.kernels.loss import losses_of
from lm.model.kernels.norm import normalize, normalize_backward
from lm.model.kernels.softmax import causal_softmax, causal_softmax_backward
from lm.model.layers import RMSNorm
from lm.model.loss import cross_entropy
from lm.model.positions import RotaryPositionalEmbedding
from lm.model.products import joined, weight_gradient
from lm.model.transformer import TransformerLM

WIDTHS = [1, 7, 16, 33, 64, 150]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Float32 to 1e-5; bfloat16, which is computed in float32 and rounded once, to half of its last place."""
    relative = 1e-5 if found.dtype == torch.float32 else 2**-8 + 1e-5
    torch.testing.assert_close(found.float(), expected.float(), rtol=relative, atol=1e-5 * scale)


@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [3, SMALL // 64])
def test_norm(rows, width, dtype):
    x, y, d, d_h = (torch.randn(rows, width) for _ in range(4))
    norm, y, d_h = RMSNorm(width), y.to(dtype), d_h.to(dtype)
    norm.weight.data.uniform_(0.5, 1.5)
    gains = norm.weight.detach()
    z, h, factors = normalize(x, y, gains, norm.eps, dtype)
    assert z is not None
    inputs = x.clone().requires_grad_(), y.float().requires_grad_()
    total = inputs[0] + inputs[1]
    close(z, total)
    close(h, norm(total))
    d_z, d_y, d_gains = normalize_backward(d, d_h, z, gains, factors, dtype == torch.bfloat16)
    expected = torch.autograd.grad([total, norm(total)], [*inputs, norm.weight], [d, d_h.float()])
    close(d_z, expected[0], scale=10)
    close(d_gains, expected[2], scale=rows)
    if d_y is not None:
        close(d_y, expected[1], scale=10)
    none, alone, _ = normalize(z, None, gains, norm.eps, dtype)
    assert none is None
    assert torch.equal(alone, h)
    without = normalize_backward(None, d_h, z, gains, factors, False)[0]
    close(without, d_z - d, scale=10)


@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
def test_gate(width, dtype):
    wide, d_a = (3 * torch.randn(20, 2 * width)).to(dtype), torch.randn(20, width).to(dtype)
    whole = wide.float().requires_grad_()
    u, v = whole.split(width, dim=1)
    expected = functional.silu(u) * v
    close(gate(wide), expected)
    close(gate_backward(wide, d_a), torch.autograd.grad(expected, whole, d_a.float())[0])


@DTYPES
@pytest.mark.parametrize("d_k", [2, 6, 16, 50])
def test_heads(d_k, dtype):
    batch, seq, heads = 2, 5, 3
    rope, rows = RotaryPositionalEmbedding(1e4, d_k, seq), torch.randn(batch, seq, 3 * heads * d_k).to(dtype)
    whole, positions = rows.float().requires_grad_(), torch.arange(seq)
    q, k, v = (part.unflatten(-1, (heads, d_k)).transpose(1, 2) for part in whole.split(heads * d_k, dim=-1))
    expected = torch.stack([rope(q, positions) / d_k**0.5, rope(k, positions), v])
    found = to_heads(rows, 3, heads, (rope.cos, rope.sin))
    close(found, expected)
    gradient = torch.randn_like(found)
    wanted = torch.autograd.grad(expected, whole, gradient.float())[0]
    close(from_heads(gradient, (rope.cos, rope.sin)), wanted)
    assert torch.equal(from_heads(to_heads(rows, 3, heads)), rows)
    for move, numbers in ((to_heads, (rows, 3, heads)), (from_heads, (found,))):
        with pytest.raises(ValueError, match=rf"the angles are \[\(3, {d_k // 2}\), "):
            move(*numbers, (rope.cos[:3], rope.sin[:3]))  # the rest would be read from whatever lies behind


@DTYPES
@pytest.mark.parametrize(("queries", "start"), [(1, 0), (7, 0), (128, 0), (30, 128), (9, 256)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_softmax(queries, start, scale, dtype):
    scores = (torch.randn(4, queries, start + queries) * scale).to(dtype)
    seen = torch.ones(queries, start + queries, dtype=torch.bool).tril(start)
    weights, d_weights = scores.clone(), torch.randn(scores.shape).to(dtype)
    causal_softmax(weights, start)
    close(weights, torch.softmax(scores.float().masked_fill(~seen, -torch.inf), dim=-1))
    assert not weights[:, ~seen].any()
    shares, gradients = weights.float(), d_weights.float().clone()
    causal_softmax_backward(d_weights, weights, start)
    close(d_weights, shares * (gradients - (gradients * shares).sum(dim=-1, keepdim=True)))


@DTYPES
@pytest.mark.parametrize(("vocab_size", "padded"), [(2, 2), (101, 128), (300, 300)])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("scale", [1.0, 300.0])  # probabilities underflow at 300
def test_loss(vocab_size, padded, z_loss, scale, dtype):
    logits, targets = (torch.randn(90, padded) * scale).to(dtype), torch.randint(vocab_size, (90,))
    whole = logits.float().requires_grad_()
    expected = cross_entropy(whole[:, :vocab_size], targets, z_loss)
    losses = losses_of(kept := logits.clone(), targets, vocab_size, z_loss, with_gradients=False)
    assert torch.equal(kept, logits)
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-5, atol=1e-5)
    losses_of(logits, targets, vocab_size, z_loss, with_gradients=True)
    close(logits, torch.autograd.grad(90 * expected, whole)[0])
    for wrong in (-1, vocab_size):
        with pytest.raises(IndexError, match=f"a target is outside of the vocabulary of {vocab_size} tokens"):
            losses_of(logits, torch.full_like(targets, wrong), vocab_size, z_loss, with_gradients=True)


LOGITS, TARGETS = torch.zeros(4, 9), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("logits", "targets", "error"),
    [
        (LOGITS, TARGETS.int(), TypeError),
        (LOGITS.half(), TARGETS, TypeError),
        (LOGITS.double(), TARGETS, TypeError),
        (LOGITS, TARGETS[:3], ValueError),
    ],
)
def test_the_loss_of_what_its_kernel_does_not_know(logits, targets, error):
    with pytest.raises(error, match="targets"):
        losses_of(logits, targets, 9, 0.0, with_gradients=True)


@pytest.mark.parametrize("shape", [(1, 1), (31, 17), (32, 16), (64, 48), (100, 33), (512, 48)])
def test_transpose(shape):
    for dtype, wanted in ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)):
        matrix = torch.randn(shape).to(dtype)
        assert torch.equal(transposed(matrix, wanted), matrix.T.to(wanted or dtype))


@DTYPES
def test_products(dtype):
    d_y, x = (torch.randn(40, width).to(dtype) for width in (24, 8))
    for left, right in ((d_y, x), (x, d_y)):
        close(weight_gradient(left, right, torch.float32), (left.float().T @ right.float()).to(dtype))
    weights = [torch.randn(3, 4), torch.randn(2, 4)]
    assert torch.equal(joined(weights, dtype), torch.cat(weights).to(dtype))


@DTYPES
def test_what_is_not_finite_stays_visible(dtype):
    for bad in (torch.nan, torch.inf):
        x = torch.randn(2, 40)
        x[1, 17] = bad
        assert normalize(x, None, torch.ones(40), 1e-5, dtype)[1][1, 17].isnan()
        assert gate(torch.cat([x, x], dim=1).to(dtype))[1, 17].isfinite().logical_not()
        losses = losses_of(x.to(dtype), torch.zeros(2, dtype=torch.int64), 40, 0.0, with_gradients=True)
        assert losses.isfinite().tolist() == [True, False]
        scores = x.to(dtype)[None, :, :2].clone()
        scores[0, 1, 0] = bad
        causal_softmax(scores, 0)
        assert scores[0, 1].isnan().all()
        assert scores[0, 0].tolist() == [1, 0]


def test_twice_the_same_bits():
    x, d = torch.randn(600, 150), torch.randn(600, 150)
    results = []
    for _ in range(2):
        _, h, factors = normalize(x, None, torch.ones(150), 1e-5, torch.float32)
        results.append([h, *normalize_backward(d, h, x, torch.ones(150), factors, False)[::2]])
    assert all(map(torch.equal, *results))


# --- inputs that lie in memory otherwise ------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [torch.arange(64).view(32, 2)[:, 1] % 40, torch.tensor([7]).expand(32)])
def test_the_loss_of_strided_targets(targets):
    x, weight = torch.randn(32, 16), torch.randn(40, 16)
    close(kernel_cross_entropy(x, weight, targets, 40), cross_entropy(x @ weight.T, targets))


@DTYPES
def test_an_expanded_gradient(dtype):
    h, weights = torch.randn(4, 32, 64, dtype=dtype), [torch.randn(64, 64) for _ in range(3)]
    parts = [weight.requires_grad_() for weight in weights]
    swiglu(h, *parts)[0].sum().backward()
    found = [part.grad.clone() for part in parts]
    for part in parts:
        part.grad = None
    (swiglu(h, *parts)[0] * 1.0).sum().backward()
    for each, part in zip(found, parts, strict=True):
        assert torch.equal(each, part.grad)


def test_a_sliced_matrix_is_transposed():
    matrix = torch.randn(70, 90)[3:, ::2]
    assert torch.equal(transposed(matrix), matrix.T)


SHAPE = {"vocab_size": 50, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2}


def with_kernels(**settings: object) -> tuple[TransformerLM, TransformerLM]:
    """Returns the plain model and the one with kernels."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(TransformerLM(**SHAPE | settings))
    speed_up(models[1], "blocks", kernels=True)
    return models[0], models[1]


def test_gains_that_are_a_slice():
    models, token_ids = with_kernels(), torch.randint(50, (2, 9))
    wide = {name: torch.rand(16, 2) for name in models[0].state_dict() if "ln" in name}
    losses = []
    for model in models:
        for name, gains in wide.items():
            model.get_submodule(name.removesuffix(".weight")).weight = torch.nn.Parameter(gains.clone()[:, 0])
        losses.append(model(token_ids[:, :-1], targets=token_ids[:, 1:]))
        losses[-1].backward()
    close(losses[1], losses[0])
    for (name, plain), fast in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("positions", [torch.arange(3), torch.arange(12) % 8, torch.tensor([5]), torch.arange(8)])
def test_positions_of_another_length(positions):
    """A single one is shared; there is no rotation for what lies behind the others, or for those left over."""
    plain, fast = (model.layers[0].attn for model in with_kernels())
    x = torch.randn(2, 8, 16)
    if len(positions) in (1, 8):
        close(fast(x, positions), plain(x, positions))
        return
    for attention in (plain, fast):
        with pytest.raises(RuntimeError, match="must match the size"):
            attention(x, positions)


def test_heads_of_an_odd_width_are_left_to_torch():
    plain, fast = with_kernels(d_model=36, num_heads=4, position_encoding="none")
    token_ids = torch.randint(50, (2, 8))
    close(fast(token_ids), plain(token_ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_a_model_in_few_bits(dtype):
    """In float16, which no kernel knows, and with weights and tables in bfloat16: near to float32."""
    plain, fast = with_kernels()
    token_ids = torch.randint(50, (2, 8))
    expected = plain(token_ids)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(fast(token_ids).float(), expected, rtol=0.05, atol=0.05)
    if dtype == torch.bfloat16:
        torch.testing.assert_close(fast.bfloat16()(token_ids).float(), expected, rtol=0.05, atol=0.05)


def test_a_backward_hook_on_a_block_is_called_in_training():
    _, fast = with_kernels()
    seen = []
    fast.layers[0].register_full_backward_hook(lambda *_: seen.append("block"))
    fast.train().loss(fast.hidden_states(torch.randint(50, (2, 8))), torch.randint(50, (2, 8)), 0.0).backward()
    assert seen == ["block"]
