"""Proves that the table of bigrams looks up what its formula says, changes nothing until it has learnt, gets the
gradients of the rows that it used, and is in no export."""

import pytest
import torch

from lm.model.bigram_table import NONE, BigramTable, tokens_before
from lm.model.transformer import TransformerLM

SHAPE = {"vocab_size": 50_000, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2}


def row(before: int, token_id: int, rows: int) -> int:
    """The formula once more, for one pair, in Python's unbounded numbers."""
    return 0 if before == NONE else 1 + ((36313 * token_id) ^ (27191 * before)) % (rows - 1)


@pytest.mark.parametrize("rows", [2, 3, 1000])
def test_each_token_has_the_row_of_its_pair(rows):
    table = BigramTable(rows, 4)
    table.table.weight.data.copy_(torch.arange(rows)[:, None].expand(rows, 4))
    token_ids = torch.randint(50_000, (3, 2, 9), generator=torch.Generator().manual_seed(0))
    found = table(token_ids, tokens_before(token_ids))
    assert found.shape == (3, 2, 9, 4)
    for text, vectors in zip(token_ids.view(6, 9).tolist(), found.view(6, 9, 4), strict=True):
        expected = [row(before, token_id, rows) for before, token_id in zip([NONE, *text], text, strict=False)]
        assert vectors[:, 0].tolist() == expected
        assert 0 not in expected[1:]


def test_ids_in_int32_have_the_same_rows():
    """36313 times 60,000 is more than an int32 holds."""
    table = BigramTable(1000, 4)
    torch.nn.init.normal_(table.table.weight)
    token_ids = torch.tensor([60_000, 120_000, 7])
    expected = table(token_ids, tokens_before(token_ids))
    assert torch.equal(table(token_ids.int(), tokens_before(token_ids.int())), expected)


def test_the_model_adds_it_before_each_block():
    torch.manual_seed(0)
    model = TransformerLM(**SHAPE, bigram_rows=64)
    token_ids = torch.randint(50_000, (2, 8))
    torch.manual_seed(0)
    without = TransformerLM(**SHAPE)
    assert torch.equal(model(token_ids), without(token_ids))  # the table is 0, and all else drawn alike

    torch.nn.init.normal_(model.bigrams.table.weight)
    x, bigrams = model.token_embeddings(token_ids), model.bigrams(token_ids, tokens_before(token_ids))
    for layer in model.layers:
        x = layer(x + bigrams, torch.arange(8))
    torch.testing.assert_close(model(token_ids), model.lm_head(model.ln_final(x)))


def test_only_the_rows_in_use_get_a_gradient():
    model = TransformerLM(**SHAPE, bigram_rows=64)
    model(torch.tensor([[7, 8, 9]]), targets=torch.tensor([[8, 9, 7]])).backward()
    used = model.bigrams.table.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert used == sorted({0, row(7, 8, 64), row(8, 9, 64)})


@pytest.mark.parametrize(
    ("rows", "message"), [(0, "at least 1"), (-5, "at least 1"), (1, "at least 2"), (1 << 40, "at most")]
)
def test_sizes_that_make_no_table_are_refused(rows, message):
    with pytest.raises(ValueError, match=f"bigram_rows is {rows}; it .*{message}"):
        TransformerLM(**SHAPE, bigram_rows=rows)
