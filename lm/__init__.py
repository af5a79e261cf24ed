"""A Transformer language model, written by hand: `python -m lm --help`."""
