"""The language model: from token ids to the logits of every possible next token.

    x = token_embeddings(token_ids)
    for each layer:  x = x + attention(norm(x));  x = x + feed_forward(norm(x))
    logits = lm_head(norm(x))

This is pure torch; how the model is trained is in lm/training. The signature of TransformerLM is the only declaration
of the model's settings, and its docstring their help: the command line, the checkpoints, import and export read both.
The names of the attributes are the keys of the state dict, and so a contract with every checkpoint.
"""

import inspect
import math
from collections.abc import Callable, Collection
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lm.model.attention import MultiHeadSelfAttention, head_width
from lm.model.bigram_table import BigramTable, tokens_before
from lm.model.embedding_skips import EmbeddingSkips
from lm.model.layers import (
    Device,
    Dtype,
    Embedding,
    Linear,
    ReLU2FeedForward,
    RMSNorm,
    SiLUFeedForward,
    SwiGLU,
    UngatedFeedForward,
)
from lm.model.loss import cross_entropy
from lm.model.positions import RotaryPositionalEmbedding
from lm.model.smear import Smear, vectors_before
from lm.model.value_embeddings import ValueEmbeddings

LARGEST, MOST_LAYERS = 1 << 28, 1 << 12  # so that no product of sizes overflows, and the layers can be listed


def pre_norm(block: Any, x: Tensor, positions: Any, values: Tensor | None) -> Tensor:
    """Normalizes the input of attention and of the feed-forward network; each adds its output to the residual stream x.

    block has the sublayers attn(x, positions, values) and ffn(x), and their norms ln1 and ln2.
    """
    x = x + block.attn(block.ln1(x), positions, values)
    y: Tensor = x + block.ffn(block.ln2(x))
    return y


def post_norm(block: Any, x: Tensor, positions: Any, values: Tensor | None) -> Tensor:
    """Normalizes the residual stream after each addition, as in the original Transformer (Vaswani et al. 2017)."""
    x = block.ln1(x + block.attn(x, positions, values))
    y: Tensor = block.ln2(x + block.ffn(x))
    return y


def no_norm(block: Any, x: Tensor, positions: Any, values: Tensor | None) -> Tensor:
    """Normalizes nothing, an ablation (handout, section 7)."""
    x = x + block.attn(x, positions, values)
    y: Tensor = x + block.ffn(x)
    return y


NormPosition = Literal["pre", "post", "none"]
PositionEncoding = Literal["rope", "none"]
FeedForward = Literal["swiglu", "silu", "relu2"]
NORM_POSITIONS: dict[NormPosition, Callable[[Any, Tensor, Any, Tensor | None], Tensor]]
NORM_POSITIONS = {"pre": pre_norm, "post": post_norm, "none": no_norm}
POSITION_ENCODINGS: tuple[PositionEncoding, ...] = get_args(PositionEncoding)
FEED_FORWARDS: dict[FeedForward, type[SwiGLU] | type[UngatedFeedForward]]
FEED_FORWARDS = {"swiglu": SwiGLU, "silu": SiLUFeedForward, "relu2": ReLU2FeedForward}


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward network, each added to its own input: (..., seq, d_model) -> the same shape.

    norm_position, one of NORM_POSITIONS, says where the RMSNorms are.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        rope: RotaryPositionalEmbedding | None = None,
        norm_position: NormPosition = "pre",
        feed_forward: FeedForward = "swiglu",
        qk_norm: bool = False,
        device: Device = None,
        dtype: Dtype = None,
    ):
        super().__init__()
        self.norm_position = norm_position
        self.attn = MultiHeadSelfAttention(d_model, num_heads, rope, qk_norm, device, dtype)
        self.ffn = FEED_FORWARDS[feed_forward](d_model, d_ff, device, dtype)
        normed = norm_position != "none"
        self.ln1 = RMSNorm(d_model, device=device, dtype=dtype) if normed else None
        self.ln2 = RMSNorm(d_model, device=device, dtype=dtype) if normed else None

    def forward(self, x: Tensor, token_positions: Tensor, values: Tensor | None = None) -> Tensor:
        return NORM_POSITIONS[self.norm_position](self, x, token_positions, values)

    def extra_repr(self) -> str:
        return f"norm_position={self.norm_position!r}"


class TransformerLM(nn.Module):
    """A decoder-only Transformer (handout, section 3). The defaults are the full model, the alternatives ablations.

    Args:
        vocab_size: number of tokens in the model's vocabulary; at least the tokenizer's.
        context_length: the most tokens that the model sees at once.
        d_model: width of the residual stream.
        num_layers: number of Transformer blocks.
        num_heads: attention heads in each block; must divide d_model.
        d_ff: width of the feed-forward networks; null is 8/3 d_model rounded to a multiple of 64, or 4 d_model
            without a gate.
        rope_theta: base of the rotary embedding's wavelengths.
        norm_position: RMSNorm before each sublayer, after each addition, or nowhere.
        position_encoding: rotary embeddings, or none at all.
        feed_forward: with a gate (swiglu), or without one, with a SiLU (silu) or a squared ReLU (relu2).
        vocab_multiple: embedding and head are padded to a multiple of this many rows, 64 for a GPU.
        tie_embeddings: embedding and head share one weight.
        qk_norm: RMSNorm on each head's queries and keys.
        bigram_rows: rows of a table of hashed bigrams, whose vectors each block adds to its input; null is no table.
            No Llama has one, so such a model can be exported as safetensors alone.
        embedding_skips: add the embedding to each block's input again, scaled by a learned number that starts at 0; no
            Llama does this.
        value_embeddings: add to attention's values, in each layer, a vector that a second table has for the token; no
            Llama does this.
        smear: add to each embedding a share of the one before it, as large as a learned gate makes it; no Llama does
            this.
        device: where the weights are created.
        dtype: of the weights.

    The attribute settings holds all of these but device and dtype, with d_ff as a number.
    """

    z_loss = 0.0  # weight of mean(log(sum(exp(logits)))^2) in the training loss
    recompute = False  # True saves memory for time: the backward pass computes each block's activations again

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        d_model: int,
        num_layers: int,
        *,
        num_heads: int,
        d_ff: int | None = None,
        rope_theta: float = 10000.0,
        norm_position: NormPosition = "pre",
        position_encoding: PositionEncoding = "rope",
        feed_forward: FeedForward = "swiglu",
        vocab_multiple: int = 1,
        tie_embeddings: bool = False,
        qk_norm: bool = False,
        bigram_rows: int | None = None,
        embedding_skips: bool = False,
        value_embeddings: bool = False,
        smear: bool = False,
        device: Device = None,
        dtype: Dtype = None,
    ):
        given = locals()
        super().__init__()
        check_choice("norm_position", norm_position, NORM_POSITIONS)
        check_choice("position_encoding", position_encoding, POSITION_ENCODINGS)
        check_choice("feed_forward", feed_forward, FEED_FORWARDS)
        d_ff = FEED_FORWARDS[feed_forward].default_d_ff(d_model) if d_ff is None else d_ff
        self.settings = {name: given[name] for name in MODEL_SETTINGS} | {"d_ff": d_ff}
        for name in SIZES:
            if self.settings[name] is not None:
                check_size(name, self.settings[name])
        self.vocab_size, self.context_length = vocab_size, context_length
        self.num_heads, self.d_k = num_heads, head_width(d_model, num_heads)
        num_rows = math.ceil(vocab_size / vocab_multiple) * vocab_multiple
        self.token_embeddings = Embedding(num_rows, d_model, device, dtype)
        rope = None  # shared by all layers
        if position_encoding == "rope":
            rope = RotaryPositionalEmbedding(rope_theta, self.d_k, context_length, device)
        self.layers = nn.ModuleList(
            TransformerBlock(d_model, num_heads, d_ff, rope, norm_position, feed_forward, qk_norm, device, dtype)
            for _ in range(num_layers)
        )
        # A post-norm block ends in a norm of its own.
        self.ln_final = RMSNorm(d_model, device=device, dtype=dtype) if norm_position == "pre" else None
        self.lm_head = Linear(d_model, num_rows, device, dtype)
        if tie_embeddings:  # Press and Wolf 2017; initialized as lm_head is
            self.token_embeddings.weight = self.lm_head.weight
        # Last, so that the other weights are drawn as without it.
        self.bigrams = None if bigram_rows is None else BigramTable(bigram_rows, d_model, device, dtype)
        self.skips = EmbeddingSkips(num_layers, device, dtype) if embedding_skips else None
        self.value_embeddings = None
        if value_embeddings:
            self.value_embeddings = ValueEmbeddings(num_rows, d_model, num_layers, device, dtype)
        self.smear = Smear(d_model, device, dtype) if smear else None

    def forward(self, token_ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Returns the logits of the token after each one: (..., seq) -> (..., seq, vocab_size); seq <= context_length.

        With targets, (..., seq), the next tokens, it returns their mean cross-entropy instead, a scalar.
        """
        x = self.hidden_states(token_ids)
        return self.logits(x) if targets is None else self.loss(x, targets, self.z_loss if self.training else 0.0)

    def hidden_states(self, token_ids: Tensor) -> Tensor:
        """Returns the input of lm_head: (..., seq) -> (..., seq, d_model); ValueError beyond the context_length."""
        seq = token_ids.shape[-1]
        if seq > self.context_length:
            raise ValueError(f"{seq} tokens do not fit a context_length of {self.context_length}")
        token_positions = torch.arange(seq, device=token_ids.device)
        x = self.embed(token_ids)
        bigrams = None if self.bigrams is None else self.bigrams(token_ids, tokens_before(token_ids))
        embedding = x
        for number in range(len(self.layers)):
            if bigrams is not None:
                x = x + bigrams
            if self.skips is not None:
                x = self.skips(x, embedding, number)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(self.block, number, x, token_ids, token_positions, use_reentrant=False)
            else:
                x = self.block(number, x, token_ids, token_positions)
        if self.ln_final is not None:
            x = self.ln_final(x)
        return x

    def block(self, number: int, x: Tensor, token_ids: Tensor, token_positions: Tensor) -> Tensor:
        """Computes a block, its value embeddings included, so that recomputing keeps none; x: (..., seq, d_model)."""
        values = None if self.value_embeddings is None else self.value_embeddings(token_ids, number)
        y: Tensor = self.layers[number](x, token_positions, values)
        return y

    def embed(self, token_ids: Tensor) -> Tensor:
        """Returns the tokens' embeddings, the input of the first block: (..., seq) -> (..., seq, d_model)."""
        x: Tensor = self.token_embeddings(token_ids)
        return x if self.smear is None else self.smear(x, vectors_before(x))

    def logits(self, x: Tensor) -> Tensor:
        """Turns hidden states (..., seq, d_model) into logits (..., seq, vocab_size), without the padding."""
        logits: Tensor = self.lm_head(x)[..., : self.vocab_size]
        return logits

    def loss(self, x: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        """Returns the mean cross-entropy of hidden states (..., seq, d_model) and targets (..., seq), a scalar."""
        return cross_entropy(self.logits(x), targets, z_loss)

    def num_parameters(self) -> int:
        """Counts the weights' numbers; shared ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


_parameters = inspect.signature(TransformerLM).parameters
_settings = [_parameters[name] for name in _parameters if name not in ("device", "dtype")]
MODEL_SETTINGS = tuple(setting.name for setting in _settings)
DEFAULTS = {setting.name: setting.default for setting in _settings if setting.default is not setting.empty}
SIZES = tuple(setting.name for setting in _settings if setting.annotation in (int, int | None))


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises ValueError for a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it can be {', '.join(choices)}")


def check_size(name: str, size: int) -> None:
    """Raises ValueError for a size below 1 or beyond what can be built."""
    most = MOST_LAYERS if name == "num_layers" else LARGEST
    if size < 1:
        raise ValueError(f"{name} is {size}; it must be at least 1")
    if size > most:
        raise ValueError(f"{name} is {size}; it can be at most {most:,}")
