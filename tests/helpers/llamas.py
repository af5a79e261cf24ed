"""Small Llamas with random weights, as transformers itself makes and saves them."""

import torch
import transformers

from tokenization import Tokenizer
from tokenization.interchange import export_huggingface

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


def save_llama(folder, token_data, shards="5GB", **settings) -> "transformers.LlamaForCausalLM":
    """Saves a Llama and its tokenizer to a folder, and returns the model."""
    torch.manual_seed(1)
    rope = {"rope_type": "default", "rope_theta": 777.0}
    config = transformers.LlamaConfig(**{**SIZES, "rms_norm_eps": 1e-5, "rope_parameters": rope} | settings)
    model = transformers.LlamaForCausalLM(config)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.2 + (weight.ndim == 1)
    model.save_pretrained(folder, max_shard_size=shards)
    export_huggingface(Tokenizer.load(token_data / "tok"), folder / "tokenizer.json")
    return model
