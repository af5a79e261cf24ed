"""A request for completions, as OpenAI's API has it, from JSON to texts to write, and what is answered.

What cannot be done is refused by name and with the reason, never passed over: a setting without effect would be taken
for one with it.
"""

import math
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lm.generation import Drawn, Text
from lm.pieces import Piece, TextStream, describe
from lm.sampling import Sampling
from tokenization import END_OF_TEXT, InputError, Tokenizer


class Refused(Exception):
    """A 4xx; param: the name of what is wrong."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 429 else "server_busy" if self.status == 429 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.status}}


@dataclass(frozen=True)
class Limits:
    max_tokens: int = 2048  # of a text
    prompt_tokens: int = 8192
    texts: int = 16  # of a request
    logprobs: int = 10
    stops: int = 4
    seconds: float = 300.0  # of a request, with its wait


NUMBERS: dict[str, tuple[type, Any, float, float]] = {  # name: its type, default, least, most
    "max_tokens": (int, 16, 1, math.inf),
    "temperature": (float, 1.0, 0, 100),
    "top_p": (float, 1.0, 0, 1),
    "top_k": (int, None, 1, math.inf),
    "min_p": (float, 0.0, 0, 1),
    "repetition_penalty": (float, 1.0, 0.01, 100),
    "n": (int, 1, 1, math.inf),
    "seed": (int, None, 0, (1 << 62) - 1),
    "logprobs": (int, None, 0, math.inf),
}
WITHOUT = {"suffix": None, "best_of": 1, "logit_bias": None, "presence_penalty": 0, "frequency_penalty": 0}
OTHERS = ("model", "prompt", "stop", "stream", "stream_options", "echo", "user")


@dataclass
class Completions:
    """One request: its choices, in order, and what has come of them."""

    model: str
    tokenizer: Tokenizer
    pieces: list[Piece]
    copies: int  # of each prompt
    stream: bool
    echo: bool
    include_usage: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def texts(self) -> list[Text]:
        return [piece.text for piece in self.pieces]

    @property
    def over(self) -> bool:
        return all(piece.over for piece in self.pieces)

    def take(self, drawn: Drawn) -> tuple[Piece, str]:
        piece = self.pieces[drawn.text.number]
        return piece, piece.take(drawn)

    def head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def chunk(self, piece: Piece, shown: str, drawn: Drawn | None) -> dict[str, Any]:
        """What a stream says of one token; None is its beginning, with the prompt where that is echoed."""
        logprobs = None
        if drawn is not None and drawn.token_id is not None and piece.text.top is not None:
            logprobs = self.logprobs([drawn], len(piece.written) - len(shown))
        reason = piece.finish_reason if piece.over else None
        choice = {"index": piece.text.number, "text": shown, "logprobs": logprobs, "finish_reason": reason}
        return self.head() | {"choices": [choice]}

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": piece.text.number,
                "text": (piece.prompt if self.echo else "") + piece.written,
                "logprobs": self.logprobs(piece.drawn, 0) if piece.text.top is not None else None,
                "finish_reason": piece.finish_reason,
            }
            for piece in self.pieces
        ]
        return self.head() | {"choices": choices, "usage": self.usage()}

    def logprobs(self, drawn: Sequence[Drawn], offset: int) -> dict[str, Any]:
        """offset: characters of the text before."""
        each = [describe(self.tokenizer, one) for one in drawn if one.token_id is not None]
        offsets = []
        for one in each:
            offsets.append(offset)
            offset += len(one["token"]) if not one["token"].startswith("bytes:") else 0
        return {
            "tokens": [one["token"] for one in each],
            "token_logprobs": [one["logprob"] for one in each],
            "top_logprobs": [one.get("top", {}) for one in each],
            "text_offset": offsets,
        }

    def usage(self) -> dict[str, int]:
        read = sum(len(piece.text.prompt) for piece in self.pieces if piece.text.number % self.copies == 0)
        written = sum(len(piece.drawn) for piece in self.pieces)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


# --- reading a request -----------------------------------------------------------------------------------------------


def number(body: Mapping[str, Any], name: str, most: float | None = None) -> Any:
    kind, default, least, highest = NUMBERS[name]
    value: Any = body.get(name)
    if value is None:
        return default
    highest = most or highest
    allowed = f"from {least} to {highest}" if highest < math.inf else f"at least {least}"
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 53 else math.nan
    if type(value) is not kind or not least <= cast(float, value) <= highest:
        word = "a whole number" if kind is int else "a number"
        raise Refused(f"{name} is {str(body[name])[:60]!r}; it must be {word}, {allowed}", name)
    return value


def boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise Refused(f"{name} is {str(value)[:60]!r}; it must be true or false", name)
    return bool(value)


def read_prompts(body: Mapping[str, Any], tokenizer: Tokenizer, limits: Limits) -> list[tuple[str, list[int]]]:
    """(text, ids) of each: a string, ids, or a list of either."""
    value = body.get("prompt")
    if value is None:
        raise Refused('prompt is missing; "" begins a new document', "prompt")
    several = isinstance(value, list) and not (value and all(type(entry) is int for entry in value))
    prompts = []
    for prompt in value if several else [value]:
        if isinstance(prompt, str):
            try:
                ids = tokenizer.encode(prompt or END_OF_TEXT)
            except InputError as error:
                raise Refused(f"prompt: {error}", "prompt") from None
        elif isinstance(prompt, list) and prompt and all(type(token_id) is int for token_id in prompt):
            wrong = next((token_id for token_id in prompt if token_id not in tokenizer.vocab), None)
            if wrong is not None:
                raise Refused(f"prompt: {wrong} is no token id; there are ids below {tokenizer.vocab_size}", "prompt")
            ids, prompt = prompt, tokenizer.decode(prompt)
        else:
            raise Refused(
                "prompt must be a string, a list of token ids, or a list of such, with something in it", "prompt"
            )
        if len(ids) > limits.prompt_tokens:
            raise Refused(f"prompt has {len(ids)} tokens; {limits.prompt_tokens} at most are read", "prompt")
        prompts.append((prompt, ids))
    if not prompts:
        raise Refused("prompt is an empty list; at least one text must be begun", "prompt")
    return prompts


def read_stops(body: Mapping[str, Any], limits: Limits) -> list[str]:
    value = body.get("stop")
    stops = [] if value is None else value if isinstance(value, list) else [value]
    if len(stops) > limits.stops or not all(isinstance(stop, str) and 0 < len(stop) <= 1000 for stop in stops):
        raise Refused(f"stop must be a string that is not empty, or {limits.stops} at most", "stop")
    return stops


def check_names(body: Mapping[str, Any], model: str) -> None:
    if unknown := set(body) - set(NUMBERS) - set(WITHOUT) - set(OTHERS):
        name = min(unknown)
        raise Refused(f"{name[:60]} is not known here; there are {', '.join((*OTHERS, *NUMBERS))}", name[:60])
    for name, neutral in WITHOUT.items():
        if body.get(name) not in (None, neutral, {}):
            raise Refused(f"{name} cannot be honoured here; leave it out", name)
    if body.get("model") not in (None, model):
        raise Refused(f"model {str(body['model'])[:60]!r} is not served here; {model!r} is", "model", 404)


def read_request(body: Any, model: str, tokenizer: Tokenizer, limits: Limits) -> Completions:
    """The body of a POST to /v1/completions; Refused where it is wrong."""
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object with a prompt")
    check_names(body, model)
    prompts, stops, copies = read_prompts(body, tokenizer, limits), read_stops(body, limits), number(body, "n")
    if len(prompts) * copies > limits.texts:
        raise Refused(f"{len(prompts)} prompts times n = {copies} are too many texts; {limits.texts} at most", "n")
    max_tokens = number(body, "max_tokens", limits.max_tokens)
    top = number(body, "logprobs", limits.logprobs)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    try:
        sampling = Sampling(**{name: number(body, name) for name in names})
    except InputError as error:
        raise Refused(str(error), str(error).split()[0]) from None
    seed = number(body, "seed")
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    pieces: list[Piece] = []
    for prompt, ids in prompts:
        for _ in range(copies):
            text = Text(ids, max_tokens, sampling, seed + len(pieces), top, number=len(pieces))
            pieces.append(Piece(prompt, text, TextStream(tokenizer, stops)))
    options = body.get("stream_options")
    if options is not None and not (isinstance(options, dict) and set(options) <= {"include_usage"}):
        raise Refused('stream_options can be {"include_usage": true}', "stream_options")
    stream, echo, usage = boolean(body, "stream"), boolean(body, "echo"), boolean(options or {}, "include_usage")
    return Completions(model, tokenizer, pieces, copies, stream, echo, usage)
