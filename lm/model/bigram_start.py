"""Starts a model as a table of bigrams: before its first step, it predicts each token from the one before it.

    P(j | i) = (c_ij + k p_j) / (c_i + k)           c_ij: how often j follows i;  p_j: how frequent j is
    logits_ij = log p_j + m_ij,  m_ij = log(1 + c_ij / (k p_j))     the same: a softmax ignores what i alone decides

While all blocks add nothing, logits_ij = norm(E_i) W_j, with E the embedding and W the head. So E and W are a
factorization of these logits. Two of the d_model columns hold log p_j, and fill each E_i to the length that the norm
leaves alone; the others hold the best approximation of m of that rank, by its singular vectors. Frequent tokens weigh
more in it, by the roots of p_i and p_j. A table of rank d_model - 2 is worse than the bigrams themselves, and far
better than a guess. (Starts from unigrams: Meister et al. 2023, arXiv 2212.09686.)
"""

import math

import torch
from torch import Tensor

from lm.model.transformer import TransformerLM

STRENGTH = 100.0  # k, in tokens
COVERED = 0.97  # of the tokens that were seen; the rows of the others, which are longer, are shortened to fit the norm
ROUNDS = 2  # of the subspace iteration


def check_bigram_start(model: TransformerLM, zero_outputs: bool, head_factor: float) -> None:
    """Raises ValueError for a model that cannot start as a table of bigrams."""
    if not zero_outputs:
        raise ValueError("bigram_init is True, and the blocks' first outputs would blur its table; set zero_init")
    if head_factor != 1:
        raise ValueError(f"bigram_init is True, which makes its own head; leave head_init out, which is {head_factor}")
    if model.settings["tie_embeddings"]:
        raise ValueError("bigram_init is True, which needs a head of its own; tie_embeddings makes it the embedding")
    if model.settings["d_model"] < 3:
        raise ValueError(f"bigram_init is True, which needs a d_model of at least 3, not {model.settings['d_model']}")


@torch.no_grad()
def start_with_bigrams(model: TransformerLM, tokens: Tensor, covered: float = COVERED) -> None:
    """Sets embedding and head to the bigrams of a text, in place; draws from no generator but its own.

    tokens: ids, (tokens,), int64, at least 2. Rows that vocab_multiple adds stay as they are.
    """
    size, (_, width) = model.vocab_size, model.token_embeddings.weight.shape
    frequencies = torch.bincount(tokens, minlength=size) + 1.0
    frequencies /= frequencies.sum()
    roots = frequencies.sqrt()
    pairs, counts = torch.unique(tokens[:-1] * size + tokens[1:], return_counts=True)
    i, j = pairs // size, pairs % size
    values = torch.log1p(counts / (STRENGTH * frequencies[j])) * roots[i] * roots[j]
    table = torch.sparse_coo_tensor(torch.stack([i, j]), values, (size, size), check_invariants=True).coalesce()

    basis = right_singular_space(table, min(size, width - 2))
    left, right = (table @ basis) / roots[:, None], basis / roots[:, None]  # their product is about m
    lengths = left.norm(dim=1)
    longest = lengths[i.unique()].quantile(covered)  # of tokens that were followed by any
    left = left * (longest / lengths.clamp_min(longest))[:, None]
    scale = math.sqrt(0.75 * width) / longest  # at most three quarters of an E_i's square; the rest is log p's
    left, right, constant = left * scale, right / scale, math.sqrt(0.25 * width)
    rank = left.shape[1]

    embedding, head = torch.zeros(size, width), torch.zeros(size, width)
    embedding[:, :rank], head[:, :rank] = left, right
    embedding[:, -2], head[:, -2] = constant, (frequencies.log() - frequencies.log().mean()) / constant
    embedding[:, -1] = (width - embedding.square().sum(dim=1)).clamp_min(0).sqrt()  # read by no row of the head
    model.token_embeddings.weight[:size] = embedding.to(model.token_embeddings.weight)
    model.lm_head.weight[:size] = head.to(model.lm_head.weight)


def right_singular_space(table: Tensor, rank: int) -> Tensor:
    """Returns an orthonormal basis of about the first right singular vectors: (rows, columns) -> (columns, rank).

    By subspace iteration from random vectors (Halko et al. 2011), as a whole decomposition takes columns^3.
    """
    start = torch.randn(table.shape[0], rank, generator=torch.Generator().manual_seed(0))
    transposed = table.t().coalesce()
    basis: Tensor = torch.linalg.qr(transposed @ start)[0]
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(transposed @ torch.linalg.qr(table @ basis)[0])[0]
    return basis
