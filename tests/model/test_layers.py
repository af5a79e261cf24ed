"""Proves that each position-wise layer and the rotation compute what torch's own functions (or complex numbers) do,
with gradients, any leading dimensions and half precision, and that weights start as the handout draws them."""

import math

import pytest
import torch
import torch.nn.functional as F

from lm.model.attention import MultiHeadSelfAttention
from lm.model.layers import Embedding, Linear, ReLU2FeedForward, RMSNorm, SiLUFeedForward, SwiGLU, silu, squared_relu
from lm.model.positions import RotaryPositionalEmbedding
from lm.model.transformer import TransformerLM

LEADING = [(), (3,), (2, 1, 4)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_same_gradients(ours: torch.Tensor, theirs: torch.Tensor, inputs) -> None:
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("leading", LEADING)
def test_linear(leading):
    layer, x = Linear(6, 5), torch.randn(*leading, 6, requires_grad=True)
    assert layer.weight.shape == (5, 6)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    expected = F.linear(x, layer.weight)
    torch.testing.assert_close(layer(x), expected)
    assert_same_gradients(layer(x), expected, (x, layer.weight))


@pytest.mark.parametrize("leading", LEADING)
def test_embedding(leading):
    layer, token_ids = Embedding(7, 4), torch.randint(7, leading)
    expected = F.embedding(token_ids, layer.weight)
    assert torch.equal(layer(token_ids), expected)
    assert_same_gradients(layer(token_ids), expected, (layer.weight,))


@pytest.mark.parametrize("leading", LEADING)
def test_rms_norm(leading):
    layer, x = RMSNorm(8, eps=1e-3), torch.randn(*leading, 8, requires_grad=True)
    assert torch.equal(layer.weight, torch.ones(8))
    layer.weight.data.normal_()
    expected = F.rms_norm(x, (8,), layer.weight, 1e-3)
    torch.testing.assert_close(layer(x), expected)
    assert_same_gradients(layer(x), expected, (x, layer.weight))


def test_rms_norm_defaults_to_the_handouts_eps_and_computes_in_float32():
    assert RMSNorm(4).eps == 1e-5
    x = torch.full((4,), 1000.0, dtype=torch.float16)  # its square is infinite in half precision
    y = RMSNorm(4, dtype=torch.float16)(x)
    assert y.dtype == torch.float16
    assert torch.equal(y, torch.ones(4, dtype=torch.float16))
    tiny = RMSNorm(4)(torch.full((4,), 1e-6))
    torch.testing.assert_close(tiny, torch.full((4,), 1e-6 / math.sqrt(1e-12 + 1e-5)))


def test_squared_relu():
    x = torch.tensor([-2.0, -0.0, 0.5, 3.0], requires_grad=True)
    squared_relu(x).sum().backward()
    assert squared_relu(x).tolist() == [0, 0, 0.25, 9]
    assert x.grad.tolist() == [0, 0, 1, 6]


def test_silu():
    x = torch.linspace(-200, 200, 1001, requires_grad=True)
    torch.testing.assert_close(silu(x), F.silu(x))
    assert_same_gradients(silu(x), F.silu(x), (x,))


@pytest.mark.parametrize("leading", LEADING)
def test_feed_forward_networks(leading):
    x = torch.randn(*leading, 6, requires_grad=True)
    gated, plain = SwiGLU(6, 10), SiLUFeedForward(6, 10)
    w1, w2, w3 = gated.w1.weight, gated.w2.weight, gated.w3.weight
    assert (w1.shape, w2.shape, w3.shape) == ((10, 6), (6, 10), (10, 6))
    expected = F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)
    torch.testing.assert_close(gated(x), expected)
    assert_same_gradients(gated(x), expected, (x, w1, w2, w3))
    w1, w2 = plain.parameters()
    torch.testing.assert_close(plain(x), F.linear(F.silu(F.linear(x, w1)), w2))
    plain.__class__ = ReLU2FeedForward
    torch.testing.assert_close(plain(x), F.linear(F.relu(F.linear(x, w1)) ** 2, w2))


@pytest.mark.parametrize(
    ("network", "d_model", "d_ff"),
    [(SwiGLU, 512, 1344), (SwiGLU, 1600, 4288), (SwiGLU, 64, 192), (SwiGLU, 8, 64), (SiLUFeedForward, 512, 2048)],
)
def test_default_width(network, d_model, d_ff):
    assert network.default_d_ff(d_model) == d_ff


def rotate(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """The same rotation as a product of complex numbers, in float64."""
    d_k = x.shape[-1]
    angles = torch.tensor([[m / theta ** (2 * k / d_k) for k in range(d_k // 2)] for m in positions.tolist()])
    turn = torch.polar(torch.ones_like(angles, dtype=torch.float64), angles.double())
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], d_k // 2, 2).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


@pytest.mark.parametrize("leading", LEADING)
def test_rope_is_a_complex_product(leading):
    rope, x = RotaryPositionalEmbedding(100.0, 6, 50), torch.randn(*leading, 5, 6, requires_grad=True)
    positions = torch.tensor([0, 49, 7, 7, 1])  # any, in any order
    torch.testing.assert_close(rope(x, positions), rotate(x, positions, 100.0))
    assert_same_gradients(rope(x, positions), rotate(x, positions, 100.0), (x,))
    assert torch.equal(rope(x, positions)[..., 0, :], x[..., 0, :])


def test_rope_with_positions_of_each_sequence():
    rope, x = RotaryPositionalEmbedding(100.0, 4, 10), torch.randn(2, 3, 4)
    positions = torch.tensor([[0, 1, 2], [7, 8, 9]])
    expected = torch.stack([rotate(part, places, 100.0) for part, places in zip(x, positions, strict=True)])
    torch.testing.assert_close(rope(x, positions), expected)


def test_rope_sees_distances_only_and_keeps_lengths():
    rope, (q, k) = RotaryPositionalEmbedding(10000.0, 8, 1000), torch.randn(2, 1, 8)
    products = [
        (rope(q, torch.tensor([start])) @ rope(k, torch.tensor([start + 5])).mT).item() for start in (0, 17, 900)
    ]
    assert products == pytest.approx([products[0]] * 3, abs=1e-5)
    torch.testing.assert_close(rope(q, torch.tensor([321])).norm(), q.norm())


def test_rope_is_exact_far_out_and_holds_no_weights():
    rope = RotaryPositionalEmbedding(10000.0, 4, 100_001)
    turned = rope(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([100_000]))[0].tolist()
    assert turned == pytest.approx([f(100_000 / base) for base in (1, 100) for f in (math.cos, math.sin)], abs=1e-6)
    assert not rope.state_dict()
    assert not list(rope.parameters())
    assert rope(torch.ones(1, 4, dtype=torch.bfloat16), torch.tensor([3])).dtype == torch.bfloat16


def test_rope_refuses_a_base_that_is_not_above_0():
    with pytest.raises(ValueError, match=r"theta is -1.0"):
        RotaryPositionalEmbedding(-1.0, 4, 10)


def test_rope_refuses_an_odd_width():
    with pytest.raises(ValueError, match="d_k is 5"):
        RotaryPositionalEmbedding(10000.0, 5, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "sigma"),
    [
        (lambda dtype: Linear(300, 700, dtype=dtype), math.sqrt(2 / 1000)),
        (lambda dtype: Linear(700, 300, dtype=dtype), math.sqrt(2 / 1000)),
        (lambda dtype: Embedding(300, 700, dtype=dtype), 1.0),
    ],
    ids=["wide", "narrow", "embedding"],
)
def test_initial_weights(make, sigma, dtype):
    """N(0, sigma^2) cut at 3 sigma keeps 98.658 % of its deviation, and 5.0 % of its mass lies beyond 1.96 sigma."""
    z = make(dtype).weight.detach().float() / sigma
    assert z.std().item() == pytest.approx(0.98658, abs=0.01)
    assert z.mean().item() == pytest.approx(0, abs=0.01)
    assert 2.9 < z.abs().max() < (3.0001 if dtype == torch.float32 else 3.01)
    assert (z.abs() > 1.96).float().mean().item() == pytest.approx((0.0500 - 0.0027) / 0.9973, abs=0.005)
    assert (z.abs() > 2.95).float().mean() < 0.002  # cut and drawn again, not piled up at the bound


@pytest.mark.parametrize(
    "make",
    [
        lambda **where: Linear(4, 6, **where),
        lambda **where: Embedding(4, 6, **where),
        lambda **where: RMSNorm(4, **where),
        lambda **where: SwiGLU(4, 6, **where),
        lambda **where: SiLUFeedForward(4, 6, **where),
    ],
    ids=["linear", "embedding", "rms_norm", "swiglu", "silu"],
)
def test_device_and_dtype(make):
    for parameter in make(device="meta", dtype=torch.float64).parameters():
        assert (parameter.device.type, parameter.dtype) == ("meta", torch.float64)
    assert all(parameter.dtype == torch.float32 for parameter in make().parameters())


def test_a_module_shows_its_sizes_and_settings():
    assert repr(Linear(4, 6)) == "Linear(in_features=4, out_features=6)"
    assert repr(Embedding(7, 4)) == "Embedding(num_embeddings=7, embedding_dim=4)"
    assert repr(RMSNorm(4)) == "RMSNorm(d_model=4, eps=1e-05)"
    rope = RotaryPositionalEmbedding(100.0, 6, 50)
    assert repr(rope) == "RotaryPositionalEmbedding(theta=100.0, d_k=6, max_seq_len=50)"
    beginnings = {
        SwiGLU(4, 6): "SwiGLU(\n  d_model=4, d_ff=6\n  (w1): Linear(in_features=4, out_features=6)\n",
        SiLUFeedForward(4, 6): "SiLUFeedForward(\n  d_model=4, d_ff=6\n  (w1): ",
        MultiHeadSelfAttention(12, 2): "MultiHeadSelfAttention(\n  d_model=12, num_heads=2, qk_norm=False\n",
        TransformerLM(9, 8, 12, 1, num_heads=2, qk_norm=True): "TransformerLM(\n  vocab_size=9, context_length=8,"
        " d_model=12, num_layers=1, num_heads=2, d_ff=64, rope_theta=10000.0, norm_position='pre',"
        " position_encoding='rope', feed_forward='swiglu', vocab_multiple=1, tie_embeddings=False, qk_norm=True,"
        " bigram_rows=None, embedding_skips=False, value_embeddings=False, smear=False\n",
    }
    for module, beginning in beginnings.items():
        assert repr(module).startswith(beginning)
