"""Encoding and decoding in one process, by all libraries in turn, in CPU seconds.

A round takes documents of its own, so that caches know the frequent words but not the text, and every library encodes
them, each round beginning with the next one. Ratios are taken within a round, so that a machine whose speed drifts
slows both sides. Whose ids differ from tiktoken's (ours, where that is missing) is left out and named; if ours differ,
nothing is measured. A library that has used up its seconds for a row sits out the row's later rounds.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tokenizer_stages.peers import LOAD, OURS, Calls, Vocabulary, takes
from tokenizer_stages.texts import read_text

SIZES = {"100 B": 3000, "1 kB": 1000, "10 kB": 100, "100 kB": 10, "1 MB": 2, "10 MB": 1}  # documents of each, a round
UNITS = {"B": 1, "kB": 1000, "MB": 1_000_000}
TOO_SLOW = {"10 MB": "tokenizers"}
LINES = 10_000  # a round
LOADER = "loading kernels"  # the name of our thread that loads them
Row = dict[str, Any]


def measure_documents(vocabulary: Vocabulary, libraries: list[str], data: Path | None, small: bool) -> list[Row]:
    """Measures documents by size in each form, lines in batches and as a stream, and decoding by size: English."""
    rounds, sizes = (2, {"100 B": 20, "1 kB": 5}) if small else (5, SIZES)
    volume = sum(num_bytes(size) * count for size, count in sizes.items()) * (rounds + 1)
    text = read_text("english", data, max(volume, 6_000_000 if not small else 0))
    calls = load(vocabulary, libraries)
    warm_up(calls, text, small)
    rows: list[Row] = []
    documents = {size: cut(text, num_bytes(size), count, rounds) for size, count in sizes.items()}
    for form in ("list", "array"):
        for size, batches in documents.items():
            able = {name: call for name, call in calls.items() if name != TOO_SLOW.get(size)}
            rows.append({"form": form, "row": size} | race(form, able, batches))
    lines = [[batch] for batch in split_lines(text, rounds, LINES // (100 if small else 1))]
    rows.append({"form": "batch", "row": "lines"} | race("batch", calls, lines))
    streams = calls | {name: {"stream": one_by_one(call["list"])} for name, call in calls.items() if name != OURS}
    check_stream(calls[OURS], lines[0][0])
    rows.append({"form": "stream", "row": "lines"} | race("stream", streams, lines, check=False))
    for size, batches in documents.items():
        ids = [[calls[OURS]["list"](document) for document in batch] for batch in batches]
        rows.append({"form": "decode", "row": size} | race("decode", calls, ids, batches))
    return [{"section": "documents", "vocabulary": vocabulary.name, "text": "english"} | row for row in rows]


def measure_kind(vocabulary: Vocabulary, kind: str, libraries: list[str], data: Path | None, small: bool) -> list[Row]:
    """Measures documents of 100 kB of one kind of text: the first time after loading, and again the same text."""
    size, count = (1000, 4) if small else (100_000, 20)
    text = read_text(kind, data, size * count)
    calls = load(vocabulary, libraries)
    warm_up({OURS: LOAD[OURS](vocabulary)}, read_text("english", data, 6_000_000) if not small else b"", small)
    (batch,) = cut(text, size, count, 1)
    cold = race("list", calls, [batch])
    warm = race("list", calls, [batch] * (1 if small else 3), check=False)
    about = {"section": "kinds", "vocabulary": vocabulary.name, "text": kind, "row": kind}
    return [about | {"form": "cold"} | cold, about | {"form": "warm"} | warm | {"left_out": cold["left_out"]}]


# --- the race --------------------------------------------------------------------------------------------------------


def race(
    form: str,
    calls: dict[str, Calls],
    batches: list[list[Any]],
    texts: list[list[str]] | None = None,
    check: bool = True,
    seconds: float = 1.0,
) -> Row:
    """Lets all libraries take each batch, item by item, and compares what the first one became.

    texts: what the items are where they are ids. Returns {seconds: {library: [of each round]}, megabytes: [of each
    round], left_out: {library: reason}}.
    """
    entrants = {name: call[form] for name, call in calls.items() if form in call}
    taken: dict[str, list[float | None]] = {name: [] for name in entrants}
    first: dict[str, list[Any]] = {}
    names = list(entrants)
    for number, batch in enumerate(batches):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if sum(filter(None, taken[name])) > seconds:
                taken[name].append(None)
                continue
            gc.collect()
            start = time.process_time()
            results = [entrants[name](item) for item in batch]
            taken[name].append(time.process_time() - start)
            if number == 0 and check:
                first[name] = [plain(result) for result in results]
    left_out = differing(first, texts[0] if texts else None) if check else {}
    megabytes = [sum(len(text.encode()) for text in flat(batch)) / 1e6 for batch in texts or batches]
    kept = {name: times for name, times in taken.items() if name not in left_out}
    return {"seconds": kept, "megabytes": megabytes, "left_out": left_out}


def flat(batch: list[Any]) -> Iterator[str]:
    for item in batch:
        yield from [item] if isinstance(item, str) else item


def differing(results: dict[str, list[Any]], texts: list[str] | None) -> dict[str, str]:
    """Returns those whose ids (or text) are not the reference's, with the reason. Ours must not be among them."""
    expected = texts or results.get("tiktoken") or results[OURS]
    if results[OURS] != expected:
        raise SystemExit("our ids differ from the reference's; nothing is reported")
    return {name: "other ids" for name, result in results.items() if result != expected}


def plain(result: Any) -> Any:
    return result.tolist() if isinstance(result, np.ndarray) else result


def one_by_one(encode: Callable[[str], list[int]]) -> Callable[[list[str]], list[int]]:
    """Returns what others can do with a stream: each line by itself; where a token spans lines, its ids differ."""
    return lambda lines: [token_id for line in lines for token_id in encode(line)]


def check_stream(calls: Calls, lines: list[str]) -> None:
    if calls["stream"](lines) != calls["list"]("".join(lines)):
        raise SystemExit("our ids of a stream differ from those of the whole text; nothing is reported")


# --- what is encoded -------------------------------------------------------------------------------------------------


def load(vocabulary: Vocabulary, libraries: list[str]) -> dict[str, Calls]:
    return {name: LOAD[name](vocabulary) for name in libraries if name in LOAD and takes(name, vocabulary)}


def warm_up(calls: dict[str, Calls], text: bytes, small: bool) -> None:
    """Loads our kernels and waits for them, and lets every library see the frequent words."""
    for name, call in calls.items():
        call["list"](text[-5_000_000 if name == OURS else -500_000 :].decode(errors="ignore"))
    for thread in threading.enumerate():
        if thread.name == LOADER and not small:
            thread.join()


def num_bytes(size: str) -> int:
    number, unit = size.split()
    return int(number) * UNITS[unit]


def cut(text: bytes, size: int, count: int, rounds: int) -> list[list[str]]:
    """Returns documents of about so many bytes for each round, from the beginning again where the text is too short."""
    starts = (number * size % max(1, len(text) - size + 1) for number in range(rounds * count))
    documents = [text[start : start + size].decode(errors="ignore") for start in starts]
    return [documents[number : number + count] for number in range(0, rounds * count, count)]


def split_lines(text: bytes, rounds: int, count: int) -> list[list[str]]:
    lines = text.decode().splitlines(keepends=True)
    return [lines[number * count : (number + 1) * count] or lines[:count] for number in range(rounds)]


def speed(row: Row, name: str) -> float:
    """Returns the median over the rounds, in MB per CPU second."""
    pairs: Iterable[tuple[float, float | None]] = zip(row["megabytes"], row["seconds"][name], strict=True)
    return median(size / seconds for size, seconds in pairs if seconds)


def ratio(row: Row, name: str) -> float:
    """Returns the median over the rounds of how many times as fast as the library we are."""
    pairs: Iterable[tuple[float | None, float | None]] = zip(row["seconds"][name], row["seconds"][OURS], strict=True)
    return median(theirs / own for theirs, own in pairs if theirs and own)
