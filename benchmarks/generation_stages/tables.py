"""The results of benchmarks/generation.py as tables in Markdown."""

import math
import statistics
import textwrap
from collections.abc import Iterator
from functools import partial
from typing import Any

from generation_stages.contestants import HUGGING_FACE, LLAMA_CPP, MEMORY, OF_LLAMA_CPP, OURS

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # of a weight


class Best:
    """The best number of threads of each contestant: its median speed, and how much memory it took."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def find(self, who: str, precision: str, case: list[float]) -> tuple[float, int, float] | None:
        """Returns tokens a second, the number of threads, and peak MB; None where nothing was measured."""
        found: dict[int, list[dict[str, Any]]] = {}
        for row in self.rows:
            if (row["who"], row["precision"], row["case"]) == (who, precision, case):
                found.setdefault(row["threads"], []).append(row)
        medians = (
            (statistics.median(row["speed"] for row in rows), threads, rows[0].get("peak", 0.0))
            for threads, rows in found.items()
        )
        return max(medians, default=None)

    def bandwidth(self) -> tuple[float, int]:
        """Returns the bytes of memory read a second, and by how many threads."""
        speeds: dict[int, list[float]] = {}
        for row in self.rows:
            if row["who"] == MEMORY:
                speeds.setdefault(row["threads"], []).append(row["speed"])
        return max((statistics.median(each), threads) for threads, each in speeds.items())


def tables(results: dict[str, Any]) -> str:
    """Returns all that was measured as Markdown."""
    best = Best(results["rows"])
    busy = results["other_programs"]
    others = "" if busy is None else f", other programs took {busy:.1f} cores"
    versions = "; ".join([results["machine"], *results["versions"]])
    begin = f"Measured on {results['when']}{others}. {versions}; this project {results['code']}."
    fill = partial(textwrap.fill, width=120, break_on_hyphens=False)
    points = [fill(point, subsequent_indent="  ") for point in summary(best, results)]
    return "\n".join([fill(begin), "", *speed_table(best, results["cases"]), "", *points]) + "\n"


def speed_table(best: Best, cases: list[list[float]]) -> Iterator[str]:
    """Yields a row for each precision and case; in brackets, how many threads were better."""
    yield "| precision | texts x tokens read + written | ours, tokens/s | Hugging Face | llama.cpp | faster by |"
    yield "|---|---|---|---|---|---|"
    for precision in BYTES:
        for case in cases:
            ours = best.find(OURS, precision, case)
            if ours is None:
                continue
            others = {who: best.find(who, precision, case) for who in (HUGGING_FACE, LLAMA_CPP)}
            cells = [f"{found[0]:,.0f} ({found[1]})" if found else "" for found in (ours, *others.values())]
            ratios = ", ".join(f"{ours[0] / found[0]:.2f}" for found in others.values() if found)
            texts, read, written, temperature = case
            what = f"{texts} x {read} + {written}" + ", drawn" * bool(temperature)
            yield f"| {precision} | {what} | {' | '.join(cells)} | {ratios} |"


def summary(best: Best, results: dict[str, Any]) -> Iterator[str]:
    """Yields what the goals are about: the memory's limit, the precisions compared, losses, agreement."""
    bandwidth, threads = best.bandwidth()
    one_text = results["cases"][0]
    memory = f"{bandwidth / 1e9:.1f} GB/s from memory with {threads} thread{'s' if threads > 1 else ''}"
    limits = []
    for precision, size in BYTES.items():
        limit, ours = bandwidth / (results["weights"] * size), best.find(OURS, precision, one_text)
        if ours:
            limits.append(f"{limit:,.0f} tokens/s in {precision}, of which {ours[0] / limit:.0%} were reached")
    yield f"- {memory} would allow {'; '.join(limits)}."
    half, bytes_ = best.find(OURS, "bf16", one_text), best.find(OURS, "int8", one_text)
    if half and bytes_:
        yield f"- int8 is {bytes_[0] / half[0]:.2f} times as fast as bf16 for one text."
    if loss := results["losses"]:
        words = ", ".join(f"{value:.4f} in {precision}" for precision, value in loss.items())
        yield f"- The demo's validation loss: {words} (nats a token, `lm test --precision`)."
    agreeing = [row["same"] for row in results["rows"] if row["who"] == LLAMA_CPP and "same" in row]
    if agreeing:
        files = ", ".join(f"{theirs} for {precision}" for precision, theirs in OF_LLAMA_CPP.items())
        share = "all" if min(agreeing) == 1 else f"at least {math.floor(100 * min(agreeing))}%"
        yield (
            f"- llama.cpp reads our GGUF files ({files}) and keeps keys and values in float16. In float32 it wrote"
            f" {share} of our likeliest tokens, and Hugging Face all of them."
        )
    yield "- In brackets: the better number of threads. The last column compares with Hugging Face and with llama.cpp."
