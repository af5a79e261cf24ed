"""Proves that a gated share of the embedding before is added to each, that a window's first token has none, and that a
new model knows nothing of it."""

import itertools
import math

import torch

from lm.model.transformer import TransformerLM

SHAPE = {"vocab_size": 50, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2}


def smeared(embeddings, gate, share):
    """The formula in Python's own numbers, for one text."""
    result = [embeddings[0]]
    for before, x in itertools.pairwise(embeddings):
        opened = 1 / (1 + math.exp(-sum(w * number for w, number in zip(gate, x, strict=True))))
        result.append([number + share * opened * other for number, other in zip(x, before, strict=True)])
    return torch.tensor(result)


def test_the_model_smears_its_embeddings():
    torch.manual_seed(0)
    model = TransformerLM(**SHAPE, smear=True, embedding_skips=True)
    token_ids = torch.randint(50, (3, 8))
    torch.manual_seed(0)
    without = TransformerLM(**SHAPE, embedding_skips=True)
    assert torch.equal(model(token_ids), without(token_ids))  # the share is 0, and all else drawn alike

    gate = torch.linspace(-0.5, 1.0, 16)
    model.smear.gate.data.copy_(gate)
    model.smear.share.data.fill_(-0.8)
    model.skips.weight.data.fill_(0.5)
    for text, found in zip(token_ids, model(token_ids), strict=True):
        rows = [model.token_embeddings.weight[token_id].tolist() for token_id in text.tolist()]
        x = embedding = smeared(rows, gate.tolist(), -0.8)
        torch.testing.assert_close(model.embed(text), embedding)
        for layer in model.layers:
            x = layer(x + 0.5 * embedding, torch.arange(8))  # skips add what blocks were given
        torch.testing.assert_close(found, model.lm_head(model.ln_final(x)), atol=1e-5, rtol=1e-5)
    assert (model(token_ids) - without(token_ids)).abs().max() > 0.1


def test_the_share_learns_first_and_then_the_gate():
    model, token_ids = TransformerLM(**SHAPE, smear=True), torch.arange(8)[None]
    for gate_learns in (False, True):
        model.zero_grad()
        model(token_ids, targets=token_ids).backward()
        assert model.smear.share.grad.abs() > 0
        assert bool(model.smear.gate.grad.any()) == gate_learns
        model.smear.share.data.fill_(0.1)
