"""Imports a Hugging Face Llama as a run: the inverse of export.py, and just as exact.

    config.json -> the model's settings   model.safetensors, or its shards -> best.ckpt   tokenizer.json -> tokenizer/

The run can be generated from, tested and validated like any other. `lm fit --init_from` begins a new run with its
weights, and a config.yaml for that is written. Whatever the folder asks for that our Transformer does not do is refused
by name: otherwise it would load, and be another model.
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lm.checkpoint import BEST, CONFIG, TABLE_BYTES, TOKENIZER, save_checkpoint
from lm.export import other_names
from lm.foreign import FLOATS, SETTINGS, WORDS, Stored, read_bytes, read_json, read_weights, shown, stored_weights
from lm.llama import model_settings
from lm.machine import available_memory
from lm.transformer import TransformerLM
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.commands import ArgumentParser, output_path
from tokenization.files import making
from tokenization.interchange import import_huggingface
from tokenization.outputs import check_new

# --- weights ---------------------------------------------------------------------------------------------------------


def check_weights(stored: dict[str, Stored], shapes: dict[str, list[int]], folder: Path) -> None:
    """Raises InputError unless the files announce exactly the model's weights. shapes: the model's, by name."""
    wrong = {"is missing": shapes.keys() - stored.keys(), "has no place": stored.keys() - shapes.keys()}
    for what, names in wrong.items():
        if names:
            raise InputError(
                f"{folder}: {shown(min(names))} {what}, one of {len(names)} such weights; this is another model"
            )
    for name, (file, dtype, shape) in stored.items():
        if shape != shapes[name]:
            raise InputError(f"{file}: {name} is {shown(shape)}, but {SETTINGS} makes it {shapes[name]}")
        if dtype not in FLOATS:
            raise InputError(
                f"{file}: {name} is in {dtype}, and only {', '.join(FLOATS)} are read; import the unquantized model"
            )


def neighbours(weight: Tensor, num_heads: int) -> Tensor:
    """export.half_split undone: in each head the features i and i + d_k / 2 become neighbours."""
    return weight.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def our_weights(model: TransformerLM, stored: dict[str, Stored], folder: Path) -> dict[str, Tensor]:
    """Reads transformers' weights under our names. model: of the right shape, on the meta device."""
    names, state = other_names(model, 0), model.state_dict()
    shapes = {name: list(state[key].shape) for key, name in names.items()}
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    tied_twice = head not in shapes and head in stored and table in shapes
    check_weights(stored, shapes | ({head: shapes[table]} if tied_twice else {}), folder)
    needed, available = 4 * model.num_parameters(), available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"{folder}: its weights take {needed / 1e9:,.1f} GB in float32, and {available / 1e9:,.1f} GB are free;"
            " import it on a larger machine"
        )
    weights = read_weights(stored)
    if tied_twice and not torch.equal(weights[head], weights[table]):
        raise InputError(f"{folder}: tie_word_embeddings is true, yet lm_head is not model.embed_tokens")
    ours = {}
    for key, name in names.items():
        turned = key.endswith(("q_proj.weight", "k_proj.weight"))
        ours[key] = neighbours(weights[name], model.num_heads) if turned else weights[name]
    if head in state and head not in ours:
        ours[head] = ours["token_embeddings.weight"]
    return ours


# --- the run ---------------------------------------------------------------------------------------------------------


def empty_model(settings: dict[str, Any], path: Path) -> TransformerLM:
    """On the meta device, where no size takes memory."""
    try:
        model = TransformerLM(**settings, device="meta")
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    tables = sum(buffer.nbytes for buffer in model.buffers())
    if tables > TABLE_BYTES:
        raise InputError(
            f"{path}: max_position_embeddings is {settings['context_length']}, and tables for so many positions take"
            f" {tables / 1e9:.1f} GB; lower it"
        )
    return model


def read_llama(source: Path) -> tuple[dict[str, Any], Tokenizer, dict[str, Tensor]]:
    """Reads a transformers folder: the settings of a TransformerLM, the tokenizer, and the state dict."""
    path = source / SETTINGS
    settings = model_settings(read_json(path), path)
    read_bytes(source / WORDS)
    tokenizer = import_huggingface(source / WORDS)
    if tokenizer.vocab_size > settings["vocab_size"]:
        raise InputError(
            f"{source / WORDS}: has {shown(tokenizer.vocab_size)} tokens, but the model has rows for"
            f" {settings['vocab_size']}; they do not belong together"
        )
    stored = stored_weights(source)
    if settings["num_layers"] > len(stored):
        raise InputError(f"{path}: num_hidden_layers is {settings['num_layers']}, but there are {len(stored)} weights")
    return settings, tokenizer, our_weights(empty_model(settings, path), stored, source)


def write_run(
    folder: Path, run: Path, settings: dict[str, Any], tokenizer: Tokenizer, weights: dict[str, Tensor]
) -> None:
    """Writes the run into a folder that will be renamed to run."""
    tokenizer.save(folder / TOKENIZER)
    write_config(settings, run, folder / CONFIG)
    state = {f"model.{key}": weight for key, weight in weights.items()}
    checkpoint = {"state_dict": state, "hyper_parameters": settings, "global_step": 0}
    save_checkpoint(checkpoint | {"pytorch-lightning_version": version("lightning")}, folder / BEST)


def write_config(settings: dict[str, Any], run: Path, path: Path) -> None:
    """Writes a configuration that fine-tunes the imported model; its token files are yet to be made."""
    data = {name: f"data/{run.name}/{name}.bin" for name in ("train", "valid")}
    config: dict[str, Any] = {
        "init_from": str(run / BEST),
        "trainer": {"default_root_dir": f"{run}-tuned", "max_steps": 1000, "val_check_interval": 100},
        "model": settings | {"learning_rate": 1e-4, "min_learning_rate": 1e-5, "warmup_steps": 50},
        "data": {"train_path": data["train"], "val_path": data["valid"], "tokenizer": str(run / TOKENIZER)},
    }
    config["data"]["batch_size"] = 8
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


HELP = """Import a Hugging Face Llama as a run. Its folder has config.json, model.safetensors and tokenizer.json.

  lm import exported/demo --output checkpoints/again
  lm generate checkpoints/again --prompt "Once upon a time"

The tokenizer must be a byte-level BPE, and the model must not use grouped-query attention. Whatever does not fit is
refused by name. Nothing in the folder is executed, whoever wrote it. A YAML configuration is different: its class_path
imports and runs any module, so read a stranger's before you use it.
"""


def run_import(argv: list[str]) -> None:
    parser = ArgumentParser(prog="lm import", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder that save_pretrained or `lm export --format hf` wrote")
    parser.add_argument("--output", required=True, type=output_path, help="the run's folder, which must not exist yet")
    args = parser.parse_args(argv)
    source, run = args.folder, args.output
    check_new(run)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; nothing is downloaded here, so fetch the model first")
    settings, tokenizer, weights = read_llama(source)
    with making(run) as written:
        write_run(written, run, settings, tokenizer, weights)
    print(f"{source} -> {run}: {settings['num_layers']} layers of {settings['d_model']}, {tokenizer.vocab_size} tokens")
    print(how_texts_end(read_json(source / SETTINGS).get("eos_token_id"), tokenizer))
    print(f"to train it further, encode text with {run / TOKENIZER}, then: lm fit -c {run / CONFIG}")
    print("a configuration is code (class_path imports and runs any module): never use a stranger's YAML unread")


def how_texts_end(eos_token_id: Any, tokenizer: Tokenizer) -> str:
    end = tokenizer.end_of_text_id
    if end is None:
        return f"its tokenizer has no {END_OF_TEXT}, so only --max-new-tokens ends a text"
    if eos_token_id in (end, [end], None):
        return f"texts end with {END_OF_TEXT}"
    return f"texts end with {END_OF_TEXT}, token {end}, not with the config's eos_token_id, {shown(eos_token_id)}"
