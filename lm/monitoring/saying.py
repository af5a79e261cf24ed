"""Prints what the callbacks have to say, a line at a time."""

from lightning import Trainer


def say(trainer: Trainer, line: str) -> None:
    """Prints a line once, around the progress bar; trainer.print would do so on every host."""
    if trainer.is_global_zero:
        trainer.print(line, flush=True)
