"""Turns the tokens of a text being generated into characters that can be shown, up to a stop string.

Each token can be shown with its log-probability. How the tokens are drawn is in writer.py.
"""

import codecs
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm.generation.texts import Drawn, Text
from lm.generation.writer import Writer, write_texts
from tokenization import InputError, Tokenizer


class TextStream:
    """Turns a text's tokens into characters as they come.

    It returns only whole characters, and none that may yet turn out to be part of a stop string. The text ends before
    the first stop string; then stopped is True. Raises InputError for an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        if "" in stops:
            raise InputError("an empty stop string would end every text before its first token; leave it out")
        self.tokenizer, self.stops, self.stopped = tokenizer, stops, False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        self.shown = 0  # number of characters
        self.offsets: list[int] = []  # for each token: the number of the character that its first byte belongs to

    def feed(self, token_id: int) -> str:
        """Adds a token, and returns the characters that can be shown now."""
        data = self.tokenizer.decode_bytes([token_id])
        self.held += self.decoder.decode(data[:1])
        begins_whole = bool(data) and not self.decoder.getstate()[0]  # the first byte completes a character
        self.offsets.append(self.shown + len(self.held) - begins_whole)
        self.held += self.decoder.decode(data[1:])
        return self._release(
            max((n for stop in self.stops for n in self._lengths(stop) if self.held.endswith(stop[:n])), default=0)
        )

    def _lengths(self, stop: str) -> range:
        """How many of a stop string's first characters, but not all, may be the last that are held."""
        return range(1, min(len(stop), len(self.held) + 1))

    def close(self) -> str:
        """Returns the remaining characters, when no token follows."""
        self.held += self.decoder.decode(b"", final=True)
        return self._release(0)

    @property
    def tokens_shown(self) -> int:
        """The number of tokens that begin within the characters shown."""
        return bisect_left(self.offsets, self.shown)

    def _release(self, kept: int) -> str:
        if self.stopped:
            return ""
        ends = [end for stop in self.stops if (end := self.held.find(stop)) >= 0]
        self.stopped = bool(ends)
        cut = min(ends) if ends else len(self.held) - kept
        text, self.held = self.held[:cut], "" if ends else self.held[cut:]
        self.shown += len(text)
        return text


@dataclass
class Continuation:
    """A prompt and what is shown of its completion; echo: the prompt is shown first."""

    prompt: str
    text: Text
    stream: TextStream
    echo: bool = False
    written: str = ""
    drawn: list[Drawn] = field(default_factory=list)
    listed: list[tuple[Drawn, int]] = field(default_factory=list)  # the tokens shown, and where each begins
    over: bool = False  # nothing more will be shown

    def feed(self, drawn: Drawn) -> str:
        """Adds a token, or the end of the text, and returns the characters that can be shown now."""
        begins = not self.drawn and not self.listed
        shown = self.prompt if begins and self.echo else ""
        if begins and self.echo:
            self.list_prompt()
        if drawn.token_id is not None:
            self.drawn.append(drawn)
            shown += self.stream.feed(drawn.token_id)
        self.over = self.stream.stopped or drawn.last
        if self.over:
            shown += self.stream.close()
        self.written += shown
        self.list_tokens(drawn)
        return shown

    def list_prompt(self) -> None:
        """Lists the prompt's tokens, for an echo with log-probabilities."""
        stream = TextStream(self.stream.tokenizer)
        for each in self.text.scored:
            assert each.token_id is not None
            stream.feed(each.token_id)
        self.listed += zip(self.text.scored, stream.offsets, strict=True)

    def list_tokens(self, newest: Drawn) -> None:
        """Lists the tokens shown, without those that a stop string cuts off; an end that the model drew comes last."""
        before, start = (len(self.text.scored), len(self.prompt)) if self.echo else (0, 0)
        whole = self.over and not self.stream.stopped
        until = len(self.drawn) if whole else self.stream.tokens_shown
        already = len(self.listed) - before
        offsets = self.stream.offsets[already:until]
        self.listed += ((each, start + offset) for each, offset in zip(self.drawn[already:until], offsets, strict=True))
        if whole and newest.token_id is None and newest.log_probability is not None:
            self.listed.append((newest, len(self.written)))

    @property
    def finish_reason(self) -> str:
        """Why the completion ended: "stop", "length" or "error"; "" while it goes on."""
        return "stop" if self.stream.stopped else self.text.finish

    def record(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Returns the continuation as a JSON object."""
        found = {
            "prompt": self.prompt,
            "text": self.written,
            "finish_reason": self.finish_reason,
            "tokens": len(self.drawn),
            "seed": self.text.seed,
        }
        if self.text.top is not None:
            found["logprobs"] = [
                token_record(tokenizer, drawn) for drawn, _ in self.listed if drawn.token_id is not None
            ]
        return found


LEAST = -9999.0  # stands for -infinity, which JSON does not have, as in OpenAI's API


def token_record(tokenizer: Tokenizer, drawn: Drawn) -> dict[str, Any]:
    """Returns a drawn token with its log-probability, and the likeliest tokens if they were asked for."""
    token_id = tokenizer.end_of_text_id if drawn.token_id is None else drawn.token_id
    assert token_id is not None
    log_probability = drawn.log_probability
    found: dict[str, Any] = {
        "token": name_token(tokenizer, token_id),
        "logprob": None if log_probability is None else max(log_probability, LEAST),
    }
    if drawn.likeliest:
        found["top"] = {name_token(tokenizer, token_id): max(value, LEAST) for token_id, value in drawn.likeliest}
    return found


def name_token(tokenizer: Tokenizer, token_id: int) -> str:
    """Returns a token's characters; one that is not UTF-8 by itself is named by its bytes, as in OpenAI's API."""
    data = tokenizer.decode_bytes([token_id])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def write_continuations(
    writer: Writer, continuations: Sequence[Continuation], rows: int
) -> Iterator[tuple[Continuation, str]]:
    """Generates the continuations, at most `rows` at a time; yields each with the characters that it can now show."""
    by_number = {continuation.text.number: continuation for continuation in continuations}
    for drawn in write_texts(writer, (continuation.text for continuation in continuations), rows):
        continuation = by_number[drawn.text.number]
        shown = continuation.feed(drawn)
        if continuation.over and not continuation.text.finish:  # a stop string has ended it
            writer.drop(continuation.text)
        yield continuation, shown
