"""Sets up and saves the plots of both packages; matplotlib is imported only to draw, as that takes a while."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.errors import InputError
from tokenization.files import writing
from tokenization.outputs import check_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOFTWARE = "lm, with Matplotlib"  # in each PNG, so that is_plot recognises it
COLOURS = ("#1f6fb4", "#d1570c", "#2a8a4a", "#8b4fb0", "#b3273a", "#6b5a4e", "#c14a96", "#4d4d4d", "#8a8a10", "#0f8f9c")
INK = "#26241f"
STYLE = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: smaller, and searchable
    "svg.hashsalt": "lm",
    "font.family": "sans-serif",
}


@contextlib.contextmanager
def new_figure(width: float, height: float) -> "Iterator[Figure]":
    """Makes a figure of this size in inches, in our style, without pyplot, which would keep it in memory."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all."""
    with writing(path) as file:
        figure.savefig(file, dpi=130, format="png", metadata={"Software": SOFTWARE})


def check_plot(path: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raises InputError for a plot that cannot be written, would replace another file, or would not be a .png.

    inputs: files, and folders with all their files.
    """
    check_file(path, inputs, "a plot of ours", is_plot)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: plots are PNG pictures; choose a name that ends with .png")


def is_plot(path: Path) -> bool:
    """Returns whether the file is a PNG that `save` wrote."""
    with open(path, "rb") as file:
        return f"Software\0{SOFTWARE}".encode() in file.read(1000)


def plain(text: object) -> str:
    """Escapes a label for matplotlib, which would read a pair of dollar signs as a formula, and needs UTF-8."""
    return str(text).encode(errors="surrogateescape").decode(errors="replace").replace("$", r"\$")


def curve_colour(place: int) -> str:
    """Returns the colour of the curve at this place of a list."""
    return COLOURS[place % len(COLOURS)]


def curve_style(place: int) -> str:
    """Returns the line style of the curve at this place: it changes when the colours are used up."""
    return ("-", "--", ":")[place // len(COLOURS) % 3]
