"""Sets first weights of a new run from its text; the model draws all others at random."""

from typing import TYPE_CHECKING

import torch

from lm.model.bigram_start import start_with_bigrams
from tokenization import InputError

if TYPE_CHECKING:
    from lm.training.module import LanguageModel

MOST_COUNTED = 4_000_000  # tokens


def begin_with_bigrams(task: "LanguageModel") -> None:
    """Starts the model with the bigrams of the training text, its first tokens, and says so.

    Raises InputError for a run without a token file, and for a sharded one: its processes could disagree on a sign.
    """
    if task.data is None:
        raise InputError("model.bigram_init counts a token file, and the trainer was given other loaders; leave it out")
    if task.device_mesh is not None:
        raise InputError("model.bigram_init makes whole weights, which trainer.strategy fsdp has cut; leave it out")
    tokens = torch.from_numpy(task.data.first_train_tokens(MOST_COUNTED).astype("int64"))
    start_with_bigrams(task.model, tokens)
    if task.global_rank == 0:
        print(f"starts with the bigrams of {len(tokens):,} training tokens", flush=True)
