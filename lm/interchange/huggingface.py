"""Exports a model as a Hugging Face folder, and imports a Llama from one as a run; neither changes what it computes.

    config.json        the model's settings         model.safetensors, or its shards      the weights
    tokenizer.json     the tokenizer                generation_config.json, tokenizer_config.json ...

LlamaForCausalLM and AutoTokenizer of transformers load an exported folder. An imported run generates, is tested and
validated like any other, and `lm fit --init_from` begins a new run with its weights. Whatever a folder asks for that
our Transformer does not do is refused by name: it would load, but as another model.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from lm.interchange.foreign import (
    FLOATS,
    SETTINGS,
    WORDS,
    Stored,
    read_bytes,
    read_json,
    read_weights,
    shown,
    stored_weights,
)
from lm.interchange.llama import (
    half_split,
    interleaved,
    llama_settings,
    model_settings,
    other_names,
)
from lm.interchange.weights import DTYPES, converted, weights_without_padding
from lm.machine.resources import available_memory
from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import TABLE_BYTES, save_checkpoint
from lm.runs.folder import BEST, CONFIG, TOKENIZER
from lm.strict_json import to_json
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.interchange import export_huggingface, import_huggingface

# --- writing ---------------------------------------------------------------------------------------------------------


def huggingface_weights(model: TransformerLM) -> dict[str, Tensor]:
    """Returns the weights under transformers' names, and in its order of features."""
    weights, ours = {}, weights_without_padding(model)
    for key, name in other_names(model, 0).items():
        weight = ours[key]
        rotated = key.endswith(("q_proj.weight", "k_proj.weight"))
        weights[name] = half_split(weight, model.num_heads) if rotated else weight
    return weights


def export_huggingface_folder(model: TransformerLM, tokenizer: Tokenizer, folder: Path, dtype: str) -> None:
    """Writes a folder for transformers. dtype: of the weights, one of DTYPES.

    Raises InputError for a model that is not a Llama, and for a weight that the dtype cannot hold.
    """
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


# --- reading ---------------------------------------------------------------------------------------------------------


def check_weights(stored: dict[str, Stored], shapes: dict[str, list[int]], folder: Path) -> None:
    """Raises InputError unless the files' headers list exactly the model's weights. shapes: the model's, by name."""
    wrong = {"is missing": shapes.keys() - stored.keys(), "is unknown": stored.keys() - shapes.keys()}
    for what, names in wrong.items():
        if names:
            raise InputError(
                f"{folder}: {shown(min(names))} {what}, by num_hidden_layers and the other sizes in {SETTINGS};"
                " download the folder again"
            )
    for name, (file, dtype, shape) in stored.items():
        if shape != shapes[name]:
            raise InputError(f"{file}: {name} has the shape {shown(shape)}, but by {SETTINGS} it is {shapes[name]}")
        if dtype not in FLOATS:
            raise InputError(
                f"{file}: {name} is in {dtype}, but only {', '.join(FLOATS)} are read; import the unquantized model"
            )


def our_weights(model: TransformerLM, stored: dict[str, Stored], folder: Path) -> dict[str, Tensor]:
    """Reads transformers' weights under our names. model: has the right shapes, on the meta device."""
    names, state = other_names(model, 0), model.state_dict()
    shapes = {name: list(state[key].shape) for key, name in names.items()}
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    tied_twice = head not in shapes and head in stored and table in shapes
    check_weights(stored, shapes | ({head: shapes[table]} if tied_twice else {}), folder)
    needed, available = 4 * model.num_parameters(), available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"{folder}: its weights take {needed / 1e9:,.1f} GB in float32, but {available / 1e9:,.1f} GB are free;"
            " import it on a larger machine"
        )
    weights = read_weights(stored)
    if tied_twice and not torch.equal(weights[head], weights[table]):
        raise InputError(f"{folder}: tie_word_embeddings is true, but lm_head differs from model.embed_tokens")
    ours = {}
    for key, name in names.items():
        rotated = key.endswith(("q_proj.weight", "k_proj.weight"))
        ours[key] = interleaved(weights[name], model.num_heads) if rotated else weights[name]
    if head in state and head not in ours:
        ours[head] = ours["token_embeddings.weight"]
    return ours


def empty_model(settings: dict[str, Any], path: Path) -> TransformerLM:
    """Builds the model on the meta device, so that hostile sizes allocate nothing."""
    try:
        model = TransformerLM(**settings, device="meta")
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    tables = sum(buffer.nbytes for buffer in model.buffers())
    if tables > TABLE_BYTES:
        raise InputError(
            f"{path}: max_position_embeddings is {settings['context_length']}, and RoPE's tables for that take"
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
            f" {settings['vocab_size']}; they are not of one model"
        )
    stored = stored_weights(source)
    if settings["num_layers"] > len(stored):
        raise InputError(f"{path}: num_hidden_layers is {settings['num_layers']}, but there are {len(stored)} weights")
    return settings, tokenizer, our_weights(empty_model(settings, path), stored, source)


# --- the run ---------------------------------------------------------------------------------------------------------


def write_run(
    folder: Path, run: Path, settings: dict[str, Any], tokenizer: Tokenizer, weights: dict[str, Tensor]
) -> None:
    """Writes the run into a folder, which the caller then renames to `run`."""
    tokenizer.save(folder / TOKENIZER)
    write_config(settings, run, folder / CONFIG)
    state = {f"model.{key}": weight for key, weight in weights.items()}
    checkpoint = {"state_dict": state, "hyper_parameters": settings, "global_step": 0}
    save_checkpoint(checkpoint | {"pytorch-lightning_version": version("lightning")}, folder / BEST)


def write_config(settings: dict[str, Any], run: Path, path: Path) -> None:
    """Writes a configuration that fine-tunes the imported model, with names for token files still to be made."""
    data = {name: f"data/{run.name}/{name}.bin" for name in ("train", "valid")}
    config: dict[str, Any] = {
        "init_from": str(run / BEST),
        "trainer": {"default_root_dir": f"{run}-tuned", "max_steps": 1000, "val_check_interval": 100},
        "model": settings | {"learning_rate": 1e-4, "min_learning_rate": 1e-5, "warmup_steps": 50},
        "data": {"train_path": data["train"], "val_path": data["valid"], "tokenizer": str(run / TOKENIZER)},
    }
    config["data"]["batch_size"] = 8
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
