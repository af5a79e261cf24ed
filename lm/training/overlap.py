"""Warns of validation documents that are in training, too: their loss says little of other text."""

import sys
from collections.abc import Sequence

from tokenization.document_digests import count_shared


def warn_of_overlap(train: Sequence[str], valid: str) -> None:
    """Prints a line if documents of the validation token file are in those for training. Old files do not tell."""
    shared, documents = count_shared(train, valid)
    if shared:
        print(
            f"lm: {valid}: {shared:,} of its {documents:,} documents ({shared / documents:.2%}) are in the training"
            " data, too, so its loss is too low; find them in the texts with `tokenization check TRAIN --valid VALID`",
            file=sys.stderr,
        )
