"""Figures of runs and sweeps, drawn by matplotlib where it is installed; without it everything but them still comes.

It is imported when something is drawn, and never before.
"""

import base64
import contextlib
import importlib.util
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.checkpoint import writing
from lm.events import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOW_TO_GET_PLOTS = "no plot: matplotlib is not installed; `pip install matplotlib`, or `pip install -e '.[plots]'` here"
COLOURS = ("#1f6fb4", "#d1570c", "#2a8a4a", "#8b4fb0", "#b3273a", "#6b5a4e", "#c14a96", "#4d4d4d", "#8a8a10", "#0f8f9c")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters stay letters: smaller, and they can be searched
    "svg.hashsalt": "lm",
    "font.family": "sans-serif",
}


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


@contextlib.contextmanager
def new_figure(width: float, height: float) -> "Iterator[Figure]":
    """In inches, in our style. No window and no global state: figures of pyplot would stay in memory."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    with writing(path) as file:
        figure.savefig(file, dpi=130, format="png")


def svg_address(figure: "Figure") -> str:
    """The figure as the address of an image: "data:image/svg+xml;base64,..."."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def plain(text: object) -> str:
    """A text that matplotlib shows as it is: a pair of dollar signs would be read as a formula."""
    return str(text).replace("$", r"\$")


def colour(number: int, count: int) -> Any:
    """Of one in `count` values in an order, from blue to yellow."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * number / max(1, count - 1))


# --- a sweep ---------------------------------------------------------------------------------------------------------


def draw_sweep(
    path: Path,
    parameter: str,
    rows: list[dict[str, Any]],
    curves: list[Curve],
    edge: tuple[float | None, float | None],
) -> None:
    """Left, each run's last validation loss by its value, and the edge; right, the training losses by step."""
    with new_figure(11, 4.2) as figure:
        left, right = figure.subplots(1, 2)
        _draw_losses(left, parameter, rows, edge)
        for number, (row, curve) in enumerate(zip(rows, curves, strict=True)):
            style = ":" if row["diverged"] else "-"
            label = f"{plain(row['value'])}{' (diverged)' if row['diverged'] else ''}"
            right.plot(curve.steps, curve.values, style, color=colour(number, len(rows)), label=label, linewidth=1.2)
        good = [loss for row, curve in zip(rows, curves, strict=True) if not row["diverged"] for loss in curve.values]
        if good:  # what has diverged leaves the picture
            right.set_ylim(min(good) - 0.2, max(good) + 1)
        right.set(xlabel="step", ylabel="training loss, nats per token")
        right.legend(fontsize=8)
        save(figure, path)


def _draw_losses(
    axes: "Axes", parameter: str, rows: list[dict[str, Any]], edge: tuple[float | None, float | None]
) -> None:
    numbers = all(isinstance(row["value"], int | float) and not isinstance(row["value"], bool) for row in rows)
    places = [row["value"] for row in rows] if numbers else list(range(len(rows)))
    good = [(place, row["validation_loss"]) for place, row in zip(places, rows, strict=True) if not row["diverged"]]
    lost = [place for place, row in zip(places, rows, strict=True) if row["diverged"]]
    if good:
        axes.plot(*zip(*good, strict=True), "o-" if numbers else "o", color=COLOURS[0])
        place, loss = min(good, key=lambda point: point[1])
        axes.plot([place], [loss], "o", color=COLOURS[2], markersize=10, label=f"best: {loss:.3f}", zorder=3)
    if lost:
        top = axes.get_ylim()[1] if good else 1.0
        axes.plot(lost, [top] * len(lost), "x", color=COLOURS[4], markersize=9, label="diverged", clip_on=False)
    if numbers and use_log_scale(places):
        axes.set_xscale("log")
    if not numbers:
        axes.set_xticks(places, [plain(row["value"]) for row in rows])
    below, above = edge
    if below is not None and above is not None:
        middle = math.sqrt(below * above) if below > 0 else (below + above) / 2
        axes.axvspan(below, above, color=COLOURS[4], alpha=0.08)
        axes.axvline(middle, color=COLOURS[4], linestyle="--", linewidth=1, label="edge of stability")
    axes.set(xlabel=plain(parameter), ylabel="validation loss, nats per token")
    if good or lost:
        axes.legend(fontsize=8)


# --- a range test ----------------------------------------------------------------------------------------------------


def draw_range_test(
    path: Path, rates: list[float], losses: list[float], smoothed: list[float], suggestion: float
) -> None:
    """The loss by the learning rate of the step before."""
    with new_figure(6.5, 4) as figure:
        axes = figure.subplots()
        axes.plot(rates, losses, color=COLOURS[0], alpha=0.3, linewidth=1, label="loss of each batch")
        axes.plot(rates, smoothed, color=COLOURS[0], linewidth=1.8, label="smoothed")
        axes.axvline(suggestion, color=COLOURS[2], linestyle="--", label=f"suggestion: {suggestion:g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, nats per token")
        axes.legend(fontsize=8)
        save(figure, path)


def use_log_scale(values: list[float]) -> bool:
    return min(values) > 0 and max(values) >= 8 * min(values)
