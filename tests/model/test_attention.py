"""Proves that softmax and attention compute what torch's own do, with gradients, masks, any leading dimensions and
scores that would overflow, and that no position sees a later one."""

import cmath
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lm.model.attention import MultiHeadSelfAttention, scaled_dot_product_attention, softmax
from lm.model.fast import FastAttention
from lm.model.fast_attention import CAUSAL_ATTENTIONS
from lm.model.positions import RotaryPositionalEmbedding


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(dim):
    x = torch.randn(3, 4, 5, requires_grad=True)
    torch.testing.assert_close(softmax(x, dim), torch.softmax(x, dim))
    weights = torch.randn(3, 4, 5)
    ours, theirs = (torch.autograd.grad((f(x, dim) * weights).sum(), x)[0] for f in (softmax, torch.softmax))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_of_large_numbers(dtype):
    x = torch.tensor([[1e4, 1e4 + 64, -1e4], [-3e4, -3e4, -torch.inf], [3e38, 0, -3e38]], dtype=dtype)
    torch.testing.assert_close(softmax(x, -1), torch.softmax(x, -1))
    assert softmax(x, -1).dtype == dtype
    assert softmax(x, -1)[1].tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 1e-5), (30.0, 5e-3)])  # exp(scores) overflows at 30
def test_scaled_dot_product_attention(leading, masked, scale, tolerance):
    q, k, v = torch.randn(*leading, 5, 8) * scale, torch.randn(*leading, 7, 8) * scale, torch.randn(*leading, 7, 3)
    mask = torch.rand(*leading, 5, 7) < 0.5 if masked else None
    if mask is not None:
        mask[..., 2] = True  # something to attend to
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    ours = scaled_dot_product_attention(q, k, v, mask)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


def torch_attention(ours: MultiHeadSelfAttention, d_model: int) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(d_model, ours.num_heads, bias=False, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([proj.weight.data for proj in (ours.q_proj, ours.k_proj, ours.v_proj)])
    theirs.out_proj.weight.data = ours.output_proj.weight.data.clone()
    return theirs


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_multi_head_attention_without_positions_is_torchs(num_heads):
    ours, x = MultiHeadSelfAttention(12, num_heads), torch.randn(3, 6, 12, requires_grad=True)
    theirs = torch_attention(ours, 12)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)  # True forbids, in this module of torch
    expected = theirs(x, x, x, attn_mask=mask, need_weights=False)[0]
    y = ours(x, torch.arange(6))
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    (ours_gradient,), (gradient,) = (torch.autograd.grad((out * weights).sum(), x) for out in (y, expected))
    torch.testing.assert_close(ours_gradient, gradient)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_multi_head_attention_with_rope(leading):
    rope = RotaryPositionalEmbedding(50.0, 4, 9)
    ours, x = MultiHeadSelfAttention(12, 3, rope), torch.randn(*leading, 9, 12)
    positions = torch.arange(9)
    q, k, v = (
        F.linear(x, proj.weight).unflatten(-1, (3, 4)).transpose(-3, -2)
        for proj in (ours.q_proj, ours.k_proj, ours.v_proj)
    )
    heads = F.scaled_dot_product_attention(rope(q, positions), rope(k, positions), v, is_causal=True)
    expected = F.linear(heads.transpose(-3, -2).reshape(*leading, 9, 12), ours.output_proj.weight)
    y = ours(x, positions)
    assert y.shape == x.shape
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("attention", CAUSAL_ATTENTIONS)
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_positions_of_each_row(attention, joint, qk_norm):
    """Row by row it is the same, also where there are as many rows as heads; and every way of writing them counts."""
    rope = RotaryPositionalEmbedding(50.0, 4, 40)
    ours = MultiHeadSelfAttention(12, 3, rope, qk_norm)
    assert not hasattr(ours, "attention")
    fast = FastAttention(12, 3, rope, qk_norm)
    fast.load_state_dict(ours.state_dict())
    fast.attention, fast.joint = attention, joint
    plain, ours = ours, fast
    for leading in ((2,), (3,), (2, 3), (3, 3)):
        x, positions = torch.randn(*leading, 9, 12), torch.randint(0, 40, (*leading, 9))
        y = ours(x, positions)
        assert y.shape == x.shape
        torch.testing.assert_close(y, plain(x, positions))
        for index in itertools.product(*map(range, leading)):
            torch.testing.assert_close(y[index], ours(x[index], positions[index]))
        same = ours(x, positions[(0,) * len(leading)])
        one = positions[(slice(0, 1),) * len(leading)]
        torch.testing.assert_close(ours(x, one), same)
        torch.testing.assert_close(ours(x, one.expand(*leading, 9)), same)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (3, 3)])
def test_rope_turns_each_pair_by_its_own_position(leading):
    rope, x = RotaryPositionalEmbedding(50.0, 4, 40), torch.randn(*leading, 5, 4)
    for shape in [(5,), (*leading, 5)]:
        positions = torch.randint(0, 40, shape)
        y = rope(x, positions)
        for index in itertools.product(*map(range, (*leading, 5))):
            position = positions[index] if shape != (5,) else positions[index[-1]]
            for pair in range(2):
                turn = cmath.exp(1j * position.item() / 50.0 ** (pair / 2))
                turned = complex(*x[index][2 * pair : 2 * pair + 2].tolist()) * turn
                assert complex(*y[index][2 * pair : 2 * pair + 2].tolist()) == pytest.approx(turned, abs=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_rope_gives_all_heads_of_a_sequence_its_positions(heads):
    """Also where there are as many heads as sequences, which broadcasting alone would confuse."""
    rope, x = RotaryPositionalEmbedding(50.0, 4, 40), torch.randn(2, heads, 5, 4)
    positions = torch.tensor([[0, 1, 2, 3, 4], [30, 7, 7, 0, 39]])
    y = rope(x, positions)
    for sequence, head in itertools.product(range(2), range(heads)):
        torch.testing.assert_close(y[sequence, head], rope(x[sequence, head], positions[sequence]))
    torch.testing.assert_close(rope(x, positions[:, None]), y)


@pytest.mark.parametrize("shape", [(2, 5), (), (1, 2, 3, 3, 5)])
def test_rope_refuses_positions_of_other_dimensions(shape):
    """Two batch dimensions and heads: positions with one of the three could belong to any."""
    rope = RotaryPositionalEmbedding(50.0, 4, 40)
    with pytest.raises(ValueError, match="token_positions"):
        rope(torch.randn(2, 3, 3, 5, 4), torch.zeros(shape, dtype=torch.long))


def test_attention_with_rope_depends_on_distance_alone():
    attention = MultiHeadSelfAttention(8, 2, RotaryPositionalEmbedding(50.0, 4, 100))
    x = torch.randn(5, 8)
    torch.testing.assert_close(attention(x, torch.arange(5)), attention(x, torch.arange(70, 75)), rtol=1e-4, atol=1e-5)


def test_a_later_position_changes_nothing_before_it():
    attention = MultiHeadSelfAttention(8, 2, RotaryPositionalEmbedding(50.0, 4, 10))
    x = torch.randn(2, 10, 8)
    y = attention(x, torch.arange(10))
    for t in range(10):
        changed = x.clone()
        changed[:, t] += 1
        z = attention(changed, torch.arange(10))
        assert torch.equal(z[:, :t], y[:, :t])
        assert not torch.isclose(z[:, t], y[:, t]).all()


def test_heads_must_divide_the_model():
    with pytest.raises(ValueError, match="d_model 10 cannot be divided evenly among num_heads 3"):
        MultiHeadSelfAttention(10, 3)


def test_device_and_dtype():
    for parameter in MultiHeadSelfAttention(8, 2, device="meta", dtype=torch.float64).parameters():
        assert (parameter.device.type, parameter.dtype) == ("meta", torch.float64)


def test_without_memory_no_angle_is_computed():
    """So that a context of any length can be accounted for, and is refused for its size alone."""
    rope = RotaryPositionalEmbedding(1e4, 64, 1 << 40, device="meta")
    assert (rope.cos.shape, rope.sin.shape, rope.sin.dtype) == ((1 << 40, 32), (1 << 40, 32), torch.float32)
    with torch.device("meta"):
        assert RotaryPositionalEmbedding(1e4, 64, 1 << 40).cos.is_meta
