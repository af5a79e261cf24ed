"""Draws docs/images/story.svg: what a model writes early, in the middle and at the end of its training.

  lm fit -c configs/demo.yaml --checkpoints.keep_every_n_steps 100
  python docs/images/story.py checkpoints/demo --steps 100 400 1200 --output docs/images/story.svg

Each part shows one kept checkpoint: its step, the time since the run began, the training loss, and the text that the
same prompt and seed give. The lines appear one after another; the parts take turns.
"""

import argparse
import sys
import textwrap
from html import escape
from pathlib import Path

import lm
from lm.durations import format_duration
from lm.runs.events import read_curves
from tokenization import InputError

WIDTH, LINE, TOP, MARGIN = 560, 28, 58, 28  # narrow, so that a phone, which shows it smaller, leaves it legible
COLUMNS, LINES = 54, 9
SECONDS, A_LINE = 7.0, 0.6  # that a part is shown; between one line of it and the next
STYLE = """
    rect { fill: #fbfaf6; stroke: #ddd9cf }
    text { font: 18px Georgia, serif; fill: #26241f }
    .title { font: 15px sans-serif; fill: #8a4b2a }
    @media (prefers-color-scheme: dark) {
      rect { fill: #1d1c1a; stroke: #37383b } text { fill: #e8e4da } .title { fill: #e0a07c }
    }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--steps", type=int, nargs="+", required=True, help="the kept checkpoints to show")
    parser.add_argument("--prompt", default="Once upon a time", help="(default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.6, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="the picture, an .svg")
    args = parser.parse_args()
    try:
        parts = [(title(args.run, step), write(args, step)) for step in args.steps]
    except InputError as error:
        sys.exit(f"story.py: {error}")
    args.output.write_text(draw(parts), encoding="utf-8")


def title(run: Path, step: int) -> str:
    """Returns the step, the time until then, and the training loss."""
    losses = read_curves(run)["train/loss"]
    point = max((i for i, drawn in enumerate(losses.steps) if drawn <= step), default=0)
    return f"step {step:,}, after {format_duration(losses.seconds[point])}, loss {losses.values[point]:.2f}"


def write(args: argparse.Namespace, step: int) -> list[str]:
    """Returns the lines of the text that the model of a step writes."""
    text = lm.load(args.run / f"step-{step}.ckpt").generate(
        args.prompt, max_new_tokens=130, temperature=args.temperature, seed=args.seed
    )
    return wrap(text)


def wrap(text: str) -> list[str]:
    """Breaks a text into the lines of a part; what is too long for it is cut."""
    lines = textwrap.wrap(text, COLUMNS, max_lines=LINES, placeholder=" ...")
    # A model that has learnt little writes control characters, too, which XML does not allow.
    return ["".join(character if character.isprintable() else "\ufffd" for character in line) for line in lines]


def draw(parts: list[tuple[str, list[str]]]) -> str:
    """Returns an SVG that shows the parts, (title, lines), in turn and for ever."""
    whole = SECONDS * len(parts)
    height = TOP + LINE * max(len(lines) for _, lines in parts) + MARGIN - 8
    texts = []
    for number, (heading, lines) in enumerate(parts):
        start, end = number * SECONDS, (number + 1) * SECONDS
        for row, line in enumerate([heading, *lines]):
            kind, y = (' class="title"', MARGIN + 8) if row == 0 else ("", TOP + LINE * row - 6)
            opacity = int(number == len(parts) - 1)  # where nothing moves, the end is shown
            times = f"0;{(start + row * A_LINE) / whole:.4f};{min(end / whole, 1):.4f}"
            texts.append(
                f'<text x="{MARGIN}" y="{y}"{kind} opacity="{opacity}">{escape(line)}'
                f'<animate attributeName="opacity" dur="{whole:g}s" repeatCount="indefinite" calcMode="discrete"'
                f' values="0;1;0" keyTimes="{times}"/></text>'
            )
    label = escape("; ".join(heading for heading, _ in parts), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img"'
        f' aria-label="What the model writes: {label}">\n  <style>{STYLE}  </style>\n  '
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n  '
        + "\n  ".join(texts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
