"""Proves that the loss is torch's cross entropy, with gradients, any leading dimensions, half precision and logits
that would overflow, and that perplexity and bits per byte are what they are by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lm.model.loss import bits_per_byte, cross_entropy, perplexity


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_cross_entropy(leading, scale):
    torch.manual_seed(0)
    logits = (torch.randn(*leading, 11) * scale).requires_grad_()
    targets = torch.randint(11, leading)
    ours, theirs = cross_entropy(logits, targets), F.cross_entropy(logits.reshape(-1, 11), targets.reshape(-1))
    assert ours.shape == ()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    logits, targets = torch.randn(64, 1000).bfloat16(), torch.randint(1000, (64,))
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), targets))


def test_equal_logits_cost_the_logarithm_of_their_number():
    assert cross_entropy(torch.full((4, 10), 1e30), torch.arange(4)).item() == pytest.approx(math.log(10))


def test_an_impossible_token_costs_infinity_and_no_nan():
    logits = torch.tensor([0.0, -math.inf])
    assert cross_entropy(logits, torch.tensor(0)).item() == 0
    assert cross_entropy(logits, torch.tensor(1)).item() == math.inf


def test_perplexity():
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(0.0) == 1
    assert perplexity(1e6) == math.inf


def test_bits_per_byte():
    # 30 tokens of ln 8 nats are 90 bits, over 45 bytes
    assert bits_per_byte(math.log(8), 30, 45) == pytest.approx(2)
    # the same text cut into single bytes, each as hard as half of a two-byte token: the same figure
    assert bits_per_byte(1.0, 100, 200) == pytest.approx(bits_per_byte(0.5, 200, 200))


def test_z_loss_is_the_square_of_the_log_normalizer():
    logits, targets = torch.randn(4, 7, 11), torch.randint(11, (4, 7))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    expected = expected + 0.3 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(cross_entropy(logits, targets, 0.3), expected)
