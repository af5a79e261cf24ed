"""Draws the figures of runs, sweeps, races and range tests; matplotlib is imported only to draw."""

import bisect
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm.runs.events import SINCE, Curve
from tokenization.plots import COLOURS, INK, curve_colour, curve_style, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEEP_PLOT, RACE_PLOT = "sweep.png", "race.png"  # in the folder of a sweep, of a race
UNUSED_IDS = re.compile(r' id="[a-z0-9.]+_[0-9]+"')  # every figure of a page has them


def inline_svg(figure: "Figure") -> str:
    """Returns the figure as an element for a page, which colours it: text by currentColor, curves by --curve-N."""
    if engine := figure.get_layout_engine():  # by itself: savefig would draw everything once more for it
        engine.execute(figure)
        figure.set_layout_engine(None)
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    svg = file.getvalue()
    svg = UNUSED_IDS.sub("", svg[svg.index("<svg") :]).replace(INK, "currentColor")
    for place, curve in enumerate(COLOURS):
        svg = svg.replace(curve, f"var(--curve-{place})")
    return svg


def colour(number: int, count: int) -> Any:
    """Returns the colour of value `number` of `count` ordered values, from blue to yellow."""
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
    """Draws each run's last validation loss by its value, with the edge, and beside it the training losses by step."""
    with new_figure(11, 4.2) as figure:
        left, right = figure.subplots(1, 2)
        _draw_losses(left, parameter, rows, edge)
        for number, (row, curve) in enumerate(zip(rows, curves, strict=True)):
            style = ":" if row["diverged"] else "-"
            label = f"{plain(row['value'])}{' (diverged)' if row['diverged'] else ''}"
            right.plot(curve.steps, curve.values, style, color=colour(number, len(rows)), label=label, linewidth=1.2)
        trained = [curve for row, curve in zip(rows, curves, strict=True) if not row["diverged"]]
        good = [loss for curve in trained for loss in curve.values if math.isfinite(loss)]
        if good:  # curves that diverge leave the picture
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


# --- a race ----------------------------------------------------------------------------------------------------------


def draw_race(path: Path, runs: dict[str, list[Curve]], place: str, quantity: str) -> None:
    """Draws each contestant's curves, pale, and their mean at each step, dark.

    runs: by contestant; a curve's seconds are its places on the axis. place, quantity: the labels of the axes.
    """
    with new_figure(6.5, 4.2) as figure:
        axes = figure.subplots()
        for number, (name, curves) in enumerate(runs.items()):
            look: dict[str, Any] = {"color": curve_colour(number), "linestyle": curve_style(number)}
            for curve in curves:
                axes.plot(curve.seconds, curve.values, alpha=0.25, linewidth=0.8, **look)
            steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
            means = [
                [mean([points[curve.steps.index(step)] for curve, points in each]) for step in steps]
                for each in ([(c, c.seconds) for c in curves], [(c, c.values) for c in curves])
            ]
            axes.plot(*means, marker="." if len(steps) < 40 else "", label=plain(name), **look)
        axes.set(xlabel=place, ylabel=quantity)
        if runs:
            axes.legend(fontsize=8)
        save(figure, path)


# --- a range test ----------------------------------------------------------------------------------------------------


def draw_range_test(
    path: Path, rates: list[float], losses: list[float], smoothed: list[float], suggestion: float
) -> None:
    """Draws the loss by the learning rate of the step before."""
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


# --- a report --------------------------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """What a tag holds, as a reader calls it; scale turns the logged figure into the unit."""

    title: str
    unit: str
    scale: float = 1.0


LOSSES = {
    "train/loss": Quantity("Training loss", "nats per token"),
    "val/loss": Quantity("Validation loss", "nats per token"),
}
BITS, BASELINES = "val/bits_per_byte", "baselines/"
OTHERS = {
    BITS: Quantity("Validation and baselines", "bits per byte"),
    "val/gap": Quantity("Gap to training", "nats per token"),
    "lr": Quantity("Learning rate", "dimensionless"),
    "train/gradient_norm": Quantity("Gradient before clipping", "l2 norm"),
    "train/tokens_per_second": Quantity("Speed", "tokens per second"),
    "train/mfu": Quantity("MFU", "% of peak FLOP/s", 100),
    "train/peak_memory_gb": Quantity("Peak memory", "GB"),
}
AXES = {"steps": "optimizer steps", "tokens": "tokens", "minutes": "minutes"}


def draw_curves(runs: list[dict[str, Curve]]) -> Iterator[tuple[str, str]]:
    """Yields each figure's title and SVG: losses by steps, tokens and minutes; other quantities by steps."""
    for quantities, places in ((LOSSES, tuple(AXES)), (OTHERS, ("steps",))):
        for tag, quantity in quantities.items():
            for place in places if any(tag in curves for curves in runs) else ():
                with new_figure(4.6, 2.9) as figure:
                    _draw_on(figure.subplots(), tag, quantity, place, runs)
                    by = f", by {AXES[place]}" if len(places) > 1 else ""
                    yield f"{quantity.title}, {quantity.unit}{by}", inline_svg(figure)


def draw_losses(names: list[str], runs: list[dict[str, Curve]], path: Path) -> None:
    """Draws training and validation losses, by steps and by minutes, as a PNG with a legend."""
    with new_figure(10, 7) as figure:
        axes = figure.subplots(2, 2, sharey="row")
        for row, (tag, quantity) in zip(axes, LOSSES.items(), strict=True):
            for one, place in zip(row, ("steps", "minutes"), strict=True):
                _draw_on(one, tag, quantity, place, runs)
                one.set_title(quantity.title)
        handles = [
            axes[0][0].plot([], [], curve_style(place), color=curve_colour(place))[0] for place in range(len(runs))
        ]
        figure.legend(handles, list(map(plain, names)), loc="outside lower center", ncols=6)
        save(figure, path)


def _draw_on(axes: "Axes", tag: str, quantity: Quantity, unit: str, runs: list[dict[str, Curve]]) -> None:
    from matplotlib.ticker import EngFormatter

    bounds: list[tuple[float, float]] = []
    for place, curves in enumerate(runs):
        if tag not in curves:
            continue
        curve, style = curves[tag], curve_style(place)
        places, colour = _places(curve, unit, curves), curve_colour(place)
        values = [quantity.scale * value for value in curve.values]
        if tag.startswith("val/") and (since := last_since(curves)):  # losses on two texts are not joined
            cut = bisect.bisect_right(curve.steps, since)
            places, values = ([*points[:cut], math.nan, *points[cut:]] for points in (places, values))
        if tag == "train/loss":
            axes.plot(places, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(places, smooth(values, max(1, len(places) // 50)), style, color=colour)
        else:
            axes.plot(places, values, style, color=colour, marker="." if len(places) < 40 else "")
        finite = [value for value in values if math.isfinite(value)]
        bounds += [(min(finite), finite[0])] if finite else []
    if tag == BITS:
        bounds += [(bits, bits) for bits in _draw_baselines(axes, runs)]
    if bounds and tag in (*LOSSES, BITS):  # curves that diverge leave the picture
        low, high = min(low for low, _ in bounds), max(first for _, first in bounds)
        axes.set_ylim(low - 0.05 * (high - low) - 0.01, high + (0.1 if tag == BITS else 0.05) * (high - low) + 0.01)
    axes.set(xlabel=AXES[unit], ylabel=quantity.unit)
    if unit == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if quantity.unit == "tokens per second":
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_baselines(axes: "Axes", runs: list[dict[str, Curve]]) -> list[float]:
    """Draws a dotted line, with its name, for each baseline that a run's model had to beat; returns where they are.

    Lines that are close together share one label.
    """
    lines = {(curve.values[-1], tag) for curves in runs for tag, curve in curves.items() if tag.startswith(BASELINES)}
    labels: list[tuple[float, dict[str, None]]] = []
    for bits, tag in sorted(lines, reverse=True):
        axes.axhline(bits, color=INK, linestyle=":", linewidth=1, alpha=0.6)
        if not labels or labels[-1][0] - bits > 0.08 * (max(lines)[0] - min(lines)[0]):
            labels.append((bits, {}))
        labels[-1][1][tag.removeprefix(BASELINES)] = None
    for bits, names in labels:
        label = axes.text(1, bits, ", ".join(names), fontsize=7, ha="right", va="bottom", clip_on=True)
        label.set_transform(axes.get_yaxis_transform())
    return [bits for bits, _ in lines]


def last_since(curves: dict[str, Curve]) -> float:
    """Returns the step after which a run has validated the text that it validated last; 0 if it was always this one."""
    return float(curves[SINCE].values[-1]) if SINCE in curves else 0.0


def _places(curve: Curve, unit: str, curves: dict[str, Curve]) -> list[float]:
    if unit == "minutes":
        return [seconds / 60 for seconds in curve.seconds]
    seen = curves.get("train/tokens_seen")
    if unit == "tokens" and seen is not None:
        return list(map(float, np.interp(curve.steps, [0, *seen.steps], [0.0, *seen.values])))
    return list(map(float, curve.steps))


def mean(values: list[float]) -> float:
    """Returns the mean of any floats; statistics.fmean refuses inf and -inf together."""
    return sum(values) / len(values)


def smooth(values: list[float], half: int) -> list[float]:
    """Returns centred means of up to 2 half + 1 values, fewer at the ends; unlike a trailing mean, they do not lag."""
    windows = (values[max(0, place - half) : place + half + 1] for place in range(len(values)))
    return [mean(window) for window in windows]
