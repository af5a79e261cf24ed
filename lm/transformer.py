"""The language model: token ids in, a score for every possible next token out.

    x = token_embeddings(token_ids)
    for each layer:  x = x + attention(norm(x));  x = x + feed_forward(norm(x))
    logits = lm_head(norm(x))

Pure torch: how it is trained is in module.py. The names of the attributes are the keys of the state dict, and so
the contract with every checkpoint.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lm.attention import CAUSAL_ATTENTIONS, MultiHeadSelfAttention, head_width
from lm.fast import SUPPORT, linear_cross_entropy, whole_cross_entropy
from lm.layers import Embedding, Linear, RMSNorm, RotaryPositionalEmbedding, SiLUFeedForward, SwiGLU
from lm.loss import cross_entropy

LARGEST, MOST_LAYERS = 1 << 28, 1 << 12  # of anybody's settings: no product overflows, and no list is endless
NORM_POSITIONS = ("pre", "post", "none")
POSITION_ENCODINGS = ("rope", "none")
FEED_FORWARDS: dict[str, type[SwiGLU] | type[SiLUFeedForward]] = {"swiglu": SwiGLU, "silu": SiLUFeedForward}


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward network, each added to the stream it reads: (..., seq, d_model) to the same.

    norm_position says where the RMSNorms sit: before each part ("pre", the default), after each addition ("post",
    as in the original Transformer), or nowhere ("none").
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        rope: RotaryPositionalEmbedding | None = None,
        norm_position: str = "pre",
        feed_forward: str = "swiglu",
        qk_norm: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.norm_position = norm_position
        self.attn = MultiHeadSelfAttention(d_model, num_heads, rope, qk_norm, device, dtype)
        self.ffn = FEED_FORWARDS[feed_forward](d_model, d_ff, device, dtype)
        if norm_position != "none":
            self.ln1 = RMSNorm(d_model, device=device, dtype=dtype)
            self.ln2 = RMSNorm(d_model, device=device, dtype=dtype)

    def forward(self, x: Tensor, token_positions: Tensor) -> Tensor:
        if self.norm_position == "pre":
            x = x + self.attn(self.ln1(x), token_positions)
            return x + self.ffn(self.ln2(x))
        if self.norm_position == "post":
            x = self.ln1(x + self.attn(x, token_positions))
            return self.ln2(x + self.ffn(x))
        x = x + self.attn(x, token_positions)
        return x + self.ffn(x)


class TransformerLM(nn.Module):
    """A decoder-only Transformer (handout, section 3).

    d_ff: width of the feed-forward networks; None is 8/3 d_model as a multiple of 64 for SwiGLU, 4 d_model for SiLU.
    norm_position, position_encoding, feed_forward: the handout's ablations; each default is the full model.
    vocab_multiple: the tables get rows up to a multiple of this, which some GPUs multiply faster (64); no token has
    the added ids, and no logits are given for them.
    tie_embeddings: one table reads tokens and scores them (Press and Wolf 2017), drawn as lm_head's would be.
    qk_norm: RMSNorm on each head's queries and keys.
    z_loss: added to the loss of the forward pass, times the mean of log(sum(exp(logits)))^2.
    """

    fast = keep_logits = False  # speed_up sets them
    recompute = False  # True trades time for memory: each block's activations are computed again on the way back

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        d_ff: int | None = None,
        rope_theta: float = 10000.0,
        norm_position: str = "pre",
        position_encoding: str = "rope",
        feed_forward: str = "swiglu",
        vocab_multiple: int = 1,
        tie_embeddings: bool = False,
        qk_norm: bool = False,
        z_loss: float = 0.0,
        device=None,
        dtype=None,
    ):
        arguments = locals()
        super().__init__()
        unsaid = ("self", "__class__", "device", "dtype")
        self.settings = {name: value for name, value in arguments.items() if name not in unsaid}
        check_choice("norm_position", norm_position, NORM_POSITIONS)
        check_choice("position_encoding", position_encoding, POSITION_ENCODINGS)
        check_choice("feed_forward", feed_forward, FEED_FORWARDS)
        d_ff = FEED_FORWARDS[feed_forward].default_d_ff(d_model) if d_ff is None else d_ff
        sizes = {"vocab_size": vocab_size, "context_length": context_length, "d_model": d_model}
        sizes |= {"num_layers": num_layers, "num_heads": num_heads, "d_ff": d_ff}
        sizes |= {"vocab_multiple": vocab_multiple}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
            if size > (most := MOST_LAYERS if name == "num_layers" else LARGEST):
                raise ValueError(f"{name} is {size}; it can be at most {most:,}")
        self.context_length, self.num_heads, self.d_k = context_length, num_heads, head_width(d_model, num_heads)
        self.vocab_size, self.z_loss = vocab_size, z_loss
        num_rows = math.ceil(vocab_size / vocab_multiple) * vocab_multiple
        self.token_embeddings = Embedding(num_rows, d_model, device, dtype)
        rope = None  # one table for every layer
        if position_encoding == "rope":
            rope = RotaryPositionalEmbedding(rope_theta, self.d_k, context_length, device)
        self.layers = nn.ModuleList(
            TransformerBlock(d_model, num_heads, d_ff, rope, norm_position, feed_forward, qk_norm, device, dtype)
            for _ in range(num_layers)
        )
        # Post-norm blocks end in a norm of their own.
        self.ln_final = RMSNorm(d_model, device=device, dtype=dtype) if norm_position == "pre" else None
        self.lm_head = Linear(d_model, num_rows, device, dtype)
        if tie_embeddings:
            self.token_embeddings.weight = self.lm_head.weight

    def forward(self, token_ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """token_ids: (..., seq), seq <= context_length -> logits (..., seq, vocab_size).

        targets: (..., seq), the next tokens; then only the mean cross-entropy is returned, a scalar.
        """
        seq = token_ids.shape[-1]
        if seq > self.context_length:
            raise ValueError(f"{seq} tokens do not fit a context_length of {self.context_length}")
        z_loss = self.z_loss if self.training else 0.0
        token_positions = torch.arange(seq, device=token_ids.device)
        x = self.token_embeddings(token_ids)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, token_positions, use_reentrant=False)
            else:
                x = layer(x, token_positions)
        if self.ln_final is not None:
            x = self.ln_final(x)
        in_chunks = self.fast and not (self.keep_logits and torch.is_grad_enabled())
        if targets is not None and in_chunks:
            return linear_cross_entropy(x, self.lm_head.weight, targets, self.vocab_size, z_loss)
        logits = self.lm_head(x)[..., : self.vocab_size]
        if targets is None:
            return logits
        return (whole_cross_entropy if self.fast else cross_entropy)(logits, targets, z_loss)

    def speed_up(self, attention: str, joint_products: bool = False, keep_logits: bool = False) -> None:
        """The same numbers by the ways of fast.py: attention by that name, and the loss without logits.

        keep_logits: for training, the loss from whole logits; worth it only where the model is compiled for a GPU.
        """
        check_choice("attention", attention, CAUSAL_ATTENTIONS)
        SUPPORT.check(self)
        self.fast, self.keep_logits = True, keep_logits
        for module in self.modules():
            if isinstance(module, MultiHeadSelfAttention):
                module.attention, module.joint = attention, joint_products
            elif isinstance(module, SwiGLU):
                module.joint = joint_products

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def check_choice(name: str, value: str, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it can be {', '.join(choices)}")
