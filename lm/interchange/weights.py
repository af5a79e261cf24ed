"""Prepares weights for export: leaves padding out, converts their dtype, and refuses what it cannot hold.

`export_safetensors` writes the weights of any model, under our own names and with nothing else.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lm.model.transformer import TransformerLM
from tokenization import InputError, Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_safetensors(model: TransformerLM, tokenizer: Tokenizer, path: Path, dtype: str) -> None:
    """Writes the weights alone, with vocab_multiple's padding.

    dtype: one of DTYPES. Raises InputError for a weight that the dtype cannot hold.
    """
    save_file(converted(model.state_dict(), dtype), path)


def weights_without_padding(model: TransformerLM) -> dict[str, Tensor]:
    """Returns the weights by our names, without vocab_multiple's padding, which others would take for tokens."""
    tables = ("token_embeddings.weight", "lm_head.weight")
    return {
        key: weight.detach()[: model.vocab_size] if key in tables else weight.detach()
        for key, weight in model.state_dict().items()
    }


def num_exported(model: TransformerLM) -> int:
    """Counts the numbers of `weights_without_padding`; shared ones count once."""
    return sum({weight.data_ptr(): weight.numel() for weight in weights_without_padding(model).values()}.values())


def converted(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Converts weights to a dtype of DTYPES; InputError for one that it cannot hold."""
    result = {}
    for name, weight in weights.items():
        result[name] = weight.detach().to(DTYPES[dtype], memory_format=torch.contiguous_format, copy=True)
        refuse_overflow(name, weight, bool(result[name].isfinite().all()), dtype)
    return result


def refuse_overflow(name: str, weight: Tensor, holds: bool, dtype: str) -> None:
    """Raises InputError unless the dtype holds the weight."""
    if not holds:
        largest = weight.detach().abs().max().item()
        raise InputError(f"--dtype {dtype}: cannot hold {name}, whose values reach {largest:.4g}; fp32 can")
