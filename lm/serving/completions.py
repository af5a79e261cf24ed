"""Reads a request for completions, in the form of OpenAI's API: from JSON to texts to generate.

A setting that cannot be honoured is refused, with its name and the reason, and never ignored: the sender would believe
that it had an effect. Prompts are encoded only after their number and length have been checked.
"""

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from lm.generation.continuation import Continuation, TextStream
from lm.generation.prompts import text_to_read
from lm.generation.sampling import Sampling
from lm.generation.texts import Text
from lm.serving.answers import Completions, Refused
from tokenization import InputError, Tokenizer
from tokenization.pretokenization import cut_into_chunks


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for, and the longest that it may take."""

    max_tokens: int = 2048  # of each completion
    prompt_tokens: int = 8192
    prompt_characters: int = 1 << 17
    texts: int = 16  # prompts times n
    logprobs: int = 10
    stops: int = 4
    seconds: float = 300.0  # for the whole request, its wait included
    arrival: float = 30.0  # seconds for the headers to arrive, and again for the body


@dataclass(frozen=True)
class Served:
    """The model that requests are for: its name, tokenizer and context length, and the limits."""

    name: str
    tokenizer: Tokenizer
    context_length: int
    limits: Limits


NUMBERS: dict[str, tuple[type, Any, float, float]] = {  # name: its type, default, least, most
    "max_tokens": (int, 16, 1, math.inf),
    "temperature": (float, 1.0, 0, 100),
    "top_p": (float, 1.0, 0, 1),
    "top_k": (int, None, 1, math.inf),
    "min_p": (float, 0.0, 0, 1),
    "repetition_penalty": (float, 1.0, 0.01, 100),
    "n": (int, 1, 1, 1 << 31),
    "seed": (int, None, 0, (1 << 62) - 1),
    "logprobs": (int, None, 0, math.inf),
}
# Not supported; each with the value that has no effect.
WITHOUT = {"suffix": "", "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0}
STOP = 1000  # the most characters of a stop string
OTHERS = ("model", "prompt", "stop", "stream", "stream_options", "echo", "best_of", "user")


def read_body(content: bytes, served: Served) -> Completions:
    """Reads the body of a POST to /v1/completions; raises Refused if anything in it is wrong."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused("the body is not valid JSON") from None
    return read_request(body, served)


def read_request(body: Any, served: Served) -> Completions:
    """Reads a request from its parsed JSON; raises Refused if anything in it is wrong."""
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object with a prompt")
    limits = served.limits
    check_names(body, served.name)
    stops, copies = read_stops(body, limits), number(body, "n")
    check_best_of(body, copies)
    stream, echo, include_usage = boolean(body, "stream"), boolean(body, "echo"), read_stream_options(body)
    max_tokens = min(number(body, "max_tokens", limits.max_tokens, 0 if echo else 1), limits.max_tokens)
    top = number(body, "logprobs", limits.logprobs)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    try:
        sampling = Sampling(**{name: number(body, name) for name in names})
    except InputError as error:
        raise Refused(str(error), str(error).split()[0]) from None
    seed = number(body, "seed")
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    prompts = parse_prompts(body, copies, served)
    scores_prompt = echo and top is not None
    notice = check_context(prompts, scores_prompt, served.context_length)
    continuations: list[Continuation] = []
    for prompt, ids in prompts:
        for _ in range(copies):
            text = Text(ids, max_tokens, sampling, seed + len(continuations), top, len(continuations), scores_prompt)
            continuations.append(Continuation(prompt, text, TextStream(served.tokenizer, stops), echo))
    return Completions(served.name, served.tokenizer, continuations, copies, stream, include_usage, notice)


# --- one setting each ------------------------------------------------------------------------------------------------


def check_names(body: Mapping[str, Any], model: str) -> None:
    """Refuses unknown settings, unsupported ones with an effect, and another model."""
    if unknown := set(body) - set(NUMBERS) - set(WITHOUT) - set(OTHERS):
        name = min(unknown)
        raise Refused(f"{name[:60]} is unknown; the settings are {', '.join((*OTHERS, *NUMBERS))}", name[:60])
    for name, neutral in WITHOUT.items():
        if body.get(name) not in (None, neutral):
            raise Refused(f"{name} is not supported; leave it out", name)
    if body.get("model") not in (None, model):
        raise Refused(f"model {shorten(body['model'])} is not served here; {model!r} is", "model", 404)


def shorten(value: Any) -> str:
    """Formats a stranger's value for a message, in 60 characters at most."""
    try:
        return repr(str(value)[:60])
    except RecursionError:
        return "nested too deeply"


def number(body: Mapping[str, Any], name: str, most: float | None = None, least: float | None = None) -> Any:
    """Reads a number, or its default; least and most override the limits in NUMBERS."""
    kind, default, lowest, highest = NUMBERS[name]
    value: Any = body.get(name)
    if value is None:
        return default
    least, most = lowest if least is None else least, highest if most is None else most
    allowed = f"from {least} to {most}" if most < math.inf else f"at least {least}"
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 53 else math.nan
    if type(value) is not kind or not least <= cast(float, value) <= most:
        word = "a whole number" if kind is int else "a number"
        raise Refused(f"{name} is {shorten(body[name])}; it must be {word}, {allowed}", name)
    return value


def boolean(body: Mapping[str, Any], name: str) -> bool:
    """Reads true or false; false if it is absent."""
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise Refused(f"{name} is {shorten(value)}; it must be true or false", name)
    return bool(value)


def check_best_of(body: Mapping[str, Any], copies: int) -> None:
    """Refuses a best_of that would generate more texts than are returned."""
    best_of = body.get("best_of")
    if best_of is not None and (type(best_of) is not int or best_of != copies):
        raise Refused(f"best_of is not supported, except equal to n, which is {copies}; leave it out", "best_of")


def read_stops(body: Mapping[str, Any], limits: Limits) -> list[str]:
    """Reads the stop strings, one or a list."""
    value = body.get("stop")
    stops = [] if value is None else value if isinstance(value, list) else [value]
    if len(stops) > limits.stops or not all(isinstance(stop, str) and 0 < len(stop) <= STOP for stop in stops):
        raise Refused(f"stop must be a string of 1 to {STOP} characters, or a list of at most {limits.stops}", "stop")
    return stops


def read_stream_options(body: Mapping[str, Any]) -> bool:
    """Returns whether the stream is to end with the usage."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise Refused('stream_options can be {"include_usage": true}', "stream_options")
    if boolean(options, "include_obfuscation"):
        raise Refused("include_obfuscation is not supported; leave it out", "include_obfuscation")
    return boolean(options, "include_usage")


# --- prompts ---------------------------------------------------------------------------------------------------------


def parse_prompts(body: Mapping[str, Any], copies: int, served: Served) -> list[tuple[str, list[int]]]:
    """Reads the prompts, a string, token ids or a list of either, as (text, ids) of each; counts before it encodes."""
    value = body.get("prompt")
    if value is None:
        raise Refused('prompt is missing; "" begins a new document', "prompt")
    prompts = value if isinstance(value, list) and not (value and type(value[0]) is int) else [value]
    if not prompts:
        raise Refused("prompt is an empty list; give at least one", "prompt")
    if len(prompts) * copies > served.limits.texts:
        raise Refused(
            f"{len(prompts)} prompts times n = {copies} are too many; at most {served.limits.texts} are possible", "n"
        )
    return [read_prompt(prompt, served) for prompt in prompts]


def read_prompt(prompt: Any, served: Served) -> tuple[str, list[int]]:
    """Reads one prompt, a string or token ids, as (text, ids); an empty string begins a new document."""
    tokenizer, most = served.tokenizer, served.limits.prompt_tokens
    if isinstance(prompt, str):
        if len(prompt) > (characters := served.limits.prompt_characters):
            raise Refused(f"prompt has {len(prompt)} characters; at most {characters} are possible", "prompt")
        try:
            ids = encode_at_most(tokenizer, text_to_read(prompt, tokenizer), most)
        except InputError as error:
            raise Refused(f"prompt: {error}", "prompt") from None
        return prompt, ids
    if not isinstance(prompt, list) or not prompt:
        raise Refused("prompt must be a string, a list of token ids, or a list of such, with something in it", "prompt")
    if len(prompt) > most:
        raise Refused(f"prompt has {len(prompt)} tokens; at most {most} are possible", "prompt")
    if not all(type(token_id) is int for token_id in prompt):
        raise Refused("prompt must be a string, a list of token ids, or a list of such, with something in it", "prompt")
    wrong = next((token_id for token_id in prompt if token_id not in tokenizer.vocab), None)
    if wrong is not None:
        raise Refused(f"prompt: {str(wrong)[:20]} is not a token id; ids are below {tokenizer.vocab_size}", "prompt")
    return tokenizer.decode(prompt), prompt


BLOCK = 1 << 12  # characters that are encoded at once


def encode_at_most(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """Encodes a text; raises Refused as soon as it has more than `most` tokens."""
    ids: list[int] = []
    blocks = (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))
    for piece in cut_into_chunks(blocks, tokenizer.special_tokens, tokenizer.pattern, BLOCK):
        ids += tokenizer.encode(piece)
        if len(ids) > most:
            raise Refused(f"prompt has more than {most} tokens; at most {most} are possible", "prompt")
    return ids


def check_context(prompts: list[tuple[str, list[int]]], scored: bool, context_length: int) -> str | None:
    """Returns a notice for a prompt that is longer than the context; raises Refused if all of it is to be scored."""
    longest = max(len(ids) for _, ids in prompts)
    if longest <= context_length:
        return None
    if scored:
        raise Refused(
            f"prompt has {longest} tokens; echo with logprobs is possible for at most {context_length}, the model's"
            " context_length",
            "prompt",
        )
    return (
        f"the prompt has {longest} tokens, and the model sees {context_length} at once: only the last"
        f" {max(1, context_length // 2)} were read"
    )
