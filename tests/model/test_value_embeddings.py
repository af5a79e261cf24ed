"""Proves that each layer's values have the token's vector of its own table added, that a new model knows nothing of
them, and that a gradient reaches the rows in use alone."""

import math

import torch

from lm.model.transformer import TransformerLM

SHAPE = {"vocab_size": 50, "context_length": 8, "d_model": 16, "num_layers": 3, "num_heads": 2, "vocab_multiple": 16}


def attention_by_loops(attn, x, added):
    """Attention in one text, position by position: x, added (seq, d_model)."""
    q, k = ((x @ projection.weight.T).view(8, 2, 8) for projection in (attn.q_proj, attn.k_proj))
    v = torch.stack([attn.v_proj.weight @ x[t] + added[t] for t in range(8)]).view(8, 2, 8)
    output = []
    for t in range(8):
        heads = []
        for head in range(2):
            scores = torch.stack([q[t, head] @ k[s, head] / math.sqrt(8) for s in range(t + 1)]).exp()
            heads.append(sum(score * v[s, head] for s, score in enumerate(scores)) / scores.sum())
        output.append(attn.output_proj.weight @ torch.cat(heads))
    return torch.stack(output)


def test_the_model_adds_them_to_each_layers_values():
    torch.manual_seed(0)
    model = TransformerLM(**SHAPE, position_encoding="none", value_embeddings=True)
    token_ids = torch.randint(50, (2, 8))
    torch.manual_seed(0)
    without = TransformerLM(**SHAPE, position_encoding="none")
    assert torch.equal(model(token_ids), without(token_ids))  # the tables are 0, and all else drawn alike

    tables = [table.weight for table in model.value_embeddings.tables]
    assert [table.shape for table in tables] == [(64, 16)] * 3
    for table in tables:
        torch.nn.init.normal_(table)
    for text, found in zip(token_ids, model(token_ids), strict=True):
        x = model.token_embeddings.weight[text]
        for layer, table in zip(model.layers, tables, strict=True):
            x = x + attention_by_loops(layer.attn, layer.ln1(x), [table[token_id] for token_id in text.tolist()])
            x = x + layer.ffn(layer.ln2(x))
        torch.testing.assert_close(found, model.lm_head(model.ln_final(x))[:, :50], atol=1e-5, rtol=1e-5)
    assert (model(token_ids) - without(token_ids)).abs().max() > 0.1


def test_only_the_rows_in_use_get_a_gradient():
    model = TransformerLM(**SHAPE, value_embeddings=True)
    model(torch.tensor([[7, 9, 8]]), targets=torch.tensor([[9, 8, 7]])).backward()
    for table in model.value_embeddings.tables:
        assert table.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [7, 8, 9]
