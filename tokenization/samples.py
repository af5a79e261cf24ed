"""Samples of text to compare tokenizers on: the beginning, or documents drawn at random from all of it."""

import random
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from tokenization.errors import InputError
from tokenization.pretokenization import END_OF_TEXT
from tokenization.text.corpus import Corpus
from tokenization.text.documents import BETWEEN_CHARACTER, holds_documents
from tokenization.text.places import Place

MAX_DOCUMENT = 64_000_000  # characters


class Sample(NamedTuple):
    """Texts that are encoded one by one."""

    name: str  # of the file, folder or glob they are from
    texts: list[str]
    found: int  # how many documents they were drawn from

    @property
    def num_bytes(self) -> int:
        """The size of all the texts together, as UTF-8."""
        return sum(len(text.encode()) for text in self.texts)


def beginning(name: str, num_bytes: int, errors: str = "strict", text_field: str | None = None) -> Sample:
    """Returns the beginning of a file, folder or glob, the characters of num_bytes, at least one, read block by block.

    Records are joined by <|endoftext|>. errors, text_field: see Corpus.
    """
    corpus, blocks, length = Corpus([name], errors, text_field=text_field), [], 0
    for block in (block for file in corpus.files for block in corpus.blocks(file)):
        blocks.append(block.replace(BETWEEN_CHARACTER, END_OF_TEXT))
        length += len(blocks[-1].encode(errors="surrogatepass"))
        if length >= num_bytes:
            break
    text = "".join(blocks)
    text = text[: max(1, len(text.encode(errors="surrogatepass")[:num_bytes].decode(errors="ignore")))]
    if not text:
        raise InputError(f"{name}: is empty; there is nothing to compare")
    return Sample(name, [text], 1)


def draw_documents(
    name: str, count: int, seed: int, errors: str = "strict", text_field: str | None = None, progress: bool = False
) -> Sample:
    """Draws documents at random, each with the same probability, in one pass over a file, folder or glob.

    They come in the order of the text; all of them where there are no more than `count`. The same seed gives the same
    ones. errors, text_field: see Corpus.
    """
    source, drawn, found = random.Random(seed), list[tuple[int, str]](), 0
    corpus = Corpus([name], errors, "drawing documents" if progress else "", text_field)
    with closing(corpus):
        for number, document in enumerate(documents(corpus)):
            found = number + 1
            if number < count:
                drawn.append((number, document))
            elif (place := source.randrange(found)) < count:  # the newest stays with probability count / found
                drawn[place] = (number, document)
    if not drawn:
        raise InputError(f"{name}: has no document that is not blank; there is nothing to compare")
    return Sample(name, [document for _, document in sorted(drawn)], found)


def documents(corpus: Corpus) -> Iterator[str]:
    """Yields the documents of all files, unless they are blank."""
    for file in corpus.files:
        yield from filter(str.strip, split_documents(corpus, file))


def split_documents(corpus: Corpus, file: Place) -> Iterator[str]:
    """Yields the records of a file, or what stands between <|endoftext|> and its ends, blank ones as well."""
    separator, rest = BETWEEN_CHARACTER if holds_documents(file.name) else END_OF_TEXT, ""
    for block in corpus.blocks(file):
        *ended, rest = (rest + block).split(separator)
        yield from ended
        if len(rest) > MAX_DOCUMENT:
            raise InputError(
                f"{file}: has a document of more than {MAX_DOCUMENT:,} characters; put {END_OF_TEXT} between documents"
            )
    yield rest
