"""Draws the pictures of docs/ from the tables beside them, in one style, each with its point as its title.

  python docs/images/pictures.py                          all of them
  python docs/images/pictures.py batch-sizes options      these

The figures stand in the pages alone: where a table changes, run this again. Not from here: accounting.png and
learning-rate.png, which `lm account --plot` and `lm sweep` draw, serve.png, a screenshot, and story.svg (story.py).
"""

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.plots import curve_colour, new_figure, save

DOCS = Path(__file__).parents[1]
LOSS = "validation loss, nats per token"
Table = list[list[str]]  # rows of cells, the header first


def read_table(page: str, header: str) -> Table:
    """Returns the first table of a page whose header begins so."""
    text = (DOCS / page).read_text(encoding="utf-8")
    start = text.index(f"\n{header}") + 1
    lines = text[start : text.index("\n\n", start)].splitlines()
    rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def number(cell: str) -> float:
    """Reads a table's number: "1,900", "2.56M", "66%", "loss at 250"."""
    digits, million = re.findall(r"[-\d.,e]*\d[\d.,e-]*", cell)[-1].replace(",", ""), cell.endswith("M")
    return float(digits) * (1e6 if million else 1)


@contextlib.contextmanager
def picture(name: str, title: str, panels: int = 1, height: float = 3.4, **labels: str) -> Iterator[Any]:
    """Yields the axes of a picture, which is written to NAME.png afterwards."""
    with new_figure(7.5, height) as figure:
        axes = figure.subplots(1, panels)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        if panels == 1:
            axes.set(**labels)
        yield axes
        save(figure, DOCS / "images" / f"{name}.png")


def draw_line(axes: Any, place: int, label: str, x: list[float], y: list[float], shift: float = 0) -> None:
    """Draws a line with its name at its end, moved up by so many points where names would meet."""
    axes.plot(x, y, color=curve_colour(place), marker=".")
    axes.annotate(
        label,
        (x[-1], y[-1]),
        (6, shift),
        textcoords="offset points",
        color=curve_colour(place),
        va="center",
        fontsize=9,
    )


def ablations() -> None:
    header, *rows = read_table("experiments.md", "| configuration | | learning rate |")
    steps = [number(cell) for cell in header[3:]]
    labels = {"xlabel": "optimizer steps", "ylabel": LOSS}
    shifts = {"silu": 15, "base": 5, "post-norm": -5, "no-norm": -14}
    with picture(
        "ablations", "Of the parts, positions matter most (no-norm-slow has a tenth of the rate)", **labels
    ) as axes:
        for place, row in enumerate(rows):
            draw_line(axes, place, row[0], steps, list(map(number, row[3:])), shifts.get(row[0], 0))
        axes.set_ylim(bottom=2.8)


def rates() -> None:
    header, *rows = read_table("experiments.md", "| at a rate of |")
    values = [number(cell) for cell in header[1:]]
    title = "Without norms, training diverges at twice its best learning rate"
    with picture("rates", title, height=4.2, xlabel="learning rate", ylabel=LOSS) as axes:
        for place, (name, *cells) in enumerate(rows):
            points = [(rate, number(cell)) for rate, cell in zip(values, cells, strict=True) if cell[:1].isdigit()]
            axes.plot(*zip(*points, strict=True), color=curve_colour(place), marker=".", label=name)
            diverged = [rate for rate, cell in zip(values, cells, strict=True) if cell == "diverged"]
            axes.plot(diverged, [4.15 - 0.05 * place] * len(diverged), "x", color=curve_colour(place))
        axes.plot([], [], "x", color=curve_colour(7), label="diverged")
        axes.set_xscale("log")
        axes.set_xticks(values, header[1:], rotation=30)
        axes.minorticks_off()
        axes.set_ylim(3.2, 4.2)
        axes.legend(loc="center right")


def batch_sizes() -> None:
    header, *rows = read_table("experiments.md", "| windows a batch |")
    rates = [cell.removeprefix("loss at ") for cell in header[2:6]]
    windows = [number(row[0]) for row in rows]
    best = [min(number(cell) for cell in row[2:6] if cell) for row in rows]
    seconds = [windows[0] * number(rows[0][1]) * 256 / number(row[6]) for row in rows]
    with picture("batch-sizes", "With equal tokens, each at its best rate, four windows win", panels=2) as panels:
        by_size, by_time = panels
        by_size.set(xlabel="windows in a batch", ylabel=LOSS)
        by_time.set(xlabel="seconds of training (number: windows in a batch)")
        for row in rows:
            for place, cell in enumerate(row[2:6]):
                if cell:
                    by_size.plot(number(row[0]), number(cell), ".", color=curve_colour(place + 1), zorder=3)
        by_size.plot(windows, best, color=curve_colour(0), zorder=2)
        for place, rate in enumerate(rates):
            by_size.plot([], [], ".", color=curve_colour(place + 1), label=f"learning rate {rate}")
        by_size.set_xscale("log", base=2)
        by_size.set_xticks(windows, [row[0] for row in rows])
        by_size.legend()
        by_time.plot(seconds, best, "o", color=curve_colour(0))
        for row, x, y in zip(rows, seconds, best, strict=True):
            by_time.annotate(row[0], (x, y), (6, 4), textcoords="offset points")
        by_time.set_xlim(0, 1.15 * max(seconds))


def muon() -> None:
    header, *rows = read_table("experiments.md", "| | loss at 250 |")
    with picture("muon", "Step for step, Muon is ahead", xlabel="optimizer steps", ylabel=LOSS) as axes:
        for place, row in enumerate(rows):
            draw_line(
                axes,
                place,
                row[0],
                [number(cell) for cell in header[1:]],
                list(map(number, row[1:])),
                (0, 3, -4)[place],
            )


def options() -> None:
    _, *rows = read_table("experiments.md", "| NAME | SETTINGS |")
    rows.sort(key=lambda row: -number(row[4]))
    base = next(number(row[4]) for row in rows if row[0] == "base")
    title = "In about the same time, a smaller model gains most, then Muon"
    with picture("options", title, height=4.2, xlabel=f"{LOSS} (beside it the CPU seconds)") as axes:
        for place, (_, _, _, seconds, loss) in enumerate(rows):
            better, colour = number(loss) < base, curve_colour(0 if number(loss) < base else 1)
            axes.plot([base, number(loss)], [place, place], color=colour)
            axes.plot([number(loss)], [place], "o", color=colour)
            shift, side = (-8, "right") if better else (8, "left")
            words = f"{loss}  ({seconds} s)"
            axes.annotate(
                words, (number(loss), place), (shift, 0), textcoords="offset points", va="center", ha=side, fontsize=8
            )
        axes.axvline(base, color=curve_colour(7), linestyle=":", linewidth=1)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_xlim(2.3, 3.8)
        axes.grid(axis="y", visible=False)


def additions() -> None:
    _, *rows = read_table("experiments.md", "| addition | setting |")
    rows.sort(key=lambda row: -number(row[4]))
    title = "Value embeddings and a table of bigrams gain most within the first pass"
    with picture("additions", title, xlabel=f"{LOSS}, of two seeds and their mean") as axes:
        for place, row in enumerate(rows):
            seeds, mean = [number(row[2]), number(row[3])], number(row[4])
            axes.plot(seeds, [place, place], ".", color=curve_colour(0))
            axes.plot([mean], [place], "|", color=curve_colour(0), markersize=14)
        base = next(number(row[4]) for row in rows if row[0] == "none")
        axes.axvline(base, color=curve_colour(7), linestyle=":", linewidth=1)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.grid(axis="y", visible=False)


def fast() -> None:
    _, *rows = read_table("experiments.md", "| configuration | parameters | steps |")
    title = "A smaller model, with Muon, sees more tokens in less time and ends lower"
    with picture("fast", title, xlabel="millions of tokens", ylabel=LOSS) as axes:
        for place, name in enumerate(("adamw", "narrower, with Muon")):
            row = next(row for row in rows if row[0] == name)
            tokens = [number(row[3]) / 1e6 * quarter / 4 for quarter in (1, 2, 3, 4)]
            draw_line(axes, place, f"{name}\n{row[8]} CPU s", tokens, list(map(number, row[4:8])), 22 * (1 - place))
        axes.set_xlim(right=6.4)
        axes.set_ylim(bottom=2.2)


def hour() -> None:
    _, *rows = read_table("experiments.md", "| width | parameters | steps |")
    title = "After an hour of one core, two widths are level, and neither has stopped falling"
    with picture("hour", title, xlabel="minutes of CPU time", ylabel=LOSS) as axes:
        for place, (width, _, _, _, *losses, _, seconds) in enumerate(rows):
            minutes = [number(seconds) / 60 * part / len(losses) for part in range(1, len(losses) + 1)]
            draw_line(axes, place, f"width {width}", minutes, list(map(number, losses)), 16 * place - 8)
        axes.set_xlim(right=70)
        axes.set_ylim(bottom=1.9)


def sizes() -> None:
    _, *rows = read_table("experiments.md", "| width | parameters | tokens | steps | loss at 8e-3 |")
    parameters, means = (np.array([number(row[column]) for row in rows]) for column in (1, 7))
    title = "Of the fifth size, what four foretell depends on the law"
    with picture("sizes", title, xlabel="parameters", ylabel=LOSS) as axes:
        wide = np.geomspace(0.9 * parameters[0], 1.2 * parameters[-1])
        for place, (name, floor) in enumerate({"a N^-b": 0.0, "E + a N^-b": lowest(parameters[:4], means[:4])}.items()):
            slope, height = np.polyfit(np.log(parameters[:4]), np.log(means[:4] - floor), 1)
            axes.plot(wide, floor + np.exp(height) * wide**slope, "--", color=curve_colour(place + 1), label=name)
        for row, x in zip(rows, parameters, strict=True):
            first = min(number(row[4]), number(row[5]))
            axes.plot([x, x], [first, number(row[6])], ".", color=curve_colour(0))
            axes.annotate(row[0], (x, first), (7, 3), textcoords="offset points")
        axes.plot([], [], ".", color=curve_colour(0), label="two seeds of each width")
        axes.set_xscale("log")
        axes.legend()


def lowest(parameters: Any, losses: Any) -> float:
    """Returns the E of E + a N^-b that fits best, to 0.005."""

    def misfit(floor: float) -> float:
        fitted = np.polyfit(np.log(parameters), np.log(losses - floor), 1)
        return float(((floor + np.exp(np.polyval(fitted, np.log(parameters))) - losses) ** 2).sum())

    return min(np.arange(0, min(losses) - 0.1, 0.005), key=misfit)


def longer_run() -> None:
    header, *rows = read_table("experiments.md", "| step | 500 |")
    steps = [number(cell) for cell in header[1:]]
    title = "The recipe needs half of the tokens (dashed: on stories that it has read)"
    with picture("longer-run", title, height=4.2, xlabel="optimizer steps", ylabel=LOSS) as axes:
        runs = [row[0] for row in rows[1:] if "read" not in row[0]]
        for name, *cells in rows[1:]:
            points = [(step, number(cell)) for step, cell in zip(steps, cells, strict=True) if cell]
            x, y = map(list, zip(*points, strict=True))
            place = next(place for place, run in enumerate(runs) if name.startswith(run))
            if "read" in name:
                axes.plot(x, y, color=curve_colour(place), linestyle="--", linewidth=1)
            else:
                draw_line(axes, place, name, x, y, -54 * (place == 1))
        axes.axhline(2.0, color=curve_colour(7), linestyle=":", linewidth=1)
        axes.annotate("the handout's target", (steps[0], 2.0), (0, 4), textcoords="offset points", fontsize=9)


def longer_tinystories() -> None:
    rows = {row[0]: list(map(number, row[1:])) for row in read_table("experiments.md", "| step | 79 |")[1:]}
    title = "From the second pass on, training leaves validation behind"
    with picture("longer-tinystories", title, xlabel="passes over the text", ylabel="loss, nats per token") as axes:
        for place, name in enumerate(("training loss, mean of the 40 steps before", "validation loss")):
            draw_line(axes, place, name.partition(" ")[0], rows["passes over the text"], rows[name])
        axes.axvline(1, color=curve_colour(7), linestyle=":", linewidth=1)


def scaling() -> None:
    _, *rows = read_table("performance.md", "| | attention | tokens/s |")
    columns = ((2, "tokens per second"), (3, "peak memory, GB"), (4, "MFU, % of peak FLOP/s"))
    sweeps = {"context_length": "context, tokens", "d_model": "width (d_model)", "batch_size": "windows in a batch"}
    with new_figure(9, 6.5) as figure:
        figure.suptitle("How cost grows: speed, memory and MFU of a training step", x=0.01, ha="left", fontsize=11)
        grid = figure.subplots(len(columns), len(sweeps), sharex="col", sharey="row")
        for down, (column, unit) in enumerate(columns):
            grid[down][0].set_ylabel(unit)
            for axes, (name, label) in zip(grid[down], sweeps.items(), strict=True):
                points = [(number(row[0]), number(row[column])) for row in rows if row[0].startswith(name)]
                axes.plot(*zip(*points, strict=True), color=curve_colour(down), marker=".")
                axes.set_xscale("log", base=2)
                axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points], fontsize=7)
                grid[-1][list(sweeps).index(name)].set_xlabel(label)
            grid[down][0].set_ylim(0, 1.05 * max(number(row[column]) for row in rows))
        grid[0][0].set_yscale("log")
        grid[0][0].set_ylim(1_000, 100_000)
        save(figure, DOCS / "images/scaling.png")


def vocabulary_sizes() -> None:
    header, *rows = read_table("tokenizer.md", "| bytes per token at a size of |")
    labels = {"xlabel": "tokens in the vocabulary", "ylabel": "bytes per token"}
    with picture(
        "vocabulary-sizes", "Each doubling of the vocabulary gives less than the one before", **labels
    ) as axes:
        for place, row in enumerate(rows):
            largest = 1000 * number(row[0].split(",")[1].replace("k", ""))
            sizes = [*map(number, header[1:-1]), largest]
            points = [(size, number(cell)) for size, cell in zip(sizes, row[1:], strict=True) if cell]
            axes.plot(*zip(*points, strict=True), color=curve_colour(place), marker=".", label=row[0])
        axes.legend()
        axes.set_xscale("log", base=2)
        ticks = [number(cell) for cell in header[2:-1]]
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])


PICTURES: dict[str, Callable[[], None]] = {
    "ablations": ablations,
    "rates": rates,
    "batch-sizes": batch_sizes,
    "muon": muon,
    "options": options,
    "additions": additions,
    "hour": hour,
    "sizes": sizes,
    "fast": fast,
    "longer-run": longer_run,
    "longer-tinystories": longer_tinystories,
    "scaling": scaling,
    "vocabulary-sizes": vocabulary_sizes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]()


if __name__ == "__main__":
    main()
