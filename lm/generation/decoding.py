"""Computes the logits of the next token for a batch of growing texts, with a key-value cache or without.

    read(row, token_ids)   begins a text in a row of the batch    -> logits (vocab_size,), or those after each token
    step(token_ids)        appends one token to each row's text   -> logits (rows, vocab_size)
    drop(row)              removes a text; the last row takes its place

A text may be longer than the context. When its window is full, the older half is dropped, and the rest is read again:
the model always sees between half a context and a whole one, and few tokens are read twice.

PlainReader calls the model as it is and reads the whole window for every token: slow, it defines what is right.
CachedReader computes the same function, laid out for single tokens, and keeps the keys and values of those before. A
single text is continued by one call for each token (one_row.py), where that can be.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from lm.generation.cached_block import CachedBlock, Places, normalizer
from lm.generation.layouts import PLAIN, choose_layout, join, lay_out
from lm.generation.one_row import OneRow, can_read_one_row
from lm.generation.quantization import Quantized, check_int8, quantize
from lm.model.bigram_table import NONE
from lm.model.layers import SwiGLU
from lm.model.support import Support
from lm.model.transformer import NORM_POSITIONS, TransformerBlock, TransformerLM

SUPPORT = Support(
    part="generation with a cache",
    remedy="use_cache=False generates from the model as it is, slowly",
    options={
        "norm_position": ("pre", "post", "none"),
        "position_encoding": ("rope", "none"),
        "feed_forward": ("swiglu", "silu", "relu2"),
        "tie_embeddings": (False, True),
        "qk_norm": (False, True),
        "embedding_skips": (False, True),
        "value_embeddings": (False, True),
        "smear": (False, True),
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


def all_products(model: TransformerLM) -> list[Sequence[Tensor]]:
    """Returns the weights of all blocks, and then of the head, without its padding."""
    blocks = cast(list[TransformerBlock], list(model.layers))
    return [*chain.from_iterable(map(products, blocks)), [model.lm_head.weight[: model.vocab_size]]]


class CachedReader(Reader):
    """Reads each token once, with a key-value cache.

    At batch size 1 a step takes as long as it takes to fetch every weight from memory once. So the weights are copied
    into the layout that is read fastest (layouts.py); in bfloat16 there is half as much to read, in int8 a quarter.
    batch_size: the most rows. dtype: of the weights, one of PRECISIONS; those in int8 multiply vectors that are rounded
    to 16 bits. Raises InputError for a model with settings that are not supported, and for int8 where it cannot be had.
    """

    def __init__(self, model: TransformerLM, batch_size: int, dtype: torch.dtype):
        SUPPORT.check(model)
        super().__init__(model)
        if dtype == torch.int8:
            check_int8(self.device)
        self.weight_dtype, self.dtype = dtype, torch.float32 if dtype == torch.int8 else dtype
        self.embeddings = model.token_embeddings.weight.detach()
        # Zeros, as each row reads as many slots as the longest: those not yet filled have an attention weight of 0,
        # and 0 times NaN would be NaN.
        sizes = 2, len(model.layers), batch_size, model.num_heads, model.context_length, model.d_k
        self.keys, self.values = (torch.empty if batch_size == 1 else torch.zeros)(sizes, device=self.device)
        self.fast = can_read_one_row(model, dtype)
        layout = PLAIN
        if dtype != torch.int8 and not (self.fast and batch_size == 1):
            layout = choose_layout(all_products(model), dtype, batch_size)
        matrices = self.make_matrices()
        *of_layers, self.lm_head = (lay_out(matrix, layout) for matrix in matrices)
        self.matrices = matrices if layout == PLAIN else []  # which the products then share
        blocks = cast(list[TransformerBlock], list(model.layers))
        self.blocks = [
            CachedBlock(block, keys, values, of_layers[4 * n : 4 * n + 4])
            for n, (block, keys, values) in enumerate(zip(blocks, self.keys, self.values, strict=True))
        ]
        self.ln_final = normalizer(model.ln_final)
        self.arrange = NORM_POSITIONS[blocks[0].norm_position]
        rope = blocks[0].attn.rope
        self.rotations = None if rope is None else torch.complex(rope.cos, rope.sin)  # (context_length, d_k / 2)

    def make_matrices(self) -> list[Tensor | Quantized]:
        """Copies the weights of each product, (out_features, in_features)."""
        grouped = all_products(self.model)
        if self.weight_dtype == torch.int8:
            return [quantize(*weights) for weights in grouped]
        return [join(weights, self.weight_dtype) for weights in grouped]

    @cached_property
    def one_row(self) -> OneRow:
        """The kernel's jobs for row 0; made when that row is first alone, as the weights may be needed once more."""
        return OneRow(self.model, self.matrices or self.make_matrices(), self.keys, self.values)

    def drop(self, row: int) -> None:
        last = len(self.windows) - 1
        for cache in (self.keys, self.values):
            cache[:, row] = cache[:, last]
            cache[:, last] = 0  # a text that failed may leave NaN, and 0 times NaN is NaN
        super().drop(row)

    def read_window(self, row: int, every: bool = False) -> Tensor:
        return self.forward(slice(row, row + 1), len(self.windows[row]), every)[0]

    def read_newest(self) -> Tensor:
        if self.fast and len(self.windows) == 1:
            before, token_id = [NONE, *self.windows[0][-2:]][-2:]
            return self.one_row.step(token_id, before, len(self.windows[0]) - 1)[None].to(self.dtype)
        return self.forward(slice(0, len(self.windows)), 1)

    def read_again(self, row: int) -> None:
        if self.windows[row]:
            self.read_window(row)

    def forward(self, rows: slice, seq: int, every: bool = False) -> Tensor:
        """Reads the last seq tokens of each of these rows; returns the logits after them, (rows, vocab_size).

        seq is 1, or there is one row, and seq is all of its window. every: returns those after each token,
        (rows, seq, vocab_size). Otherwise the last block computes the last token alone; of those before it, later
        tokens need only the keys and values.
        """
        token_ids = torch.tensor([window[-seq:] for window in self.windows[rows]], device=self.device)
        places = self.places(rows, seq)
        ids_before = self.ids_before(rows, seq)
        x, bigrams = self.embed(token_ids, ids_before).to(self.dtype), None
        if self.model.bigrams is not None and ids_before is not None:
            bigrams = self.model.bigrams(token_ids, ids_before).to(self.dtype)
        embedding, value_embeddings = x, self.model.value_embeddings
        for number, block in enumerate(self.blocks):
            x = x if bigrams is None else x + bigrams
            x = x if self.model.skips is None else self.model.skips(x, embedding, number).to(self.dtype)
            values = None if value_embeddings is None else value_embeddings(token_ids, number)
            if block is self.blocks[-1] and seq > 1 and not every:
                rest = self.places(rows, seq - 1, skip=1)
                block.remember(x[:, :-1], rest, None if values is None else values[:, :-1])
                x, places, values = x[:, -1:], self.places(rows, 1), None if values is None else values[:, -1:]
            x = self.arrange(block, x, places, values)
        x = x if every else x[:, -1]
        if self.ln_final is not None:
            x = self.ln_final(x)
        return self.lm_head(x)

    def ids_before(self, rows: slice, seq: int) -> Tensor | None:
        """Returns the tokens before the last seq of each of these rows, NONE for a window's first; None if unused."""
        if self.model.bigrams is None and self.model.smear is None:
            return None
        windows = self.windows[rows]
        before = [[NONE] * (len(window) == seq) + window[-seq - 1 : -1] for window in windows]
        return torch.tensor(before, device=self.device)

    def embed(self, token_ids: Tensor, before: Tensor | None) -> Tensor:
        """Returns the embeddings of tokens, given those before them, which their windows may hold: (rows, seq)."""
        x = self.embeddings[token_ids]
        if self.model.smear is None or before is None:
            return x
        smeared: Tensor = self.model.smear(x, torch.where(before[..., None] == NONE, 0, self.embeddings[before]))
        return smeared

    def places(self, rows: slice, seq: int, skip: int = 0) -> Places:
        """Finds the places of the last seq tokens of each of these rows, or of those before the last `skip`."""
        lengths = [len(window) for window in self.windows[rows]]
        num_heads, context_length, _ = self.keys.shape[-3:]
        ends = torch.tensor(lengths, device=self.device)[:, None] - skip
        positions = ends + torch.arange(-seq, 0, device=self.device)
        heads = torch.arange(rows.start * num_heads, rows.stop * num_heads, device=self.device)
        slots = heads.view(-1, num_heads, 1) * context_length + positions[:, None]  # (rows, num_heads, seq)
        mask = None
        if min(lengths) < max(lengths):
            mask = positions[:, None, :, None] >= torch.arange(max(lengths), device=self.device)
        rotations = None if self.rotations is None else self.rotations[positions][:, None]
        return Places(rows, max(lengths), slots.flatten(), rotations, mask)
