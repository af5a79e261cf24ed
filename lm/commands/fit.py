"""`lm fit`: trains; Lightning's parser reads the settings (lm/cli.py)."""

from collections.abc import Iterator
from contextlib import contextmanager

from lm.machine import keep_large_blocks, use_granted_cores


def run(argv: list[str]) -> None:
    with training():
        from lm.cli import RunCLI

        RunCLI(["fit", *argv])


@contextmanager
def training() -> Iterator[None]:
    """Prepares this machine for a training, and turns what Lightning and jsonargparse refuse into InputError."""
    keep_large_blocks()
    use_granted_cores()
    from lm.cli import refusals

    with refusals():
        yield
