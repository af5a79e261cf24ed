"""What a model costs, before it runs. A product of (m, n) and (n, p) is 2 m n p FLOPs (handout, section 3)."""

from lm.attention import MultiHeadSelfAttention
from lm.layers import SiLUFeedForward, SwiGLU
from lm.transformer import TransformerLM


def forward_flops_per_token(model: TransformerLM, context_length: int | None = None) -> int:
    """FLOPs of the matrix products for one token of a text of context_length tokens (default: the model's).

    As the handout counts: every query with every key, though the causal half would do, and the table's rows that
    stand for tokens.
    """
    context_length = context_length or model.context_length
    d_model = model.lm_head.weight.shape[1]
    total = 2 * model.vocab_size * d_model
    for module in model.modules():
        if isinstance(module, MultiHeadSelfAttention):
            total += 8 * d_model**2 + 4 * context_length * d_model
        elif isinstance(module, SwiGLU | SiLUFeedForward):
            total += 2 * sum(weight.numel() for weight in module.parameters())
    return total


def training_flops_per_token(model: TransformerLM) -> int:
    """The backward pass is two products for each one of the forward pass."""
    return 3 * forward_flops_per_token(model)
