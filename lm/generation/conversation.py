"""A conversation with a model: the user types, the model continues, the user types on.

Everything typed and generated is one text. The seed grows by 1 with every continuation, so that a whole conversation
can be repeated.
"""

from collections.abc import Generator, Sequence
from dataclasses import fields, replace
from typing import Any

from lm.generation.continuation import TextStream
from lm.generation.prompts import text_to_read
from lm.generation.sampling import Sampling
from lm.generation.texts import Text
from lm.generation.writer import Writer
from tokenization import InputError, Tokenizer
from tokenization.numerals import decimal_number, whole_number


class Conversation:
    """The text so far, and the settings of its continuation."""

    def __init__(
        self,
        writer: Writer,
        tokenizer: Tokenizer,
        sampling: Sampling,
        seed: int,
        max_new_tokens: int,
        stops: Sequence[str],
    ):
        self.writer, self.tokenizer, self.sampling, self.stops = writer, tokenizer, sampling, stops
        self.seed, self.max_new_tokens = seed, max_new_tokens
        self.text, self.before = "", ""  # the whole text; the text before the model's last continuation

    def forget(self) -> None:
        """Begins a new text."""
        self.text = self.before = ""

    def take_back(self) -> str:
        """Removes the model's last continuation, and returns the text that is left."""
        self.text = self.before
        return self.text

    def go_on(self, words: str = "") -> Generator[str, None, None]:
        """Appends the words, and returns an iterator over the model's continuation, as it is generated.

        It ends by the model's end-of-text token, a stop string or max_new_tokens, or when the iterator is closed. The
        iterator raises the error of a continuation that failed.
        """
        whole = self.text + words
        ids = self.tokenizer.encode(text_to_read(whole, self.tokenizer))  # raises InputError for what is no text
        self.text = self.before = whole
        text = Text(ids, self.max_new_tokens, self.sampling, self.seed)
        stream = TextStream(self.tokenizer, self.stops)
        self.seed += 1
        return self._write(text, stream)

    def _write(self, text: Text, stream: TextStream) -> Generator[str, None, None]:
        self.writer.add(text)
        try:
            while not (text.finish or stream.stopped):
                (drawn,) = self.writer.step()
                if drawn.token_id is not None:
                    yield self._add(stream.feed(drawn.token_id))
            yield self._add(stream.close())
        finally:
            if text in self.writer.texts:
                self.writer.drop(text)
        if text.error:
            raise text.error

    def _add(self, written: str) -> str:
        self.text += written
        return written

    def set(self, name: str, values: list[str]) -> None:
        """Changes a setting; InputError for an unknown name or a value out of its range."""
        own, of_sampling = ("seed", "max_new_tokens"), [each.name for each in fields(Sampling)]
        if name not in (*own, *of_sampling) or len(values) != 1:
            names = ", /".join((*of_sampling, *own))
            raise InputError(f"/{' '.join([name, *values])}: the settings are /{names}, each with a number; see /help")
        try:
            read = whole_number if name in (*own, "top_k") else decimal_number
            value: Any = None if (name, values[0]) == ("top_k", "none") else read(values[0])
        except ValueError:
            raise InputError(f"/{name} {values[0]}: is not a number of the right kind") from None
        if name in of_sampling:
            self.sampling = replace(self.sampling, **{name: value})
            return
        least = 1 if name == "max_new_tokens" else 0
        if not least <= value < 1 << 62:
            raise InputError(f"/{name} {value}: it must be at least {least} and below 2^62")
        setattr(self, name, value)
