"""What one sees of a text that is being written: characters instead of tokens, up to a stop string, and how likely each
token was."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm.generation import Drawn, Text, Writer, write_texts
from tokenization import InputError, Tokenizer


class TextStream:
    """The characters of a text as its tokens come: only whole ones, and none that may yet turn out to be of a stop
    string. The text ends before the first of these; stopped says that it has."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        if "" in stops:
            raise InputError("an empty stop string would end every text before it begins; leave it out")
        self.tokenizer, self.stops, self.stopped = tokenizer, stops, False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""

    def feed(self, token_id: int) -> str:
        """What can be shown now."""
        self.held += self.decoder.decode(self.tokenizer.decode_bytes([token_id]))
        return self._release(
            max((n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0)
        )

    def close(self) -> str:
        """What is left, when no token comes any more."""
        self.held += self.decoder.decode(b"", final=True)
        return self._release(0)

    def _release(self, kept: int) -> str:
        if self.stopped:
            return ""
        ends = [end for stop in self.stops if (end := self.held.find(stop)) >= 0]
        self.stopped = bool(ends)
        cut = min(ends) if ends else len(self.held) - kept
        text, self.held = self.held[:cut], "" if ends else self.held[cut:]
        return text


@dataclass
class Piece:
    """A prompt, and what comes of it."""

    prompt: str
    text: Text
    stream: TextStream
    written: str = ""
    drawn: list[Drawn] = field(default_factory=list)
    over: bool = False  # nothing more of it comes

    def take(self, drawn: Drawn) -> str:
        """A token more, or the end; what can be shown now."""
        shown = ""
        if drawn.token_id is not None:
            self.drawn.append(drawn)
            shown = self.stream.feed(drawn.token_id)
        self.over = self.stream.stopped or drawn.last
        if self.over:
            shown += self.stream.close()
        self.written += shown
        return shown

    @property
    def finish_reason(self) -> str:
        return "stop" if self.stream.stopped else self.text.finish

    def record(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """For a line of JSON."""
        found = {
            "prompt": self.prompt,
            "text": self.written,
            "finish_reason": self.finish_reason,
            "tokens": len(self.drawn),
            "seed": self.text.seed,
        }
        if self.text.top is not None:
            found["logprobs"] = [describe(tokenizer, drawn) for drawn in self.drawn]
        return found


def describe(tokenizer: Tokenizer, drawn: Drawn) -> dict[str, Any]:
    """A token that was drawn, with its log-probability, and those of the likeliest where they were asked for."""
    assert drawn.token_id is not None
    found: dict[str, Any] = {"token": name_token(tokenizer, drawn.token_id), "logprob": drawn.log_probability}
    if drawn.likeliest:
        found["top"] = {name_token(tokenizer, token_id): value for token_id, value in drawn.likeliest}
    return found


def name_token(tokenizer: Tokenizer, token_id: int) -> str:
    """Its text; a token that is not UTF-8 by itself is shown by its bytes, as OpenAI's API does."""
    data = tokenizer.decode_bytes([token_id])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def write_pieces(writer: Writer, pieces: Sequence[Piece], rows: int) -> Iterator[tuple[Piece, str]]:
    """Each with what can be shown of it, as it grows; so many at once."""
    by_number = {piece.text.number: piece for piece in pieces}
    for drawn in write_texts(writer, (piece.text for piece in pieces), rows):
        piece = by_number[drawn.text.number]
        shown = piece.take(drawn)
        if piece.over and not piece.text.finish:  # a stop string has ended it
            writer.drop(piece.text)
        yield piece, shown
