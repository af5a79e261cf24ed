"""Translates between our Transformer and a Llama: settings, names of weights, and order of features.

    SIZES         keys of a Llama's config.json that become settings
    CHOICES       keys of which our Transformer supports one value, or a few
    INDIFFERENT   keys that do not change what the model computes

A key in none of these tables might change it, and is refused. So is an absent size; any other absent key has
transformers' default. Settings of our Transformer that no Llama has are refused on export.

The weights differ in one thing: RoPE pairs adjacent features, (0, 1), (2, 3), here and in llama.cpp, but i and
i + d_k / 2 in transformers. So the rows of q_proj and k_proj are reordered for transformers; if they were not, the
model would load and run, and be wrong.
"""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from lm.interchange.foreign import shown
from lm.model.layers import RMSNorm
from lm.model.support import Support
from lm.model.transformer import LARGEST, MOST_LAYERS, TransformerLM
from tokenization import InputError

SIZES = {  # ours: transformers'
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
}
CHOSEN: dict[str, Any] = {  # the settings with which our model is a Llama
    "norm_position": "pre",
    "position_encoding": "rope",
    "feed_forward": "swiglu",
    "qk_norm": False,
    "bigram_rows": None,
    "embedding_skips": False,
    "value_embeddings": False,
    "smear": False,
}
SUPPORT = Support(
    part="export as a Llama",
    remedy="`--format safetensors` exports any model",
    options={name: (value,) for name, value in CHOSEN.items()} | {"tie_embeddings": (False, True)},
)
CHOICES: dict[str, tuple[tuple[Any, ...], str]] = {  # the values supported here, and why no others are
    "model_type": (("llama",), "our Transformer is a Llama"),
    "architectures": ((["LlamaForCausalLM"],), "our Transformer is a Llama"),
    "hidden_act": (("silu", "swish"), "the gate is SiLU here"),
    "attention_bias": ((False,), "no projection has a bias here"),
    "mlp_bias": ((False,), "no projection has a bias here"),
    "rms_norm_eps": ((RMSNorm(1).eps,), "every norm has this eps here"),
    "tie_word_embeddings": ((False, True), "embedding and head share a weight or do not"),
    "is_encoder_decoder": ((False,), "our Transformer is a decoder"),
    "add_cross_attention": ((False,), "our Transformer is a decoder"),
    "pruned_heads": (({},), "every layer has all its heads here"),
    "sliding_window": ((), "attention covers the whole context here"),
    "quantization_config": ((), "weights are floating-point numbers here; import the unquantized model"),
    "partial_rotary_factor": ((1,), "RoPE rotates every feature here"),
}
ABSENT = {"rms_norm_eps": 1e-6, "model_type": "absent"}  # defaults that are not among the choices
ROPE_CHOICES = {
    "rope_type": (("default",), "wavelengths are not rescaled here"),
    "type": (("default",), "wavelengths are not rescaled here"),
    "partial_rotary_factor": CHOICES["partial_rotary_factor"],
}
# These concern provenance, training, what is returned, and sampling.
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


# --- settings --------------------------------------------------------------------------------------------------------


def model_settings(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the arguments of the TransformerLM that a config.json describes; InputError if there is none."""
    config = {name: value for name, value in config.items() if value is not None}
    check_choices(config, CHOICES, str(path))
    sizes: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in SIZES.items()}
    for ours, size in sizes.items():
        most = MOST_LAYERS if ours == "num_layers" else LARGEST
        if type(size) is not int or not 1 <= size <= most:
            what = "is missing" if size is None else f"is {shown(size)}"
            raise InputError(f"{path}: {SIZES[ours]} {what}; it must be a whole number from 1 to {most:,}")
    derived = {
        "num_key_value_heads": (
            (sizes["num_heads"],),
            f"num_attention_heads is {sizes['num_heads']}, and each has keys and values of its own here",
        ),
        "head_dim": (
            (sizes["d_model"] // sizes["num_heads"],),
            "a head has hidden_size / num_attention_heads features here",
        ),
    }
    check_choices(config, derived, str(path))
    theta = rope_theta(config, path)
    known = {*SIZES.values(), *CHOICES, *derived, *INDIFFERENT.split(), "rope_theta", "rope_parameters", "rope_scaling"}
    if unknown := sorted(config.keys() - known):
        more = len(unknown) - 1
        others = f" ({more} more {'key is' if more == 1 else 'keys are'} unknown, too)" if more else ""
        raise InputError(
            f"{path}: {shown(unknown[0])} ({shown(config[unknown[0]])}) is unknown{others}, and may change what the"
            " model computes; delete it if it does not"
        )
    tied = bool(config.get("tie_word_embeddings", False))
    return sizes | CHOSEN | {"rope_theta": theta, "vocab_multiple": 1, "tie_embeddings": tied}


def check_choices(config: dict[str, Any], choices: dict[str, tuple[tuple[Any, ...], str]], place: str) -> None:
    """Raises InputError for a key whose value is not among its choices. place: of the config, for the message."""
    for name, (values, reason) in choices.items():
        value = config.get(name, ABSENT.get(name))
        if value is not None and value not in values:
            allowed = " or ".join(map(str, values)) or "absent"
            raise InputError(f"{place}: {name} is {shown(value)}, but can only be {allowed}: {reason}")


def rope_theta(config: dict[str, Any], path: Path) -> float:
    """Reads the base of RoPE's wavelengths from all places where versions of transformers put it; they must agree."""
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


def llama_settings(model: TransformerLM) -> dict[str, Any]:
    """Returns the model's settings as transformers' config.json; InputError for a model that is not a Llama."""
    SUPPORT.check(model)
    settings = model.settings
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: settings[ours] for ours, theirs in SIZES.items()},
        "num_key_value_heads": settings["num_heads"],
        "head_dim": settings["d_model"] // settings["num_heads"],
        "hidden_act": "silu",
        "rms_norm_eps": RMSNorm(1).eps,
        "rope_theta": settings["rope_theta"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": settings["tie_embeddings"],
    }


# --- weights ---------------------------------------------------------------------------------------------------------

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


def tied(model: TransformerLM) -> bool:
    """Tells whether head and embedding share one weight."""
    return model.token_embeddings.weight is model.lm_head.weight


def other_names(model: TransformerLM, which: int) -> dict[str, str]:
    """Maps our state dict's keys to the names in transformers (0) or llama.cpp (1), without a tied head."""
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
    rows, width = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """Undoes half_split: in each head the features i and i + d_k / 2 become adjacent."""
    rows, width = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, width).transpose(1, 2).reshape(rows, width)
