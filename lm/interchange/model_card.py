"""Writes a model card, the README.md that Hugging Face shows beside a model, from what a run has recorded.

What the run does not know, such as its figures where the event files are gone, is left out; the licence is its owner's
to choose. A card names the last two parts of a data file's path, and nothing else of this machine's folders; a file
that has been replaced since is named without its size.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from lm.data.mixture import read_sources, sources_of
from lm.interchange.weights import num_exported
from lm.model.transformer import TransformerLM
from lm.runs.events import Curves, read_curves
from lm.runs.folder import CONFIG
from lm.runs.manifest import read_manifest
from tokenization import InputError, Tokenizer
from tokenization.tokens.token_format import read_description

CARD = "README.md"
TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
# license: your choice; what the licence of the training text allows
---

# {name}

A language model of {parameters:,} parameters. It continues a text; it is not made for chat, and what it writes may be
wrong or offensive, as its training text may be.

**Licence: not chosen yet.** Put it here and in the first lines of this file.

## How to run it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.8, top_p=0.95)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```

## The model

{model}

## Training

{training}
"""


def model_card(model: TransformerLM, tokenizer: Tokenizer, checkpoint: Path, dtype: str) -> str:
    """Returns the card of a checkpoint that has been exported in this dtype."""
    settings = model.settings
    shape = {
        "architecture": "Llama: pre-norm decoder-only Transformer with RMSNorm, RoPE and SwiGLU",
        "parameters": f"{num_exported(model):,}, in {dtype}",
        "layers": settings["num_layers"],
        "width (d_model)": settings["d_model"],
        "attention heads": settings["num_heads"],
        "width of the feed-forward networks (d_ff)": settings["d_ff"],
        "context": f"{model.context_length:,} tokens",
        "vocabulary": f"{tokenizer.vocab_size:,} tokens, byte-level BPE",
    }
    manifest = read_manifest(checkpoint)
    step, training = manifest["step"], {}  # 0 of imported weights
    if step:
        training = read_data(checkpoint.parent / CONFIG, digests_of(manifest)) | read_figures(checkpoint.parent, step)
    name = os.fsencode(checkpoint.resolve().parent.name).decode(errors="replace")
    return TEMPLATE.format(
        name=" ".join(name.split()),
        parameters=num_exported(model),
        model=table(shape),
        training=table(training) if training else "Not recorded: the weights were imported.",
    )


def table(rows: dict[str, Any]) -> str:
    """Returns a Markdown table of two columns."""
    lines = (f"| {name} | {' '.join(str(value).split()).replace('|', chr(92) + '|')} |" for name, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines])


def read_figures(run: Path, step: int) -> dict[str, str]:
    """Returns the tokens and losses of a run until a step, and where it was trained."""
    try:
        curves = read_curves(run)
    except InputError:  # no event files
        curves = Curves()

    def until(tag: str, form: str, unit: str) -> str | None:
        curve = curves.get(tag)
        points = [] if curve is None else [p for p in zip(curve.steps, curve.values, strict=True) if p[0] <= step]
        if not points:
            return None
        when = "" if points[-1][0] == step else f", at step {points[-1][0]:,}"
        return f"{points[-1][1]:{form}}{unit}{when}"

    found = {
        "optimizer steps": f"{step:,}",
        "tokens seen": until("train/tokens_seen", ",.0f", ""),
        "training loss": until("train/loss", ".4f", " nats per token"),
        "validation loss": until("val/loss", ".4f", " nats per token"),
        "validation, bits per byte": until("val/bits_per_byte", ".4f", ""),
        "machine": "; ".join(dict.fromkeys(start.machine for start in curves.starts if start.machine)),
        "code": "; ".join(dict.fromkeys(f"text-to-lm {start.code}" for start in curves.starts if start.code)),
    }
    return {name: value for name, value in found.items() if value}


def digests_of(manifest: dict[str, Any]) -> set[str]:
    """Returns the digests of the token files that a checkpoint was trained and validated with."""
    found = sources_of({"train_sha256": None, **manifest}) | {manifest.get("val_sha256")}
    return {digest for digest in found if isinstance(digest, str)}


def read_data(config: Path, digests: Collection[str]) -> dict[str, str]:
    """Returns the names of the data files that a configuration names, with the sizes of those with these digests."""
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        data = settings["data"]
        sources, read = read_sources(data["train_path"]), [Path(data["val_path"])]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, InputError):  # no configuration of `lm fit`
        return {}
    total = sum(source.weight for source in sources)
    shares = [f", {100 * source.weight / total:.3g}% of the windows" if len(sources) > 1 else "" for source in sources]
    drawn = [describe_file(Path(source.path), digests) + share for source, share in zip(sources, shares, strict=True)]
    validated = "; ".join(describe_file(path, digests) for path in read)
    found = (
        {"began with the weights of": f"`{name_file(Path(settings['init_from']))}`"}
        if settings.get("init_from")
        else {}
    )
    return found | {"training data": "; ".join(drawn), "validation data": validated}


def name_file(path: Path) -> str:
    """Returns the last two parts of a path."""
    return "/".join(path.parts[-2:]).replace("`", "")


def describe_file(path: Path, digests: Collection[str]) -> str:
    """Names a token file, with its size if it is still there, and still one of those with these digests."""
    name = f"`{name_file(path)}`"
    try:
        found = read_description(path)
    except (InputError, OSError):
        return name
    if found.data_sha256 not in digests:
        return name
    return f"{name} ({found.tokens:,} tokens, {found.documents:,} documents, {found.bytes:,} bytes of text)"
