"""Starts a model small, once its weights have been drawn as in layers.py.

    zero outputs    output_proj = 0, w2 = 0        each block adds nothing at first: logits = lm_head(norm(embedding))
    small head      lm_head <- factor * lm_head    the first logits are near 0, the first loss near ln(vocab_size)

A block of random weights adds noise to the residual stream, which training must first undo. The output projections get
a gradient from the first step on, and the weights before them from the second (Zhang et al. 2019, "Fixup"). Nothing is
drawn here: all other weights stay as they are.
"""

import torch

from lm.model.transformer import TransformerLM

OUTPUTS = ("attn.output_proj.weight", "ffn.w2.weight")
# The settings of lm/training/module.py that only a first step sees, and what they were before there were any.
START_SETTINGS = {"zero_init": False, "head_init": 1.0, "bigram_init": False}


@torch.no_grad()
def start_small(model: TransformerLM, zero_outputs: bool, head_factor: float) -> None:
    """Sets the blocks' output projections to 0, if asked to, and multiplies lm_head by a factor, in place.

    Raises ValueError for a factor below 0, and for one of tied tables, whose embedding it would shrink as well.
    """
    if not 0 <= head_factor < torch.inf:
        raise ValueError(f"head_init is {head_factor}; it must be finite and not negative")
    if head_factor != 1 and model.settings["tie_embeddings"]:
        raise ValueError(f"head_init {head_factor} would shrink the embedding too, which tie_embeddings makes the head")
    for name, weight in model.named_parameters():
        if zero_outputs and name.endswith(OUTPUTS):
            weight.zero_()
    model.lm_head.weight.mul_(head_factor)
