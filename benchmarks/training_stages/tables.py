"""What all contestants have measured as a table in Markdown."""

import os
import statistics
from typing import Any

from training_stages.shapes import CONTEXT, SHAPES


def report(heading: str, shape: str, results: dict[str, list[dict[str, Any]]], ladder: bool) -> None:
    """Prints medians over the rounds, of speeds and of the ratios to the first contestant within each round."""
    from lm.machine.identity import cpu_model
    from lm.machine.peaks import peak_flops
    from lm.machine.resources import native_precision

    precision = native_precision("cpu")
    peak, source, _ = peak_flops("cpu", precision)
    first, tokens = next(iter(results)), SHAPES[shape]["batch_size"] * CONTEXT
    starts = {name: runs[0]["start"] for name, runs in results.items()}
    rounds = {name: runs[1:] for name, runs in results.items()}
    print(f"\n{heading}: {SHAPES[shape]['batch_size']} x {CONTEXT} tokens, {precision}, {cpu_model()}, load")
    print(f"{os.getloadavg()[0]:.1f}, {len(rounds[first])} rounds; peak {peak / 1e9:.0f} GFLOP/s ({source})\n")
    ratio = "x the first" if ladder else f"{first} is faster by"
    print(f"| | tokens/s | MFU | CPU s a step | peak GB | start s | {ratio} | by CPU time |")
    print("|---|---|---|---|---|---|---|---|")
    for name, steps in rounds.items():
        speed = tokens / statistics.median(step["seconds"] for step in steps)
        processor = statistics.median(step["processor"] for step in steps)
        ratios = []
        for key in ("seconds", "processor"):
            pairs = zip(rounds[first], steps, strict=True)
            ratios.append(statistics.median((b[key] / a[key]) ** (-1 if ladder else 1) for a, b in pairs))
        figures = f"{speed:,.0f} | {speed * flops_per_token(shape) / peak:.0%} | {processor:.3f}"
        memory = f"{steps[-1]['memory']:.2f} | {starts[name]:.0f}"
        print(f"| {name} | {figures} | {memory} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


def flops_per_token(shape: str) -> int:
    from lm.accounting.costs import training_flops_per_token
    from lm.model.transformer import TransformerLM

    settings = {name: value for name, value in SHAPES[shape].items() if name != "batch_size"}
    return training_flops_per_token(TransformerLM(context_length=CONTEXT, device="meta", **settings))
