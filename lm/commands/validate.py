"""`lm validate`: measures loss, perplexity and bits per byte on the validation file; the parser is Lightning's."""

from lm.commands.fit import training


def run(argv: list[str]) -> None:
    """Validates."""
    with training():
        from lm.training.cli import RunCLI

        RunCLI(["validate", *argv])
