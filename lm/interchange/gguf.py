"""Writes a model and its tokenizer as one GGUF file, for llama.cpp and the programs built on it."""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from lm.interchange.llama import llama_settings, other_names
from lm.interchange.weights import refuse_overflow, weights_without_padding
from lm.model.transformer import TransformerLM
from tokenization import InputError, Tokenizer
from tokenization.formats.gpt2 import bytes_to_text, vocabulary_table
from tokenization.pretokenization import GPT2_PATTERN


def export_gguf(model: TransformerLM, tokenizer: Tokenizer, path: Path, dtype: str) -> None:
    """Writes a GGUF file. dtype: fp32, fp16 or q8_0, for the matrices; gains stay float32, as llama.cpp expects.

    Raises InputError for a model that is not a Llama, and for a weight that the dtype cannot hold.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("--format gguf needs the package gguf: pip install gguf") from None
    settings = llama_settings(model)
    kind = gguf.GGMLQuantizationType[{"fp32": "F32", "fp16": "F16", "q8_0": "Q8_0"}[dtype]]
    width = gguf.GGML_QUANT_SIZES[kind][0]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(os.fsencode(path.stem).decode(errors="replace"))
    writer.add_file_type(gguf.LlamaFileType[{"fp32": "ALL_F32", "fp16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}[dtype]])
    if kind == gguf.GGMLQuantizationType.Q8_0:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(settings["vocab_size"])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_rope_freq_base(settings["rope_theta"])
    writer.add_rope_dimension_count(settings["head_dim"])
    add_tokenizer(writer, tokenizer, settings["vocab_size"])
    ours = weights_without_padding(model)
    for key, name in other_names(model, 1).items():
        weight = ours[key].float().numpy()
        chosen = kind if weight.ndim == 2 and weight.shape[1] % width == 0 else gguf.GGMLQuantizationType.F32
        with np.errstate(all="ignore"):
            quantized = gguf.quants.quantize(weight, chosen)
            holds = np.isfinite(gguf.quants.dequantize(quantized, chosen)).all()
        refuse_overflow(key, ours[key], bool(holds), dtype)
        writer.add_tensor(name, quantized, raw_dtype=chosen)
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def add_tokenizer(writer: Any, tokenizer: Tokenizer, num_rows: int) -> None:
    """Adds the tokenizer, with a token for each of the num_rows ids: [PADn] where it has none."""
    from gguf import TokenType

    if tokenizer.pattern != GPT2_PATTERN:
        raise InputError("--format gguf: only GPT-2's split pattern can be exported, and this tokenizer's is different")
    texts = {token_id: text for text, token_id in vocabulary_table(tokenizer.vocab, tokenizer.special_tokens).items()}
    special = {tokenizer.encode(text)[0] for text in tokenizer.special_tokens}
    kinds = [
        TokenType.CONTROL if token_id in special else TokenType.NORMAL if token_id in texts else TokenType.UNUSED
        for token_id in range(num_rows)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(token_id, f"[PAD{token_id}]") for token_id in range(num_rows)])
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{bytes_to_text(left)} {bytes_to_text(right)}" for left, right in tokenizer.merges])
    end = tokenizer.end_of_text_id
    if end is None:  # llama.cpp would take token 11, in GPT-2's order the comma
        end = next((token_id for token_id in range(num_rows) if token_id not in texts), None)
    if end is None:
        raise InputError(
            "--format gguf: the tokenizer has no <|endoftext|>, and llama.cpp would end every text at token 11; take"
            " --format hf"
        )
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
