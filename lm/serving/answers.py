"""The answers to a request for completions, in the form of OpenAI's API: whole, in chunks, or an error.

How the request is read is in completions.py; which characters of a text can be shown is in continuation.py.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lm.generation.continuation import Continuation, token_record
from lm.generation.texts import Drawn, Text
from tokenization import Tokenizer


class Refused(Exception):
    """A request that is answered by an error; param: the name of the wrong setting, status: of HTTP."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status

    def body(self) -> dict[str, Any]:
        """Returns the error as a JSON object in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 429 else "server_busy" if self.status == 429 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.status}}


def to_json(content: Any) -> bytes:
    """Encodes JSON; ValueError for NaN and infinity, which JSON does not have. Lone surrogates are escaped."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


@dataclass
class Completions:
    """The answer to one request as it grows: its choices, in order. notice: a remark for the sender."""

    model: str
    tokenizer: Tokenizer
    continuations: list[Continuation]
    copies: int  # of each prompt
    stream: bool
    include_usage: bool
    notice: str | None = None
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def texts(self) -> list[Text]:
        """The texts to generate, one for each choice."""
        return [continuation.text for continuation in self.continuations]

    @property
    def over(self) -> bool:
        """Whether all texts have ended."""
        return all(continuation.over for continuation in self.continuations)

    def feed(self, drawn: Drawn) -> dict[str, Any] | None:
        """Adds a token of one of the texts; returns its chunk of a stream, or None if there is nothing to send yet."""
        continuation = self.continuations[drawn.text.number]
        if continuation.over:  # by a stop string, of which the engine learns later
            return None
        before = len(continuation.listed)
        shown = continuation.feed(drawn)
        wants_logprobs = continuation.text.top is not None
        if not (shown or continuation.over or wants_logprobs):
            return None
        logprobs = self.logprobs(continuation.listed[before:]) if wants_logprobs else None
        reason = continuation.finish_reason if continuation.over else None
        choice = {"index": continuation.text.number, "text": shown, "logprobs": logprobs, "finish_reason": reason}
        return self.head() | {"choices": [choice]}

    def head(self) -> dict[str, Any]:
        """Returns what every answer and chunk begins with."""
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return head | ({"notice": self.notice} if self.notice else {})

    def whole(self) -> dict[str, Any]:
        """Returns the answer to a request without a stream."""
        choices = [
            {
                "index": continuation.text.number,
                "text": continuation.written,
                "logprobs": self.logprobs(continuation.listed) if continuation.text.top is not None else None,
                "finish_reason": continuation.finish_reason,
            }
            for continuation in self.continuations
        ]
        return self.head() | {"choices": choices, "usage": self.usage()}

    def last_chunk(self) -> dict[str, Any]:
        """Returns the last chunk of a stream, which has the usage."""
        return self.head() | {"choices": [], "usage": self.usage()}

    def logprobs(self, listed: Sequence[tuple[Drawn, int]]) -> dict[str, Any]:
        """Returns the log-probabilities in OpenAI's form; None for the first token of a prompt: nothing predicts it."""
        each = [token_record(self.tokenizer, drawn) for drawn, _ in listed]
        for one in each:
            one.setdefault("top", {}).setdefault(one["token"], one["logprob"])  # the drawn one is listed, too
        return {
            "tokens": [one["token"] for one in each],
            "token_logprobs": [one["logprob"] for one in each],
            "top_logprobs": [None if one["logprob"] is None else one["top"] for one in each],
            "text_offset": [offset for _, offset in listed],
        }

    def usage(self) -> dict[str, int]:
        """Counts tokens read and generated; a prompt with several copies counts once."""
        read = sum(
            len(continuation.text.prompt)
            for continuation in self.continuations
            if continuation.text.number % self.copies == 0
        )
        written = sum(len(continuation.drawn) for continuation in self.continuations)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
