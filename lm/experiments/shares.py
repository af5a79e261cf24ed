"""Draws each part's share of the FLOPs as a model becomes wider, or its context longer.

    per token and layer: projections 8 d^2,  scores 4 T d,  feed-forward 6 d d_ff        per token: head 2 d vocab_size

So the head's share falls as the width grows, and every share but the scores' falls as the context grows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.accounting.activations import make_model
from lm.accounting.costs import PARTS, forward_flops
from tokenization.plots import COLOURS, new_figure, save

WIDTHS = [64 << i for i in range(9)]
CONTEXTS = [128 << i for i in range(11)]


def shares(settings: Mapping[str, Any]) -> dict[str, float]:
    """Returns each part's share of the forward FLOPs; the number of heads and the rotation do not change them."""
    flops = forward_flops(make_model({**settings, "num_heads": 1, "position_encoding": "none"}))
    total = sum(flops.values())
    return {part: count / total for part, count in flops.items()}


def plot(settings: Mapping[str, Any], path: Path) -> None:
    """Draws two panels around a model's settings: by width, with d_ff in proportion, and by context_length."""
    d_model, d_ff = settings["d_model"], len(make_model(settings).layers[0].ffn.w1.weight)  # type: ignore[union-attr, arg-type]
    panels = {
        "d_model": (WIDTHS, [{"d_model": width, "d_ff": max(1, d_ff * width // d_model)} for width in WIDTHS]),
        "context_length": (CONTEXTS, [{"context_length": length} for length in CONTEXTS]),
    }
    with new_figure(9, 3.8) as figure:
        figure.suptitle(
            "Where a forward pass spends its FLOPs, by width and by context", x=0.01, ha="left", fontsize=11
        )
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (name, (values, changes)) in zip(axes, panels.items(), strict=True):
            points = [shares({**settings, **change}) for change in changes]
            parts = [part for part in PARTS if points[0][part]]
            stacked = [[100 * point[part] for point in points] for part in parts]
            axis.stackplot(values, stacked, labels=parts, colors=[f"{colour}b0" for colour in COLOURS])
            axis.axvline(settings[name], color="black", linestyle=":", linewidth=1)
            axis.set(xlabel=f"{name} (dotted: {settings[name]:,})", xscale="log", xlim=(values[0], values[-1]))
            axis.set_xscale("log", base=2)
            axis.set_xticks(values, [str(value) for value in values], fontsize=7)
        axes[0].set(ylim=(0, 100), ylabel="% of the forward FLOPs")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS))
        save(figure, path)
