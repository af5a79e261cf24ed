"""Reads what `lm export` writes, by each format's own library: functions from token ids to scores.

A format has one such function or more; each gets what was exported and the model that it must be. It computes in
float32, whatever the dtype of the file. What a dtype does to a matrix is computed here by itself.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from lm.interchange.huggingface import read_llama
from lm.interchange.llama import other_names
from lm.model.transformer import TransformerLM

Scores = Callable[[Tensor], Tensor]


def read_hf(folder: Path, model: TransformerLM) -> Iterator[Scores]:
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    yield lambda ids: theirs(ids).logits
    settings, _, weights = read_llama(folder)
    yield loaded(settings, weights)


def read_gguf(path: Path, model: TransformerLM) -> Iterator[Scores]:
    """llama.cpp's names and keys, whose rows are ours."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    settings = {
        "vocab_size": fields["llama.vocab_size"],
        "context_length": fields["llama.context_length"],
        "d_model": fields["llama.embedding_length"],
        "num_layers": fields["llama.block_count"],
        "num_heads": fields["llama.attention.head_count"],
        "d_ff": fields["llama.feed_forward_length"],
        "rope_theta": fields["llama.rope.freq_base"],
    }
    assert fields["llama.attention.head_count_kv"] == settings["num_heads"]
    stored = {
        tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors
    }
    weights = {ours: stored.pop(theirs) for ours, theirs in other_names(model, 1).items()}
    assert not stored
    weights.setdefault("lm_head.weight", weights["token_embeddings.weight"])
    yield loaded(settings, weights)


def read_safetensors(path: Path, model: TransformerLM) -> Iterator[Scores]:
    yield loaded(model.settings, load_file(path))


def loaded(settings: dict, weights: dict[str, Tensor]) -> Scores:
    model = TransformerLM(**settings).eval()
    model.load_state_dict(weights)
    return model


READERS: dict[str, Callable[[Path, TransformerLM], Iterator[Scores]]] = {
    "hf": read_hf,
    "gguf": read_gguf,
    "safetensors": read_safetensors,
}


def eight_bits(weight: Tensor) -> Tensor:
    """Rounds as llama.cpp's q8_0: each 32 numbers to multiples of a 127th of the largest, which is kept in float16."""
    blocks = weight.unflatten(-1, (-1, 32))
    steps = blocks.abs().amax(dim=-1, keepdim=True) / 127
    return ((blocks / steps).round() * steps.half().float()).flatten(-2)


ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": lambda weight: weight,
    "bf16": lambda weight: weight.bfloat16().float(),
    "fp16": lambda weight: weight.half().float(),
    "q8_0": eight_bits,
}
LARGEST = {"bf16": 3.38e38, "fp16": 65504, "q8_0": 127 * 65504}
