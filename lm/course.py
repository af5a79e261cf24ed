"""Assignment 1 of Stanford's CS336 by its own names: what its tests/adapters.py calls run_linear is `linear` here.

For students who want to compare: each function has the arguments of its adapter, names the problem of the handout that
it solves, and does so by the code of this package that the docstring names. Layers get their weights from the caller,
under the names that the course's state dicts have, and are made anew for every call.

    from lm.course import linear as run_linear, rmsnorm as run_rmsnorm, get_adamw_cls      # in tests/adapters.py
"""

import os
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

import tokenization
from lm.data.batches import gather_windows
from lm.model import attention, layers, loss
from lm.model.positions import RotaryPositionalEmbedding
from lm.model.transformer import TransformerBlock, TransformerLM
from lm.optim.adamw import AdamW
from lm.optim.clipping import clip_gradients
from lm.optim.schedule import cosine_warmup
from tokenization import InputError, Tokenizer
from tokenization.files import writing

Target = str | os.PathLike[str] | IO[bytes]


def compute(module: nn.Module, weights: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    """Returns what a module makes of the inputs with these weights; RuntimeError for other names or shapes."""
    module.load_state_dict(weights)
    output: Tensor = module(*inputs)
    return output


# --- the tokenizer (section 2) ---------------------------------------------------------------------------------------


def train_bpe(
    input_path: str | os.PathLike[str], vocab_size: int, special_tokens: list[str], **settings: Any
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Problem train_bpe: learns a vocabulary and merges from a text file, by tokenization.train_bpe."""
    return tokenization.train_bpe(input_path, vocab_size, special_tokens, **settings)


def get_tokenizer(
    vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]], special_tokens: list[str] | None = None
) -> Tokenizer:
    """Problem tokenizer: returns a tokenization.Tokenizer, which has encode, encode_iterable and decode."""
    return Tokenizer(vocab, merges, special_tokens)


# --- the Transformer (section 3) -------------------------------------------------------------------------------------


def linear(d_in: int, d_out: int, weights: Tensor, in_features: Tensor) -> Tensor:
    """Problem linear: (..., d_in) -> (..., d_out) with weights (d_out, d_in), by lm.Linear."""
    return compute(layers.Linear(d_in, d_out), {"weight": weights}, in_features)


def embedding(vocab_size: int, d_model: int, weights: Tensor, token_ids: Tensor) -> Tensor:
    """Problem embedding: ids (...) -> (..., d_model) from weights (vocab_size, d_model), by lm.Embedding."""
    return compute(layers.Embedding(vocab_size, d_model), {"weight": weights}, token_ids)


def rmsnorm(d_model: int, eps: float, weights: Tensor, in_features: Tensor) -> Tensor:
    """Problem rmsnorm: (..., d_model) to the same with gains (d_model,), by lm.RMSNorm."""
    return compute(layers.RMSNorm(d_model, eps), {"weight": weights}, in_features)


def silu(in_features: Tensor) -> Tensor:
    """Part of positionwise_feedforward: x sigmoid(x), of any shape, by lm.model.layers.silu."""
    return layers.silu(in_features)


def swiglu(
    d_model: int, d_ff: int, w1_weight: Tensor, w2_weight: Tensor, w3_weight: Tensor, in_features: Tensor
) -> Tensor:
    """Problem positionwise_feedforward: (..., d_model) to the same, by lm.SwiGLU."""
    weights = {"w1.weight": w1_weight, "w2.weight": w2_weight, "w3.weight": w3_weight}
    return compute(layers.SwiGLU(d_model, d_ff), weights, in_features)


def rope(d_k: int, theta: float, max_seq_len: int, in_query_or_key: Tensor, token_positions: Tensor) -> Tensor:
    """Problem rope: rotates (..., seq, d_k) by positions (..., seq), by lm.RotaryPositionalEmbedding."""
    return compute(RotaryPositionalEmbedding(theta, d_k, max_seq_len), {}, in_query_or_key, token_positions)


def softmax(in_features: Tensor, dim: int) -> Tensor:
    """Problem softmax: of any shape, along dim, by lm.softmax."""
    return attention.softmax(in_features, dim)


def scaled_dot_product_attention(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None) -> Tensor:
    """Problem scaled_dot_product_attention: (..., queries, d_v), by lm.scaled_dot_product_attention.

    mask: (..., queries, keys), boolean; True means that the query attends to the key.
    """
    return attention.scaled_dot_product_attention(Q, K, V, mask)


def multihead_self_attention(
    d_model: int,
    num_heads: int,
    q_proj_weight: Tensor,
    k_proj_weight: Tensor,
    v_proj_weight: Tensor,
    o_proj_weight: Tensor,
    in_features: Tensor,
) -> Tensor:
    """Problem multihead_self_attention without positions: (..., seq, d_model), by lm.MultiHeadSelfAttention."""
    weights = _attention_weights(q_proj_weight, k_proj_weight, v_proj_weight, o_proj_weight)
    module = attention.MultiHeadSelfAttention(d_model, num_heads)
    return compute(module, weights, in_features, _positions(in_features))


def multihead_self_attention_with_rope(
    d_model: int,
    num_heads: int,
    max_seq_len: int,
    theta: float,
    q_proj_weight: Tensor,
    k_proj_weight: Tensor,
    v_proj_weight: Tensor,
    o_proj_weight: Tensor,
    in_features: Tensor,
    token_positions: Tensor | None = None,
) -> Tensor:
    """Problem multihead_self_attention with RoPE: (..., seq, d_model), by lm.MultiHeadSelfAttention.

    token_positions: (seq,) or (..., seq); None counts from 0.
    """
    weights = _attention_weights(q_proj_weight, k_proj_weight, v_proj_weight, o_proj_weight)
    rope = RotaryPositionalEmbedding(theta, attention.head_width(d_model, num_heads), max_seq_len)
    module = attention.MultiHeadSelfAttention(d_model, num_heads, rope)
    positions = _positions(in_features) if token_positions is None else token_positions
    return compute(module, weights, in_features, positions)


def _attention_weights(q: Tensor, k: Tensor, v: Tensor, output: Tensor) -> dict[str, Tensor]:
    return {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "output_proj.weight": output}


def _positions(in_features: Tensor) -> Tensor:
    return torch.arange(in_features.shape[-2])


def transformer_block(
    d_model: int,
    num_heads: int,
    d_ff: int,
    max_seq_len: int,
    theta: float,
    weights: dict[str, Tensor],
    in_features: Tensor,
) -> Tensor:
    """Problem transformer_block: a pre-norm block with RoPE, (batch, seq, d_model) to the same, by lm.TransformerBlock.

    weights: attn.q_proj.weight, ..., ffn.w3.weight, ln2.weight, as the module names them.
    """
    rope = RotaryPositionalEmbedding(theta, attention.head_width(d_model, num_heads), max_seq_len)
    block = TransformerBlock(d_model, num_heads, d_ff, rope)
    return compute(block, weights, in_features, _positions(in_features))


def transformer_lm(
    vocab_size: int,
    context_length: int,
    d_model: int,
    num_layers: int,
    num_heads: int,
    d_ff: int,
    rope_theta: float,
    weights: dict[str, Tensor],
    in_indices: Tensor,
) -> Tensor:
    """Problem transformer_lm: ids (batch, seq) -> logits (batch, seq, vocab_size), by lm.TransformerLM.

    weights: token_embeddings.weight, layers.0.attn.q_proj.weight, ..., lm_head.weight, as the module names them.
    """
    model = TransformerLM(
        vocab_size, context_length, d_model, num_layers, num_heads=num_heads, d_ff=d_ff, rope_theta=rope_theta
    )
    return compute(model, weights, in_indices)


# --- training (sections 4 and 5) -------------------------------------------------------------------------------------


def cross_entropy(inputs: Tensor, targets: Tensor) -> Tensor:
    """Problem cross_entropy: logits (batch, vocab_size) and ids (batch,) -> the mean, by lm.cross_entropy."""
    return loss.cross_entropy(inputs, targets)


def gradient_clipping(parameters: Iterable[nn.Parameter], max_l2_norm: float) -> None:
    """Problem gradient_clipping: scales all gradients together, in place, by lm.clip_gradients."""
    clip_gradients(parameters, max_l2_norm)


def get_adamw_cls() -> type[AdamW]:
    """Problem adamw: returns lm.AdamW, whose weight decay comes first, as in the paper and in PyTorch."""
    return AdamW


def get_lr_cosine_schedule(
    it: int, max_learning_rate: float, min_learning_rate: float, warmup_iters: int, cosine_cycle_iters: int
) -> float:
    """Problem learning_rate_schedule: the rate of step `it`, counted from 0, by lm.cosine_warmup."""
    return cosine_warmup(it, max_learning_rate, min_learning_rate, warmup_iters, cosine_cycle_iters)


def get_batch(dataset: np.ndarray, batch_size: int, context_length: int, device: str) -> tuple[Tensor, Tensor]:
    """Problem data_loading: inputs and their next tokens, each (batch_size, context_length), by gather_windows.

    dataset: token ids, (n,), which may be a memory map. The places are uniform in [0, n - context_length), drawn from
    torch's global generator; `lm fit` draws them from its seed and the batch's number instead (lm/data/windows.py).
    """
    if len(dataset) <= context_length:
        raise InputError(f"{len(dataset)} tokens are too few for windows of {context_length} and the next; take more")
    starts = torch.randint(len(dataset) - context_length, (batch_size,))
    inputs, targets = gather_windows(dataset, starts.numpy(), context_length)
    return inputs.to(device), targets.to(device)


def save_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, iteration: int, out: Target) -> None:
    """Problem checkpointing: writes all three to a path, whole or not at all, or to a binary file.

    What `lm fit` saves has a digest besides, and knows its data and its tokenizer (lm/runs/checkpoint.py).
    """
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
    if isinstance(out, (str, os.PathLike)):
        with writing(out) as file:
            torch.save(state, file)
    else:
        torch.save(state, out)


def load_checkpoint(src: Target, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Problem checkpointing: restores model and optimizer from what save_checkpoint wrote; returns the iteration."""
    state = torch.load(src, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    iteration: int = state["iteration"]
    return iteration
