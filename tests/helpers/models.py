"""Small models with random weights, as runs that `lm fit` might have left."""

import torch

from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import load_model, save_checkpoint
from lm.runs.folder import BEST, TOKENIZER
from tokenization import Tokenizer

SHAPE = {"vocab_size": 320, "context_length": 32, "d_model": 64, "num_layers": 2, "num_heads": 4, "rope_theta": 500.0}
LLAMA = {"d_ff": None, "norm_position": "pre", "position_encoding": "rope", "feed_forward": "swiglu"}
LLAMA |= {"vocab_multiple": 1, "tie_embeddings": False, "qk_norm": False}
VARIANTS = {"plain": {}, "tied": {"tie_embeddings": True}, "padded": {"vocab_multiple": 192}}


def save_run(folder, token_data, **settings) -> TransformerLM:
    """Saves a run's best checkpoint and its tokenizer, and returns the model; what nobody sets is a Llama's."""
    torch.manual_seed(0)
    settings = LLAMA | SHAPE | settings
    model = TransformerLM(**settings)
    for weight in model.parameters():
        if weight.ndim == 1:  # gains that are not all 1
            weight.data = 1 + 0.3 * torch.randn_like(weight)
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    Tokenizer.load(token_data / "tok").save(folder / TOKENIZER)
    save_checkpoint({"state_dict": weights, "hyper_parameters": settings, "global_step": 3}, folder / BEST)
    return load_model(folder / BEST)
