"""Exports a trained model for other programs: the same weights under other names.

    hf           model.safetensors, config.json, tokenizer.json: transformers' LlamaForCausalLM and AutoTokenizer
    gguf         one file for llama.cpp and what is built on it
    safetensors  the weights under our own names

Our model is a Llama. One thing differs: RoPE turns neighbouring features (0, 1), (2, 3) here and in llama.cpp, and i
with i + d_k / 2 in transformers, so that the rows of q_proj and k_proj change places for it. Without that everything
loads, runs, and is wrong. What no Llama has is refused.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lm.checkpoint import find_checkpoint, load_model, load_tokenizer
from lm.run_folder import refuse_names_of_runs
from lm.strict_json import to_json
from lm.support import Support
from lm.transformer import TransformerBlock, TransformerLM
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.commands import ArgumentParser, output_path
from tokenization.files import making
from tokenization.formats import bytes_to_text, vocabulary_table
from tokenization.interchange import export_huggingface
from tokenization.outputs import check_new
from tokenization.pretokenization import GPT2_PATTERN

LAYER_NAMES = {  # ours: transformers', llama.cpp's
    "ln1": ("input_layernorm", "attn_norm"),
    "attn.q_proj": ("self_attn.q_proj", "attn_q"),
    "attn.k_proj": ("self_attn.k_proj", "attn_k"),
    "attn.v_proj": ("self_attn.v_proj", "attn_v"),
    "attn.output_proj": ("self_attn.o_proj", "attn_output"),
    "ln2": ("post_attention_layernorm", "ffn_norm"),
    "ffn.w1": ("mlp.gate_proj", "ffn_gate"),
    "ffn.w3": ("mlp.up_proj", "ffn_up"),
    "ffn.w2": ("mlp.down_proj", "ffn_down"),
}
OTHER_NAMES = {
    "token_embeddings": ("model.embed_tokens", "token_embd"),
    "ln_final": ("model.norm", "output_norm"),
    "lm_head": ("lm_head", "output"),
}
SUPPORT = Support(
    part="export as a Llama",
    remedy="`--format safetensors` takes any model",
    options={
        "norm_position": ("pre",),
        "position_encoding": ("rope",),
        "feed_forward": ("swiglu",),
        "tie_embeddings": (False, True),
        "qk_norm": (False,),
    },
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def llama_settings(model: TransformerLM) -> dict[str, Any]:
    """Returns transformers' config.json; raises InputError where the model is not a Llama."""
    SUPPORT.check(model)
    block = cast(TransformerBlock, model.layers[0])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.token_embeddings.weight.shape[1],
        "intermediate_size": block.ffn.w1.weight.shape[0],
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_heads,
        "head_dim": model.d_k,
        "hidden_act": "silu",
        "rms_norm_eps": block.ln1.eps,
        "rope_theta": model.settings["rope_theta"],
        "max_position_embeddings": model.context_length,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied(model),
    }


def tied(model: TransformerLM) -> bool:
    return model.token_embeddings.weight is model.lm_head.weight


def other_names(model: TransformerLM, which: int) -> dict[str, str]:
    """Maps our state dict's keys to transformers' (0) or llama.cpp's (1), leaving out a head that is tied."""
    names = {}
    for key in model.state_dict():
        part = key.removesuffix(".weight")
        if part.startswith("layers."):
            _, number, name = part.split(".", 2)
            prefix = f"model.layers.{number}." if which == 0 else f"blk.{number}."
            names[key] = f"{prefix}{LAYER_NAMES[name][which]}.weight"
        elif not (part == "lm_head" and tied(model)):
            names[key] = f"{OTHER_NAMES[part][which]}.weight"
    return names


def half_split(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of q_proj or k_proj so that each head's features 0, 2, 4, ... come before 1, 3, 5, ..."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def weights_without_padding(model: TransformerLM) -> dict[str, Tensor]:
    """Returns the weights by our names, without the rows that vocab_multiple added: others would score them."""
    tables = ("token_embeddings.weight", "lm_head.weight")
    return {
        key: weight.detach()[: model.vocab_size] if key in tables else weight.detach()
        for key, weight in model.state_dict().items()
    }


def converted(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Converts the weights; raises InputError for one that the dtype cannot hold."""
    result = {}
    for name, weight in weights.items():
        result[name] = weight.detach().to(DTYPES[dtype], memory_format=torch.contiguous_format, copy=True)
        refuse_overflow(name, weight, bool(result[name].isfinite().all()), dtype)
    return result


def refuse_overflow(name: str, weight: Tensor, holds: bool, dtype: str) -> None:
    if not holds:
        largest = weight.detach().abs().max().item()
        raise InputError(f"--dtype {dtype}: cannot hold {name}, whose numbers reach {largest:.4g}; fp32 can")


def huggingface_weights(model: TransformerLM) -> dict[str, Tensor]:
    weights, ours = {}, weights_without_padding(model)
    for key, name in other_names(model, 0).items():
        weight = ours[key]
        turned = key.endswith(("q_proj.weight", "k_proj.weight"))
        weights[name] = half_split(weight, model.num_heads) if turned else weight
    return weights


def export_huggingface_folder(model: TransformerLM, tokenizer: Tokenizer, folder: Path, dtype: str) -> None:
    end = tokenizer.end_of_text_id
    config = llama_settings(model) | {"bos_token_id": end, "eos_token_id": end, "dtype": str(DTYPES[dtype])[6:]}
    special = {} if end is None else dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.context_length,
            **special,
        },
    }
    folder.mkdir(parents=True)
    save_file(converted(huggingface_weights(model), dtype), folder / "model.safetensors", metadata={"format": "pt"})
    export_huggingface(tokenizer, folder / "tokenizer.json")
    for name, content in files.items():
        (folder / name).write_text(to_json(content, indent=1) + "\n", encoding="utf-8")


def export_safetensors(model: TransformerLM, tokenizer: Tokenizer, path: Path, dtype: str) -> None:
    save_file(converted(model.state_dict(), dtype), path)


def export_gguf(model: TransformerLM, tokenizer: Tokenizer, path: Path, dtype: str) -> None:
    """Writes one file for llama.cpp. dtype: of the matrices; gains stay float32, as llama.cpp wants them."""
    try:
        import gguf
    except ImportError:
        raise InputError("--format gguf needs the package gguf: pip install gguf") from None
    settings = llama_settings(model)
    kind = gguf.GGMLQuantizationType[{"fp32": "F32", "fp16": "F16", "q8_0": "Q8_0"}[dtype]]
    width = gguf.GGML_QUANT_SIZES[kind][0]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType[{"fp32": "ALL_F32", "fp16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}[dtype]])
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
    describe_tokenizer(writer, tokenizer, settings["vocab_size"])
    ours = weights_without_padding(model)
    for key, name in other_names(model, 1).items():
        weight = ours[key].float().numpy()
        chosen = kind if weight.ndim == 2 and weight.shape[1] % width == 0 else gguf.GGMLQuantizationType.F32
        with np.errstate(all="ignore"):
            quantized = gguf.quants.quantize(weight, chosen)
            holds = np.isfinite(gguf.quants.dequantize(quantized, chosen)).all()
        refuse_overflow(key, ours[key], bool(holds), dtype)
        writer.add_tensor(name, quantized, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe_tokenizer(writer: Any, tokenizer: Tokenizer, num_rows: int) -> None:
    """Adds the tokenizer, with a token for every row of the tables: [PADn] where it has none."""
    from gguf import TokenType

    if tokenizer.pattern != GPT2_PATTERN:
        raise InputError("--format gguf: only GPT-2's split pattern can be exported, and this tokenizer has another")
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
    if tokenizer.end_of_text_id is not None:
        writer.add_bos_token_id(tokenizer.end_of_text_id)
        writer.add_eos_token_id(tokenizer.end_of_text_id)
    writer.add_add_bos_token(False)


# --- the command -----------------------------------------------------------------------------------------------------

HELP = """Write a trained model for other programs.

  lm export checkpoints/demo --format hf --output exported/demo             a folder for transformers
  lm export checkpoints/demo --format gguf --output demo.gguf               a file for llama.cpp
  lm export checkpoints/demo --format gguf --dtype q8_0 --output demo.gguf  the same with 8-bit weights
  lm export checkpoints/demo --format safetensors --output demo.safetensors the weights under our own names
"""
FORMATS: dict[str, tuple[Callable[[TransformerLM, Tokenizer, Path, str], None], tuple[str, ...]]] = {
    "hf": (export_huggingface_folder, ("fp32", "bf16", "fp16")),
    "gguf": (export_gguf, ("fp32", "fp16", "q8_0")),
    "safetensors": (export_safetensors, ("fp32", "bf16", "fp16")),
}


def run_export(argv: list[str]) -> None:
    parser = ArgumentParser(prog="lm export", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder, for its best.ckpt, or a checkpoint")
    parser.add_argument("--format", choices=list(FORMATS), default="hf", help="(default: hf)")
    parser.add_argument("--output", required=True, type=output_path, help="a new folder for hf, else a new file")
    parser.add_argument(
        "--dtype", default="fp32", help="fp32, bf16 or fp16; for gguf fp32, fp16 or q8_0 (default: fp32)"
    )
    args = parser.parse_args(argv)
    write, dtypes = FORMATS[args.format]
    if args.dtype not in dtypes:
        raise InputError(f"--dtype {args.dtype}: --format {args.format} can be {', '.join(dtypes)}")
    check_new(args.output)
    checkpoint = find_checkpoint(args.run)
    refuse_names_of_runs([args.output], [checkpoint.parent])
    model = load_model(checkpoint)
    tokenizer = load_tokenizer(checkpoint, model.vocab_size)
    try:
        with making(args.output) as path:
            write(model, tokenizer, path, args.dtype)
    except SafetensorError as error:  # what safetensors makes of a write that failed
        raise InputError(f"{args.output}: cannot be written ({error}); make room or choose another place") from None
    print(f"{checkpoint} -> {args.output}: {model.num_parameters():,} parameters, {args.dtype}")
