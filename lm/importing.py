"""A Llama of transformers' as a run of ours: the way back from export.py, and as exact.

    config.json -> the model's settings    model.safetensors, or its parts -> best.ckpt    tokenizer.json -> tokenizer/

The run generates, is tested and validated as any other; new runs begin with its weights by `lm fit --init_from`, for
which a config.yaml is written. What a folder asks for beyond our Transformer is refused by name: it would load, and be
another model.
"""

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lm.checkpoint import BEST, CONFIG, MODEL_SETTINGS, TOKENIZER, save_checkpoint
from lm.export import other_names
from lm.layers import RMSNorm
from lm.transformer import TransformerLM
from tokenization import InputError, Tokenizer
from tokenization.errors import ArgumentParser
from tokenization.interchange import import_huggingface

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SIZES = {  # ours: transformers'
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
}
EPS = RMSNorm(1).eps


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; a folder for transformers has config.json, {WEIGHTS} and tokenizer.json"
        ) from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not what transformers writes there; get the file again")
    return content


# --- settings --------------------------------------------------------------------------------------------------------


def model_settings(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """config.json -> what a TransformerLM is made with; InputError names what none of ours has."""
    missing = [theirs for theirs in SIZES.values() if type(config.get(theirs)) is not int or config[theirs] < 1]
    if config.get("model_type") != "llama":
        raise InputError(f"{path}: model_type is {config.get('model_type')}; only a llama is a model of ours")
    if missing:
        raise InputError(f"{path}: has no whole number for {', '.join(missing)}; get the file again")
    sizes = {ours: config[theirs] for ours, theirs in SIZES.items()}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    expected = {  # where the file says nothing, this is what transformers takes
        "num_key_value_heads": (sizes["num_heads"], "every head has keys and values of its own here"),
        "head_dim": (sizes["d_model"] // sizes["num_heads"], "a head has d_model / num_heads features here"),
        "hidden_act": ("silu", "the gate is silu here"),
        "rms_norm_eps": (EPS, "the norms add this here"),
        "attention_bias": (False, "no product has a bias here"),
        "mlp_bias": (False, "no product has a bias here"),
        "quantization_config": (None, "weights are numbers here; take the folder they were made from"),
    }
    found = {name: config[name] for name in expected if config.get(name) is not None}
    expected["rope_type"] = ("default", "wavelengths are not rescaled here")
    found["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    for name, value in found.items():
        wanted, reason = expected[name]
        if value != wanted:
            raise InputError(f"{path}: {name} is {value}, and can only be {wanted}: {reason}")
    settings: dict[str, Any] = sizes | {
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        "norm_position": "pre",
        "position_encoding": "rope",
        "feed_forward": "swiglu",
        "vocab_multiple": 1,
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
        "qk_norm": False,
    }
    assert settings.keys() == set(MODEL_SETTINGS)
    return settings


# --- weights ---------------------------------------------------------------------------------------------------------


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All parts, in float32, by transformers' names; without the tables that some versions kept of RoPE."""
    parts = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        parts = sorted({Path(str(name)).name for name in read_json(folder / INDEX).get("weight_map", {}).values()})
    weights: dict[str, Tensor] = {}
    for part in parts:
        if not (folder / part).is_file():
            raise InputError(
                f"{folder / part}: is missing; other forms than safetensors are not read: they can run code"
            )
        try:
            weights |= load_file(folder / part)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder / part}: is damaged ({error}); get the file again") from None
    return {name: weight.float() for name, weight in weights.items() if not name.endswith("rotary_emb.inv_freq")}


def neighbours(weight: Tensor, num_heads: int) -> Tensor:
    """export.half_split undone: in each head the features i and i + d_k / 2 become neighbours."""
    return weight.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def our_weights(model: TransformerLM, weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """model: of the right shape, without content (device meta); transformers' weights under our names."""
    names, ours = other_names(model, 0), {}
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if "lm_head.weight" not in names and "lm_head.weight" in weights:  # tied, and written twice
        if not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"]):
            raise InputError(f"{folder}: tie_word_embeddings is true, and yet lm_head is not model.embed_tokens")
        del weights["lm_head.weight"]
    wrong = {"is missing": set(names.values()) - set(weights), "has no place": set(weights) - set(names.values())}
    for what, those in wrong.items():
        if those:
            raise InputError(f"{folder}: {min(those)} {what}, one of {len(those)} such weights; it is another model")
    for key, name in names.items():
        weight = weights[name]
        if weight.shape != shapes[key]:
            raise InputError(f"{folder}: {name} is {list(weight.shape)}, and by config.json {list(shapes[key])}")
        ours[key] = neighbours(weight, model.num_heads) if key.endswith(("q_proj.weight", "k_proj.weight")) else weight
    if "lm_head.weight" in shapes and "lm_head.weight" not in ours:
        ours["lm_head.weight"] = ours["token_embeddings.weight"]
    return ours


# --- the run ---------------------------------------------------------------------------------------------------------


def import_huggingface_folder(source: Path, run: Path) -> dict[str, Any]:
    """Writes best.ckpt and tokenizer/ into the folder run; returns the model's settings."""
    settings = model_settings(read_json(source / "config.json"), source / "config.json")
    tokenizer = import_huggingface(source / "tokenizer.json")
    if tokenizer.vocab_size > settings["vocab_size"]:
        raise InputError(
            f"{source / 'tokenizer.json'}: has {tokenizer.vocab_size} tokens, and the model rows for"
            f" {settings['vocab_size']}; they do not belong together"
        )
    try:
        model = TransformerLM(**settings, device="meta")
    except ValueError as error:
        raise InputError(f"{source / 'config.json'}: {error}") from None
    weights = our_weights(model, read_weights(source), source)
    run.mkdir(parents=True, exist_ok=True)
    tokenizer.save(run / TOKENIZER)
    state = {f"model.{key}": weight for key, weight in weights.items()}
    checkpoint = {"state_dict": state, "hyper_parameters": settings, "global_step": 0}
    save_checkpoint(checkpoint | {"pytorch-lightning_version": version("lightning")}, run / BEST)
    return settings


def write_config(settings: dict[str, Any], run: Path, path: Path) -> None:
    """Of a run that trains the imported one on, gently; its token files are to be made."""
    data = {name: f"data/{run.name}/{name}.bin" for name in ("train", "valid")}
    config: dict[str, Any] = {
        "init_from": str(run / BEST),
        "trainer": {"default_root_dir": f"{run}-tuned", "max_steps": 1000, "val_check_interval": 100},
        "model": settings | {"learning_rate": 1e-4, "min_learning_rate": 1e-5, "warmup_steps": 50},
        "data": {"train_path": data["train"], "val_path": data["valid"], "tokenizer": str(run / TOKENIZER)},
    }
    config["data"]["batch_size"] = 8
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


HELP = """Make a run of a Llama in transformers' form, a folder with config.json, model.safetensors and tokenizer.json.

  lm import exported/demo --output checkpoints/again
  lm generate checkpoints/again --prompt "Once upon a time"

The tokenizer must be a byte-level BPE, and the model without grouped queries. What does not fit is named.
"""


def run_import(argv: list[str]) -> None:
    parser = ArgumentParser(prog="lm import", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of transformers: what save_pretrained or `lm export` wrote")
    parser.add_argument("--output", required=True, type=Path, help="the run's folder, a new one")
    args = parser.parse_args(argv)
    source, run = args.folder, args.output
    if run.exists():
        raise InputError(f"{run}: exists already; name a new one, or delete it")
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; downloads have names like models/NAME, and are not fetched here")
    run.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=f".{run.name}.") as folder:
        written = Path(folder) / run.name
        settings = import_huggingface_folder(source, written)
        write_config(settings, run, written / CONFIG)
        os.rename(written, run)  # whole or not at all
    tokenizer = Tokenizer.load(run / TOKENIZER)
    print(f"{source} -> {run}: {settings['num_layers']} layers of {settings['d_model']}, {tokenizer.vocab_size} tokens")
    if tokenizer.end_of_text_id is None:
        print("its tokenizer has no <|endoftext|>: texts end at --max-new-tokens only")
    print(f"to train it on, encode text with {run / TOKENIZER}, and: lm fit -c {run / CONFIG}")
