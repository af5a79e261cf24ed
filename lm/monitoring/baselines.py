"""Measures what counting alone achieves on the validation text, and compares each validation with it.

A loss by itself says little. A model that is worse than a trigram table has not yet learnt what the counts of three
tokens in a row reveal; one that stays there has a fault. The tables are in ngrams.py; xz compresses the validation text
alone.
"""

import contextlib
import hashlib
import json
import lzma
import math
import sys
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lm.data.datamodule import TokenDataModule
from lm.model.loss import bits_per_byte
from lm.ngrams import MOST_TOKENS, NAMES, ngram_losses, num_held_out
from lm.strict_json import to_json
from tokenization.files import write_text

MOST_SCORED = 250_000  # validation tokens
MOST_COMPRESSED = 500_000  # bytes, by xz
ENOUGH_TOKENS = 2_000_000  # after which, or after one pass, a model should beat the trigram table
FEWEST_TOKENS = 100  # in either file, for a table that says anything

Lines = dict[str, float]  # bits per byte of the validation text, by the names of ngrams.py and "xz"


class Baselines(Callback):
    """Measures n-gram tables and xz on the validation text at the start, as lines that the model has to beat.

    Args:
        order: the longest n-gram, 1 to 4 tokens; 0 measures nothing.
    """

    def __init__(self, order: int = 4):
        if not 0 <= order <= len(NAMES):
            raise ValueError(f"baselines.order is {order}; it must be from 0, which measures nothing, to {len(NAMES)}")
        self.order = order
        self.lines: Lines = {}
        self.counted = 0  # tokens

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        wanted = self.order and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if wanted and isinstance(data, TokenDataModule) and data.num_val_batches:
            self.counted, self.lines = kept_or_measured(data, self.order)
            if self.lines:
                trainer.print(f"{data.val_path}: {in_words(self.lines)}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.lines or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        for logger in trainer.loggers:
            logger.log_metrics({f"baselines/{name}": bits for name, bits in self.lines.items()}, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, reached = trainer.datamodule, trainer.callback_metrics.get("val/bits_per_byte")  # type: ignore[attr-defined]
        if not self.lines or reached is None or "trigram" not in self.lines:
            return
        tokens = data.tokens_after(trainer.global_step)
        enough = min(ENOUGH_TOKENS, data.num_train_tokens)
        if tokens >= enough and float(reached) > self.lines["trigram"]:
            short = "the run may only be too short. If longer ones stay above it, look at"
            advice = short if tokens < self.counted else "something is wrong. Look at"
            print(
                f"lm fit: {float(reached):.3f} bits per byte after {tokens:,} tokens, where a trigram table of"
                f" {self.counted:,} has {self.lines['trigram']:.3f}: {advice} train/loss and train/gradient_norm,"
                " find a model.learning_rate with `lm find-lr`, and read both token files with `tokenization decode`",
                file=sys.stderr,
            )


def in_words(lines: Lines) -> str:
    """Lists the lines, the easiest first: "bits per byte by counting alone: unigram 2.298, ..."."""
    found = ", ".join(f"{name} {value:.3f}" for name, value in sorted(lines.items(), key=lambda line: -line[1]))
    return f"bits per byte by counting alone: {found}"


def standing(lines: Lines, reached: float) -> str:
    """Returns words for a line about a validation: ": below the 4-gram table at 1.147", the best that is beaten."""
    if not lines or not math.isfinite(reached):
        return ""
    beaten = {name: value for name, value in lines.items() if value > reached}
    name = min(beaten, key=beaten.__getitem__) if beaten else max(lines, key=lines.__getitem__)
    line = name if name == "xz" else f"the {name} table"
    return f": {'below' if beaten else 'above'} {line} at {lines[name]:.3f}"


# --- measuring -------------------------------------------------------------------------------------------------------


def kept_or_measured(data: TokenDataModule, order: int) -> tuple[int, Lines]:
    """Returns how many tokens are counted, and the lines, from the file beside the training tokens if they are there.

    The file is a cache: one about other tokens is replaced, one that is damaged or another program's is left alone, and
    where none can be written, they are measured at each start.
    """
    validation = data.files["validate"]
    windows = data.num_val_batches * data.batch_size * data.context_length
    scored = min(MOST_SCORED, len(validation), windows + 1)
    read = sum(data.first_lengths(MOST_TOKENS))
    counted = read - num_held_out(read, order)
    about = {
        "train_sha256": data.train_sha256,
        "val_sha256": validation.description.data_sha256,
        "val_bytes": validation.description.bytes,
        "counted_tokens": counted,
        "scored_tokens": scored,
        "order": order,
    }
    name = data.sources[0].path.rstrip("/") + (".mixture" if len(data.sources) > 1 else "")
    path = Path(f"{name}.baselines.json")
    kept = read_kept(path)
    if kept is not None and kept["about"] == about:
        return counted, dict(kept["bits_per_byte"])
    lines = measure(data, scored, order)
    if kept is not None or not path.exists():
        content = {"about": about, "bits_per_byte": lines}
        with contextlib.suppress(OSError):
            write_text(path, to_json(content | {"sha256": digest(content)}, indent=2) + "\n")
    return counted, lines


def read_kept(path: Path) -> dict[str, Any] | None:
    """Returns what the file keeps; None if there is none, or it is damaged or another program's."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        expected = content.pop("sha256")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return content if expected == digest(content) else None


def digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(content).encode()).hexdigest()


def measure(data: TokenDataModule, scored: int, order: int) -> Lines:
    """Returns the lines; none for files that are too short to say anything, or of unknown size in bytes."""
    training, validation = data.first_train_tokens(MOST_TOKENS), data.files["validate"].tokens[:scored]
    about = data.files["validate"].description
    if min(len(training), len(validation)) < FEWEST_TOKENS or not about.bytes:
        return {}
    losses = ngram_losses(training, validation, about.vocab_size, order)
    lines = {name: bits_per_byte(loss, about.tokens, about.bytes) for name, loss in zip(NAMES, losses, strict=False)}
    text = b"".join(data.tokenizer.vocab.get(int(token_id), b"") for token_id in validation)[:MOST_COMPRESSED]
    if text:
        lines["xz"] = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    return lines
