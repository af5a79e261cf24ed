"""Computes the logits of the next token for a batch of growing texts, with a key-value cache or without.

    read(row, token_ids)   begins a text in a row of the batch    -> logits (vocab_size,), or those after each token
    step(token_ids)        appends one token to each row's text   -> logits (rows, vocab_size)
    drop(row)              removes a text; the last row takes its place

A text may be longer than the context. When its window is full, the older half is dropped, and the rest is read again:
the model always sees between half a context and a whole one, and few tokens are read twice.

PlainReader calls the model as it is and reads the whole window for every token: slow, it defines what is right.
CachedReader computes the same function, laid out for single tokens, and keeps the keys and values of those before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from lm.generation.layouts import choose_layout, lay_out
from lm.model.attention import scaled_dot_product_attention
from lm.model.bigram_table import NONE
from lm.model.layers import SwiGLU, silu
from lm.model.support import Support
from lm.model.transformer import NORM_POSITIONS, TransformerBlock, TransformerLM

SUPPORT = Support(
    part="generation with a cache",
    remedy="use_cache=False generates from the model as it is, slowly",
    options={
        "norm_position": ("pre", "post", "none"),
        "position_encoding": ("rope", "none"),
        "feed_forward": ("swiglu", "silu"),
        "tie_embeddings": (False, True),
        "qk_norm": (False, True),
    },
    numbers=("bigram_rows",),
)


class Reader:
    """The base of both readers: keeps, for each row, the window of its text that the model sees."""

    def __init__(self, model: TransformerLM):
        self.model = model
        self.device = next(model.parameters()).device
        self.windows: list[list[int]] = []

    @torch.inference_mode()
    def read(self, row: int, token_ids: Sequence[int], every: bool = False) -> Tensor:
        """Begins a text in a row, the next new one or one whose text is over; returns the logits after its last token.

        every: returns those after each token, (len(token_ids), vocab_size); then the text must fit the context.
        """
        self.windows[row : row + 1] = [list(token_ids)]
        self.shorten(row, len(token_ids))
        return self.read_window(row, every)

    @torch.inference_mode()
    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Appends a token to each row's text; returns the logits after it, (rows, vocab_size)."""
        for row, token_id in enumerate(token_ids):
            if self.shorten(row, len(self.windows[row]) + 1):
                self.read_again(row)
            self.windows[row].append(token_id)
        return self.read_newest()

    def drop(self, row: int) -> None:
        """Removes a row's text; the last row takes its place."""
        self.windows[row] = self.windows[-1]
        self.windows.pop()

    def shorten(self, row: int, length: int) -> bool:
        """Drops old tokens if a window of this length would exceed the context; returns whether it did."""
        excess = length - self.model.context_length
        if excess > 0:
            del self.windows[row][: length - max(1, self.model.context_length // 2)]
        return excess > 0

    def read_window(self, row: int, every: bool = False) -> Tensor:
        """Returns the logits after a row's window, (vocab_size,), or those after each of its tokens."""
        raise NotImplementedError

    def read_newest(self) -> Tensor:
        """Returns the logits after each row's last token, (rows, vocab_size); all tokens before it have been read."""
        raise NotImplementedError

    def read_again(self, row: int) -> None:
        """Renews what is kept of a row whose window has been shortened."""


class PlainReader(Reader):
    """Reads the whole window for every token, by the model as it is."""

    def read_window(self, row: int, every: bool = False) -> Tensor:
        logits: Tensor = self.model(torch.tensor([self.windows[row]], device=self.device))[0]
        return logits if every else logits[-1]

    def read_newest(self) -> Tensor:
        return torch.stack([self.read_window(row) for row in range(len(self.windows))])


def products(block: TransformerBlock) -> list[Sequence[Tensor]]:
    """Returns a block's weights in the order of their use, grouped by the product that joins them."""
    attn, ffn = block.attn, block.ffn
    qkv = [attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]
    w13 = [ffn.w1.weight, ffn.w3.weight] if isinstance(ffn, SwiGLU) else [ffn.w1.weight]
    return [qkv, [attn.output_proj.weight], w13, [ffn.w2.weight]]


@dataclass
class Places:
    """The places of the new tokens, seq in each of the rows; the same in all layers."""

    rows: slice
    length: int  # of the longest row
    slots: Tensor  # (rows * num_heads * seq,): indices into a layer's keys or values, seen as rows of d_k numbers
    rotations: Tensor | None  # (rows, 1, seq, d_k / 2): RoPE's, as complex numbers
    mask: Tensor | None  # (rows, 1, seq, length): True where a token may attend; None is everywhere


class CachedBlock:
    """A TransformerBlock for tokens that come one by one: attn(x, places), ffn(x) and the norms."""

    def __init__(self, block: TransformerBlock, keys: Tensor, values: Tensor, dtype: torch.dtype, layout: str):
        self.keys, self.values = keys, values  # (batch_size, num_heads, context_length, d_k)
        self.ln1, self.ln2, self.q_norm, self.k_norm = block.ln1, block.ln2, block.attn.q_norm, block.attn.k_norm
        self.gated = isinstance(block.ffn, SwiGLU)
        self.qkv, self.output, self.w13, self.w2 = (lay_out(weights, dtype, layout) for weights in products(block))

    def attn(self, x: Tensor, places: Places) -> Tensor:
        """Attends in float32, the dtype of the cache, in which a CPU attends faster than in bfloat16."""
        _, num_heads, _, d_k = self.keys.shape
        q, k, v = torch.unflatten(self.qkv(x).float(), -1, (3, num_heads, d_k)).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if places.rotations is not None:
            q, k = rotate(q, places.rotations), rotate(k, places.rotations)
        for cache, new in ((self.keys, k), (self.values, v)):
            cache.view(-1, d_k).index_copy_(0, places.slots, new.reshape(-1, d_k))
        k, v = (cache[places.rows, :, : places.length] for cache in (self.keys, self.values))
        heads = scaled_dot_product_attention(q, k, v, places.mask)  # (rows, num_heads, seq, d_k)
        return self.output(heads.transpose(1, 2).flatten(-2).to(x.dtype))

    def ffn(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.w2(silu(self.w13(x)))
        gate, value = self.w13(x).chunk(2, dim=-1)
        return self.w2(silu(gate) * value)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Applies RoPE: a pair of features is a complex number, and its rotation a product with e^(i angle)."""
    return torch.view_as_real(torch.view_as_complex(torch.unflatten(x, -1, (-1, 2))) * rotations).flatten(-2)


class CachedReader(Reader):
    """Reads each token once, with a key-value cache.

    At batch size 1 a step takes as long as it takes to fetch every weight from memory once. So the weights are copied
    into the layout that is read fastest (layouts.py); in bfloat16 there is half as much to read. batch_size: the most
    rows. Raises InputError for a model with settings that are not supported.
    """

    def __init__(self, model: TransformerLM, batch_size: int, dtype: torch.dtype):
        SUPPORT.check(model)
        super().__init__(model)
        self.dtype, self.embeddings = dtype, model.token_embeddings.weight.detach()
        # Zeros, as slots not yet filled have an attention weight of 0, and 0 times NaN would be NaN.
        sizes = 2, len(model.layers), batch_size, model.num_heads, model.context_length, model.d_k
        self.keys, self.values = torch.zeros(sizes, device=self.device)
        blocks = cast(list[TransformerBlock], list(model.layers))
        head = [model.lm_head.weight[: model.vocab_size]]  # without the padding
        layout = choose_layout([head, *chain.from_iterable(map(products, blocks))], dtype, batch_size)
        self.layers = [
            partial(NORM_POSITIONS[block.norm_position], CachedBlock(block, keys, values, dtype, layout))
            for block, keys, values in zip(blocks, self.keys, self.values, strict=True)
        ]
        self.lm_head = lay_out(head, dtype, layout)
        rope = blocks[0].attn.rope
        self.rotations = None if rope is None else torch.complex(rope.cos, rope.sin)  # (context_length, d_k / 2)

    def drop(self, row: int) -> None:
        last = len(self.windows) - 1
        for cache in (self.keys, self.values):
            cache[:, row] = cache[:, last]
            cache[:, last] = 0  # a text that failed may leave NaN, and 0 times NaN is NaN
        super().drop(row)

    def read_window(self, row: int, every: bool = False) -> Tensor:
        return self.forward(slice(row, row + 1), len(self.windows[row]), every)[0]

    def read_newest(self) -> Tensor:
        return self.forward(slice(0, len(self.windows)), 1)

    def read_again(self, row: int) -> None:
        if self.windows[row]:
            self.read_window(row)

    def forward(self, rows: slice, seq: int, every: bool = False) -> Tensor:
        """Reads the last seq tokens of each of these rows; returns the logits after them, (rows, vocab_size).

        every: returns those after each token, (rows, seq, vocab_size).
        """
        token_ids = torch.tensor([window[-seq:] for window in self.windows[rows]], device=self.device)
        places = self.places(rows, seq)
        x = self.embeddings[token_ids].to(self.dtype)
        bigrams = None
        if self.model.bigrams is not None:
            before = [[NONE, *window[:-1]][-seq:] for window in self.windows[rows]]
            bigrams = self.model.bigrams(token_ids, torch.tensor(before, device=self.device)).to(self.dtype)
        for layer in self.layers:
            x = layer(x if bigrams is None else x + bigrams, places)
        x = x if every else x[:, -1]
        if self.model.ln_final is not None:
            x = self.model.ln_final(x)
        return self.lm_head(x)

    def places(self, rows: slice, seq: int) -> Places:
        """Finds the places of the last seq tokens of each of these rows."""
        lengths = [len(window) for window in self.windows[rows]]
        num_heads, context_length, _ = self.keys.shape[-3:]
        positions = torch.tensor(lengths, device=self.device)[:, None] + torch.arange(-seq, 0, device=self.device)
        heads = torch.arange(rows.start * num_heads, rows.stop * num_heads, device=self.device)
        slots = heads.view(-1, num_heads, 1) * context_length + positions[:, None]  # (rows, num_heads, seq)
        mask = None
        if seq > 1 or min(lengths) < max(lengths):
            mask = positions[:, None, :, None] >= torch.arange(max(lengths), device=self.device)
        rotations = None if self.rotations is None else self.rotations[positions][:, None]
        return Places(rows, max(lengths), slots.flatten(), rotations, mask)
