"""Byte-level BPE, from scratch: train a vocabulary, turn text into token ids, and token ids into text."""

from tokenization.bpe import TrainingReport, train_bpe
from tokenization.errors import InputError
from tokenization.pretokenization import END_OF_TEXT, GPT2_PATTERN
from tokenization.token_file import TokenFile
from tokenization.tokenizer import Tokenizer

__all__ = ["END_OF_TEXT", "GPT2_PATTERN", "InputError", "TokenFile", "Tokenizer", "TrainingReport", "train_bpe"]
