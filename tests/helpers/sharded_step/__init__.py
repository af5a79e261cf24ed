"""A training step of a small model, by one process, or by two that hold half of the weights each (__main__.py)."""

import torch

from lm.model.fast import speed_up
from lm.model.transformer import TransformerLM

SHAPE = {"vocab_size": 64, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2}
TOKENS = torch.arange(16).reshape(2, 8)


def gradients(model: TransformerLM, precision: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one step, and its gradients."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = model(TOKENS, targets=TOKENS.roll(-1, 1))
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def make_model(kernels: bool) -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(**SHAPE)
    speed_up(model, "blocks", kernels=kernels)
    return model
