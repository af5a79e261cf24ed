"""`lm fit`: trains a model; the settings are read by Lightning's parser (lm/training/cli.py)."""

from collections.abc import Iterator
from contextlib import contextmanager

from lm.machine.contention import watching_others
from lm.machine.resources import keep_large_blocks, use_granted_cores


def run(argv: list[str]) -> None:
    """Trains."""
    with training():
        from lm.training.cli import RunCLI

        RunCLI(["fit", *argv])


@contextmanager
def training() -> Iterator[None]:
    """Prepares this machine for training; inside, errors of Lightning and jsonargparse become InputErrors."""
    keep_large_blocks()
    use_granted_cores()
    with watching_others():
        from lm.training.cli import refusals

    with refusals():
        yield
