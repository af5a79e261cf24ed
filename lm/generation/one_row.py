"""Computes the next token's logits of one text in a single kernel call, so that a step takes about as long as reading
the weights.

A step of torch's operators calls fifteen for each layer. Here the layers are a list of jobs, made once; a step sets
the position, and all threads go through the list. Norms and gates are computed with the product that follows them.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from lm.generation.program import Program, obstacle
from lm.generation.quantization import Quantized
from lm.model.bigram_table import NONE
from lm.model.layers import Embedding, RMSNorm
from lm.model.support import Support
from lm.model.transformer import TransformerBlock, TransformerLM
from tokenization import InputError

LANES = 16  # of the kernel; widths must be multiples
DTYPES = (torch.float32, torch.bfloat16, torch.int8)
SUPPORT = Support(
    part="the kernel for one row",
    remedy="torch's operators read it",
    options={
        "norm_position": ("pre",),
        "position_encoding": ("rope", "none"),
        "feed_forward": ("swiglu",),
        "tie_embeddings": (False, True),
        "qk_norm": (False, True),
        "value_embeddings": (False, True),
        "smear": (False, True),
    },
    numbers=("bigram_rows",),
)

Job = Mapping[int, int | float | Tensor]


def can_read_one_row(model: TransformerLM, dtype: torch.dtype) -> bool:
    """Tells whether OneRow can compute what this model does, on this machine."""
    try:
        SUPPORT.check(model)
    except InputError:
        return False
    floats = all(weight.dtype == torch.float32 and weight.is_cpu for weight in model.parameters())
    widths = (model.d_k, model.settings["d_model"], model.settings["d_ff"])
    return floats and dtype in DTYPES and not any(width % LANES for width in widths) and not obstacle()


class OneRow:
    """Computes the logits after one more token of the text in row 0 of a cache.

    matrices: the weights in rows, in the order of their use: for each layer q, k and v joined, output, w1 and w3
    joined, w2; then the head. keys, values: (layers, batch, num_heads, context_length, d_k), float32, which it extends.
    """

    def __init__(
        self, model: TransformerLM, matrices: Sequence[Tensor | Quantized], keys: Tensor, values: Tensor
    ) -> None:
        from lm.generation import kernels

        self.model, self.matrices = model, iter(matrices)
        d_model, d_ff = model.settings["d_model"], model.settings["d_ff"]
        self.x, self.bigrams, self.logits = torch.zeros(d_model), torch.zeros(d_model), torch.zeros(model.vocab_size)
        self.qkv, self.heads, self.hidden = torch.zeros(3 * d_model), torch.zeros(d_model), torch.zeros(2 * d_ff)
        blocks = cast(list[TransformerBlock], list(model.layers))
        self.values = torch.zeros(len(blocks), d_model)  # what is added to each layer's
        tables = [] if model.value_embeddings is None else list(model.value_embeddings.tables)
        self.tables = [cast(Embedding, table).weight.detach().numpy() for table in tables]
        self.embeddings = model.token_embeddings.weight.detach().numpy()
        rope = blocks[0].attn.rope
        ones = torch.ones(model.context_length, model.d_k // 2)
        cosines, sines = (ones, 0 * ones) if rope is None else (rope.cos, rope.sin)
        self.attention: Job = {
            kernels.KIND: kernels.ATTENTION,
            kernels.X: self.qkv,
            kernels.Y: self.heads,
            kernels.INPUTS: model.d_k,
            kernels.OUTPUTS: model.num_heads,
            kernels.CONTEXT: model.context_length,
            kernels.FACTOR: model.d_k**-0.5,
            kernels.COSINES: cosines.repeat_interleave(2, dim=1),
            kernels.SINES: torch.stack([-sines, sines], dim=-1).flatten(1).contiguous(),
        }
        layers = zip(blocks, keys[:, 0], values[:, 0], self.values, strict=True)
        jobs = list(chain.from_iterable(self.layer(*each) for each in layers))
        jobs.append(self.product(self.x, self.logits, model.ln_final))
        self.program = Program(jobs)
        self.positions = self.program.jobs[:, kernels.POSITION // 8]

    def layer(self, block: TransformerBlock, keys: Tensor, values: Tensor, added: Tensor) -> list[Job]:
        """Returns the jobs of a block. added: its value embedding, where the model has any."""
        from lm.generation import kernels

        attention: dict[int, int | float | Tensor] = {**self.attention, kernels.KEYS: keys, kernels.VALUES: values}
        if block.attn.q_norm is not None and block.attn.k_norm is not None:
            attention |= {kernels.Q_GAINS: block.attn.q_norm.weight, kernels.K_GAINS: block.attn.k_norm.weight}
            attention[kernels.EPS] = block.attn.q_norm.eps
        addition: Job = {kernels.KIND: kernels.ADDITION, kernels.INPUTS: len(self.x)}
        before: Job = {**addition, kernels.X: self.bigrams, kernels.Y: self.x}
        to_values: Job = {**addition, kernels.X: added, kernels.Y: self.qkv[-len(added) :]}
        return [
            *([] if self.model.bigrams is None else [before]),
            self.product(self.x, self.qkv, block.ln1),
            *([] if self.model.value_embeddings is None else [to_values]),
            attention,
            {**self.product(self.heads, self.x), kernels.ADDED: 1},
            self.product(self.x, self.hidden, block.ln2),
            {**self.product(self.hidden, self.x), kernels.ADDED: 1, kernels.BEFORE: kernels.GATE},
        ]

    def product(self, x: Tensor, y: Tensor, norm: RMSNorm | None = None) -> Job:
        """Returns the job that multiplies by the next matrix."""
        from lm.generation import kernels

        matrix = next(self.matrices)
        numbers = matrix.numbers if isinstance(matrix, Quantized) else matrix
        job: dict[int, int | float | Tensor] = {
            kernels.KIND: kernels.PRODUCT,
            kernels.X: x,
            kernels.Y: y,
            kernels.ROWS: 1,
            kernels.OUTPUTS: numbers.shape[0],
            kernels.INPUTS: numbers.shape[1],
            kernels.WEIGHTS: numbers,
            kernels.SIZE: numbers.element_size(),
        }
        if isinstance(matrix, Quantized):
            job[kernels.SCALES] = matrix.scales
        if norm is not None:
            job |= {kernels.BEFORE: kernels.NORM, kernels.GAINS: norm.weight, kernels.EPS: norm.eps}
        return job

    def step(self, token_id: int, before: int, position: int) -> Tensor:
        """Reads a token at a position; returns the logits of the next, (vocab_size,). before: the token before it."""
        model = self.model
        self.x.numpy()[:] = self.embeddings[token_id]
        if model.smear is not None and before != NONE:
            self.x.copy_(model.smear(self.x, torch.from_numpy(self.embeddings[before])))
        if model.bigrams is not None:
            self.bigrams.copy_(model.bigrams(torch.tensor(token_id), torch.tensor(before)))
        for added, table in zip(self.values.numpy(), self.tables, strict=False):
            added[:] = table[token_id]
        self.positions[:] = position
        self.program.run()
        return self.logits.clone()
