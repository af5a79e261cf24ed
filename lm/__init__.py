"""A Transformer language model, written by hand: its public names; `python -m lm --help` lists its commands.

    lm.load("checkpoints/demo").generate("Once upon a time")    a trained model continues a text
    lm.LanguageModel, lm.TokenDataModule                        to train one with Lightning's Trainer
    lm.TransformerLM, lm.RMSNorm, lm.AdamW, lm.cross_entropy    the parts, in pure torch

Names are imported when they are first used, so that `import lm` alone costs nothing. Nothing inside the package
imports them from here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.data.datamodule import TokenDataModule
    from lm.generation.sampling import Sampling
    from lm.generation.writer import generate
    from lm.loading import TrainedModel, load
    from lm.model.attention import MultiHeadSelfAttention, scaled_dot_product_attention, softmax
    from lm.model.layers import Embedding, Linear, RMSNorm, SwiGLU
    from lm.model.loss import cross_entropy
    from lm.model.positions import RotaryPositionalEmbedding
    from lm.model.transformer import TransformerBlock, TransformerLM
    from lm.optim.adamw import AdamW
    from lm.optim.clipping import clip_gradients
    from lm.optim.muon import Muon
    from lm.optim.schedule import cosine_warmup
    from lm.training.module import LanguageModel

__all__ = [
    "AdamW",
    "Embedding",
    "LanguageModel",
    "Linear",
    "MultiHeadSelfAttention",
    "Muon",
    "RMSNorm",
    "RotaryPositionalEmbedding",
    "Sampling",
    "SwiGLU",
    "TokenDataModule",
    "TrainedModel",
    "TransformerBlock",
    "TransformerLM",
    "clip_gradients",
    "cosine_warmup",
    "cross_entropy",
    "generate",
    "load",
    "scaled_dot_product_attention",
    "softmax",
]

_MODULES = {
    "data.datamodule": ("TokenDataModule",),
    "generation.sampling": ("Sampling",),
    "generation.writer": ("generate",),
    "loading": ("TrainedModel", "load"),
    "model.attention": ("MultiHeadSelfAttention", "scaled_dot_product_attention", "softmax"),
    "model.layers": ("Embedding", "Linear", "RMSNorm", "SwiGLU"),
    "model.loss": ("cross_entropy",),
    "model.positions": ("RotaryPositionalEmbedding",),
    "model.transformer": ("TransformerBlock", "TransformerLM"),
    "optim.adamw": ("AdamW",),
    "optim.clipping": ("clip_gradients",),
    "optim.muon": ("Muon",),
    "optim.schedule": ("cosine_warmup",),
    "training.module": ("LanguageModel",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
