"""What a request for completions is answered, as OpenAI's API has it: whole, chunk by chunk, or with an error.

How the request is read is in completions.py, and what of a text can be shown in pieces.py.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lm.generation import Drawn, Text
from lm.pieces import Piece, describe
from tokenization import Tokenizer


class Refused(Exception):
    """An answer that is an error; param: the name of what is wrong."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 429 else "server_busy" if self.status == 429 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.status}}


def to_json(content: Any) -> bytes:
    """Raises ValueError for NaN and infinity, which JSON has not; a lone surrogate is written as JSON's escape."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


@dataclass
class Completions:
    """One request: its choices, in order, and what has come of them. notice: what its sender should know."""

    model: str
    tokenizer: Tokenizer
    pieces: list[Piece]
    copies: int  # of each prompt
    stream: bool
    include_usage: bool
    notice: str | None = None
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def texts(self) -> list[Text]:
        return [piece.text for piece in self.pieces]

    @property
    def over(self) -> bool:
        return all(piece.over for piece in self.pieces)

    def take(self, drawn: Drawn) -> dict[str, Any] | None:
        """A token of one of the texts; what a stream says of it, or None where there is nothing to say yet."""
        piece = self.pieces[drawn.text.number]
        before = len(piece.listed)
        shown = piece.take(drawn)
        wants_logprobs = piece.text.top is not None
        if not (shown or piece.over or wants_logprobs):
            return None
        logprobs = self.logprobs(piece.listed[before:]) if wants_logprobs else None
        reason = piece.finish_reason if piece.over else None
        choice = {"index": piece.text.number, "text": shown, "logprobs": logprobs, "finish_reason": reason}
        return self.head() | {"choices": [choice]}

    def head(self) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return head | ({"notice": self.notice} if self.notice else {})

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": piece.text.number,
                "text": piece.written,
                "logprobs": self.logprobs(piece.listed) if piece.text.top is not None else None,
                "finish_reason": piece.finish_reason,
            }
            for piece in self.pieces
        ]
        return self.head() | {"choices": choices, "usage": self.usage()}

    def last_chunk(self) -> dict[str, Any]:
        """With the usage, which a stream may ask for."""
        return self.head() | {"choices": [], "usage": self.usage()}

    def logprobs(self, listed: Sequence[tuple[Drawn, int]]) -> dict[str, Any]:
        """The first token of a prompt has none: nothing came before it."""
        each = [describe(self.tokenizer, drawn) for drawn, _ in listed]
        return {
            "tokens": [one["token"] for one in each],
            "token_logprobs": [one["logprob"] for one in each],
            "top_logprobs": [None if one["logprob"] is None else one.get("top", {}) for one in each],
            "text_offset": [offset for _, offset in listed],
        }

    def usage(self) -> dict[str, int]:
        read = sum(len(piece.text.prompt) for piece in self.pieces if piece.text.number % self.copies == 0)
        written = sum(len(piece.drawn) for piece in self.pieces)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
