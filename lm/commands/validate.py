"""`lm validate`: loss, perplexity and bits per byte on the validation file; Lightning's parser reads the settings."""

from lm.commands.fit import training


def run(argv: list[str]) -> None:
    with training():
        from lm.training.cli import RunCLI

        RunCLI(["validate", *argv])
