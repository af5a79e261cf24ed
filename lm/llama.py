"""Translates a Llama's config.json into a model's settings, and refuses by name what our Transformer cannot be.

    SIZES         keys that become settings
    CHOICES       keys for which our Transformer has one value, or few
    INDIFFERENT   keys that do not change what the model computes

A key in none of these tables might change it, and is refused as well. An absent key stands for transformers' default.
"""

import sys
from pathlib import Path
from typing import Any

from lm.checkpoint import MODEL_SETTINGS
from lm.foreign import shown
from lm.layers import RMSNorm
from lm.transformer import LARGEST, MOST_LAYERS
from tokenization import InputError

SIZES = {  # ours: transformers'
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
}
CHOICES: dict[str, tuple[tuple[Any, ...], str]] = {  # the values that are possible here, and why no others are
    "model_type": (("llama",), "our Transformer is a Llama"),
    "architectures": ((["LlamaForCausalLM"],), "our Transformer is a Llama"),
    "hidden_act": (("silu", "swish"), "the gate is SiLU here"),
    "attention_bias": ((False,), "no projection has a bias here"),
    "mlp_bias": ((False,), "no projection has a bias here"),
    "rms_norm_eps": ((RMSNorm(1).eps,), "the norms add this here"),
    "tie_word_embeddings": ((False, True), "there are one or two tables"),
    "is_encoder_decoder": ((False,), "our Transformer is a decoder"),
    "add_cross_attention": ((False,), "our Transformer is a decoder"),
    "pruned_heads": (({},), "every layer has all its heads here"),
    "sliding_window": ((), "attention reaches back over the whole context here"),
    "quantization_config": ((), "weights are floating-point numbers here; import the unquantized model"),
    "partial_rotary_factor": ((1,), "RoPE turns every feature here"),
}
ABSENT = {"rms_norm_eps": 1e-6, "model_type": "absent"}  # defaults that are not among the choices
ROPE_CHOICES = {
    "rope_type": (("default",), "wavelengths are not rescaled here"),
    "type": (("default",), "wavelengths are not rescaled here"),
    "partial_rotary_factor": CHOICES["partial_rotary_factor"],
}
# Provenance, training, what is returned, and how text is sampled.
INDIFFERENT = """
    _name_or_path name_or_path _commit_hash transformers_version dtype torch_dtype initializer_range attention_dropout
    use_cache pretraining_tp chunk_size_feed_forward attn_implementation _attn_implementation torchscript is_decoder
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class prefix
    return_dict output_hidden_states output_attentions output_scores return_dict_in_generate tie_last_hidden_states
    id2label label2id num_labels problem_type finetuning_task task_specific_params tie_encoder_decoder
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens
"""


def model_settings(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the arguments of a TransformerLM; raises InputError for whatever it cannot be."""
    config = {name: value for name, value in config.items() if value is not None}
    check_choices(config, CHOICES, str(path))
    sizes: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in SIZES.items()}
    for ours, size in sizes.items():
        most = MOST_LAYERS if ours == "num_layers" else LARGEST
        if type(size) is not int or not 1 <= size <= most:
            raise InputError(f"{path}: {SIZES[ours]} is {shown(size)}; it must be a whole number from 1 to {most:,}")
    derived = {
        "num_key_value_heads": ((sizes["num_heads"],), "every head has keys and values of its own here"),
        "head_dim": ((sizes["d_model"] // sizes["num_heads"],), "a head has d_model / num_heads features here"),
    }
    check_choices(config, derived, str(path))
    theta = rope_theta(config, path)
    known = {*SIZES.values(), *CHOICES, *derived, *INDIFFERENT.split(), "rope_theta", "rope_parameters", "rope_scaling"}
    if unknown := sorted(config.keys() - known):
        raise InputError(
            f"{path}: {shown(unknown[0])} ({shown(config[unknown[0]])}), one of {len(unknown)} unknown keys, may change"
            " what the model computes; delete those that do not from the file"
        )
    settings = sizes | {
        "rope_theta": theta,
        "norm_position": "pre",
        "position_encoding": "rope",
        "feed_forward": "swiglu",
        "vocab_multiple": 1,
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
        "qk_norm": False,
    }
    assert settings.keys() == set(MODEL_SETTINGS)
    return settings


def check_choices(config: dict[str, Any], choices: dict[str, tuple[tuple[Any, ...], str]], place: str) -> None:
    for name, (values, reason) in choices.items():
        value = config.get(name, ABSENT.get(name))
        if value is not None and value not in values:
            allowed = " or ".join(map(str, values)) or "absent"
            raise InputError(f"{place}: {name} is {shown(value)}, but can only be {allowed}: {reason}")


def rope_theta(config: dict[str, Any], path: Path) -> float:
    """Reads the base of RoPE's wavelengths from wherever versions of transformers put it; all places must agree."""
    thetas = [config["rope_theta"]] if "rope_theta" in config else []
    for name in ("rope_parameters", "rope_scaling"):
        table = config.get(name, {})
        if not isinstance(table, dict):
            raise InputError(f"{path}: {name} is {shown(table)}; it must be an object")
        check_choices(table, ROPE_CHOICES, f"{path}, {name}")
        thetas += [table["rope_theta"]] if "rope_theta" in table else []
        for key in sorted(table.keys() - ROPE_CHOICES.keys() - {"rope_theta"}):
            if table[key] is not None:
                raise InputError(f"{path}, {name}: {shown(key)} ({shown(table[key])}) is unknown; RoPE is plain here")
    for theta in thetas:
        if type(theta) not in (int, float) or not 0 < theta <= sys.float_info.max:
            raise InputError(f"{path}: rope_theta is {shown(theta)}; it must be a number above 0")
        if theta != thetas[0]:
            raise InputError(f"{path}: rope_theta is {shown(thetas[0])} in one place and {shown(theta)} in another")
    return float(thetas[0]) if thetas else 10000.0
