"""Proves that each block's input gets the embedding times its own number, and that a new model knows nothing of it."""

import torch

from lm.model.transformer import TransformerLM

SHAPE = {"vocab_size": 50, "context_length": 8, "d_model": 16, "num_layers": 3, "num_heads": 2}


def test_the_model_adds_the_embedding_before_each_block():
    torch.manual_seed(0)
    model = TransformerLM(**SHAPE, embedding_skips=True, bigram_rows=20)
    token_ids = torch.randint(50, (2, 8))
    torch.manual_seed(0)
    without = TransformerLM(**SHAPE)
    assert torch.equal(model(token_ids), without(token_ids))  # the numbers are 0, and all else drawn alike

    numbers = [0.5, -1.0, 2.0]
    model.skips.weight.data.copy_(torch.tensor(numbers))
    x = embedding = model.token_embeddings(token_ids)
    for number, layer in zip(numbers, model.layers, strict=True):
        x = layer(x + number * embedding, torch.arange(8))
    expected = model.lm_head(model.ln_final(x))
    torch.testing.assert_close(model(token_ids), expected)
    assert (expected - without(token_ids)).abs().max() > 0.1
    model(token_ids, targets=token_ids).backward()
    assert model.skips.weight.grad.abs().min() > 0
