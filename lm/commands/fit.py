"""`lm fit`: trains; Lightning's parser reads the settings (lm/training/cli.py)."""

from collections.abc import Iterator
from contextlib import contextmanager

from lm.machine.resources import keep_large_blocks, use_granted_cores


def run(argv: list[str]) -> None:
    with training():
        from lm.training.cli import RunCLI

        RunCLI(["fit", *argv])


@contextmanager
def training() -> Iterator[None]:
    """Prepares this machine for a training, and turns what Lightning and jsonargparse refuse into InputError."""
    keep_large_blocks()
    use_granted_cores()
    from lm.training.cli import refusals

    with refusals():
        yield
