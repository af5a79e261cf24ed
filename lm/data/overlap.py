"""Warns of validation documents that are also in the training text: their loss says little about other text."""

import sys

from lm.data.datamodule import TokenDataModule
from tokenization.tokens.document_digests import count_shared


def warn_of_overlap(data: TokenDataModule) -> None:
    """Prints a line if documents of the validation token file are in those for training. Old files do not tell."""
    shared, documents = count_shared([source.path for source in data.sources], data.val_path)
    if shared:
        verb = "seems" if shared == 1 else "seem"
        print(
            f"lm: {data.val_path}: {shared:,} of its {documents:,} documents ({shared / documents:.2%}) {verb} to be in"
            " the training data, too, which lowers the loss; `tokenization check TRAIN --valid VALID` finds them in the"
            " texts",
            file=sys.stderr,
        )
