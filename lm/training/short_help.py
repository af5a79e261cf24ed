"""Writes the short help of `lm fit` and `lm validate`: the options in common use, by groups.

Only their names stand here: what each does, its choices and its default are the parser's.
"""

import textwrap
from collections.abc import Iterator

from lm.training.lightning_inside import Option

USUAL = {
    "fit": {
        "run": ("config", "ckpt_path", "init_from", "device", "seed_everything"),
        "data": ("data.train_path", "data.val_path", "data.tokenizer", "data.batch_size"),
        "model": (
            "model.vocab_size",
            "model.context_length",
            "model.d_model",
            "model.num_layers",
            "model.num_heads",
            "model.d_ff",
            "model.compile",
        ),
        "optimizer": (
            "model.optimizer",
            "model.learning_rate",
            "model.min_learning_rate",
            "model.warmup_steps",
            "model.schedule",
            "model.weight_decay",
            "model.max_gradient_norm",
        ),
        "trainer": (
            "trainer.default_root_dir",
            "trainer.max_steps",
            "trainer.max_time",
            "trainer.accumulate_grad_batches",
            "trainer.precision",
            "trainer.devices",
            "trainer.strategy",
            "trainer.val_check_interval",
            "trainer.limit_val_batches",
            "trainer.log_every_n_steps",
            "trainer.enable_progress_bar",
        ),
        "checkpoints": ("checkpoints.every_n_steps", "checkpoints.keep_every_n_steps"),
        "samples": ("samples.prompt", "samples.max_new_tokens", "samples.temperature"),
    },
    "validate": {
        "run": ("config", "ckpt_path", "device"),
        "data": ("data.val_path", "data.tokenizer", "data.batch_size"),
        "trainer": ("trainer.limit_val_batches", "trainer.precision", "trainer.devices", "trainer.enable_progress_bar"),
    },
}
WIDTH, INDENT = 110, 36  # columns: of a line, and before what an option does


def short_help(command: str, usage: str, description: str, options: dict[str, Option]) -> str:
    """Returns the help of a command. options: all that its parser has, by their names."""
    lines = [f"usage: {usage}", "", description]
    for group, names in USUAL[command].items():
        lines += ["", f"{group}:"]
        for name in names:
            lines += describe(name, options[name])
    total = len(options)
    lines += ["", f"`lm {command} --help-all` describes all {total} options; `--print_config` shows their values."]
    return "\n".join(lines) + "\n"


def describe(name: str, option: Option) -> Iterator[str]:
    """Yields the lines of one option: its name and choices, what it does, and its default."""
    head = f"  --{name}" if option.choices is None else f"  --{name} {option.choices}"
    words = " ".join(option.help.split()).removesuffix(".")
    if option.default is not None:
        words += f" (default: {option.default})"
    body = textwrap.wrap(words, WIDTH - INDENT)
    if len(head) > INDENT - 2:
        yield head
        head = ""
    for line in body:
        yield f"{head:{INDENT}}{line}"
        head = ""
