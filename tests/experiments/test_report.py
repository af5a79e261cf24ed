"""The report: the curves are those of the tests' own reader, also after a resume, and nothing of a run becomes HTML."""

import random
import re
import shutil
import struct
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.events import Asked, read_events
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from lm.durations import format_duration
from lm.experiments.figures import AXES, LOSSES, OTHERS, _draw_baselines, _draw_on
from lm.experiments.report import Run, best, by_number, differences, find_runs, origin, results
from lm.machine.identity import code_in_words, machine_in_words
from lm.runs.events import SINCE, Curve, Curves, Start, read_curves
from tokenization.plots import new_figure


@pytest.fixture(scope="module")
def runs(lm, fit_arguments, tmp_path_factory) -> Path:
    """Two runs: one went on from its step 4 after 6; the other has another rate, and a prompt that looks like HTML."""
    folder = tmp_path_factory.mktemp("runs")
    saved = ["--trainer.val_check_interval=2", "--checkpoints.keep_every_n_steps=4", "--norms.every_n_steps=2"]
    assert lm(*fit_arguments(folder / "one", "--trainer.max_steps=6", *saved)).code == 0
    going_on = ["--ckpt_path", folder / "one/step-4.ckpt", "--trainer.max_steps=8"]
    assert lm("fit", "-c", folder / "one/config.yaml", *going_on).code == 0
    prompt = "--samples.prompt=</pre><script>alert(1)</script>"
    settings = ["--trainer.max_steps=4", "--model.learning_rate=0.02", prompt]
    assert lm(*fit_arguments(folder / "<b>two & $x$", *settings)).code == 0
    return folder


@pytest.fixture(scope="module")
def page(lm, runs, tmp_path_factory) -> str:
    """The page about one run."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert lm("report", runs / "one", "--output", path).code == 0
    return path.read_text()


def test_the_curves_are_joined(runs):
    scalars, texts = read_events(runs / "one")
    curves = read_curves(runs / "one")
    assert {tag: list(zip(c.steps, c.values, strict=True)) for tag, c in curves.items()} == scalars | texts
    assert curves["train/loss"].steps == list(range(1, 9))
    assert len(curves.starts) == 2
    assert set(curves.starts) == {(machine_in_words(torch.device("cpu")), code_in_words())}
    for curve in curves.values():
        assert curve.seconds == sorted(curve.seconds)
        assert curve.seconds[0] >= 0


def test_a_file_cut_short_and_a_run_begun_anew(runs, tmp_path):
    source = max((runs / "one").glob("events*"), key=lambda path: path.stat().st_size)
    copy = tmp_path / "events.out.tfevents.1.a"
    copy.write_bytes(source.read_bytes()[:-20])
    assert read_curves(tmp_path)["train/loss"].steps
    shutil.copy(min((runs / "<b>two & $x$").glob("events*")), tmp_path / "events.out.tfevents.2.a")
    assert read_curves(tmp_path)["train/loss"].steps == [1, 2, 3, 4]


def test_what_else_tensorboard_can_hold(tmp_path):
    """A scalar of either kind and a text are read; a histogram and an image are no curves."""
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("old", 0.1, 3)
        writer.add_scalar("new", 0.1, 3, new_style=True)
        writer.add_text("words", "a story", 3)
        writer.add_histogram("histogram", torch.arange(9.0), 3)
        writer.add_image("image", torch.zeros(3, 2, 2), 3)
    curves, expected = read_curves(tmp_path), float(torch.tensor(0.1))
    assert {tag: curve.values for tag, curve in curves.items()} == {
        "old": [expected],
        "new": [expected],
        "words/text_summary": ["a story"],
    }


def points(curves) -> set[tuple]:
    return {(tag, step, value) for tag, c in curves.items() for step, value in zip(c.steps, c.values, strict=True)}


def records(content: bytes) -> list[tuple[int, int]]:
    """Beginning and end of each record of an event file."""
    bounds, place = [], 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        bounds.append((place, place + length + 16))
        place = bounds[-1][1]
    return bounds


@pytest.mark.parametrize("flips", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_flipped_bit_costs_a_record_and_is_said(runs, tmp_path, flips):
    sources, rng = sorted((runs / "one").glob("events*")), random.Random(flips)
    for source in sources:
        shutil.copy(source, tmp_path)
    whole, lost = points(read_curves(tmp_path)), 0
    assert read_curves(tmp_path).damage == []
    for number in range(flips):
        path = tmp_path / sources[number % len(sources)].name
        content = path.read_bytes()
        start, end = rng.choice(records(content))
        damaged = bytearray(content)
        damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        curves = read_curves(tmp_path)
        path.write_bytes(content)
        (line,) = curves.damage
        assert line.startswith(f"{path}: is damaged after step ")
        # A start that cannot be read leaves the points that it would have made void, but loses none.
        missing = {(tag, step) for tag, step, _ in whole} - {(tag, step) for tag, step, _ in points(curves)}
        assert len(missing) <= 1
        lost += len(missing)
    assert lost > flips / 2


def test_several_damaged_records(lm, runs, tmp_path):
    source = max((runs / "one").glob("events*"), key=lambda path: path.stat().st_size)
    content = bytearray(source.read_bytes())
    bounds = records(bytes(content))
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / source.name
    path.write_bytes(content)
    whole = points(read_curves(path.parent))
    for start, _ in bounds[20:30]:
        content[start] ^= 4  # its length
    path.write_bytes(content)
    left = points(read_curves(path.parent))
    assert left < whole
    assert len(left) == len(whole) - 10
    result = lm("report", path.parent, "--output", tmp_path / "page.html")
    assert result.code == 0
    assert re.fullmatch(rf"lm report: {path}: is damaged after step \d; the curves go on at step \d\n", result.err)
    assert "is damaged after step" in (tmp_path / "page.html").read_text()
    path.write_bytes(bytes(content[: bounds[20][0]]) + bytes(5000))  # as a power cut may leave it
    assert re.search(r"is damaged after step \d, and the curves end there$", read_curves(path.parent).damage[0])


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_data(self, data):
        self.text += data


def test_one_page_that_needs_nothing_else(lm, runs, tmp_path):
    result = lm("report", runs, "--output", tmp_path / "page.html", "--plot", tmp_path / "losses.png")
    assert (result.code, result.err) == (0, "")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    reader, content = Reader(), (tmp_path / "page.html").read_text()
    reader.feed(content)
    assert not {"script", "link", "b", "iframe", "img"} & set(reader.tags)
    assert reader.tags.count("svg") == reader.tags.count("figcaption") == len(AXES) * len(LOSSES) + len(OTHERS)
    assert all(address.startswith("#") and address[1:] in reader.ids for address in reader.addresses)
    assert "url(" not in content.replace("url(#", "")
    assert not re.search(r"\b(train|val)/[a-z_]+", reader.text)  # raw tags
    for axis in ("nats per token", "optimizer steps", "tokens", "minutes", "tokens per second", "GB"):
        assert f">{axis}</text>" in content
    for name in ("unigram", "4-gram", "xz"):  # dotted lines beside the bits per byte
        assert re.search(rf">([^<]*, )?{name}(, [^<]*)?</text>", content)
    assert 'name="viewport"' in content
    assert "</pre><script>alert(1)</script>" in reader.text
    assert "<b>two & $x$" in reader.text
    assert "model.learning_rate" in reader.text
    scalars, _ = read_events(runs / "one")
    assert f"{scalars['val/loss'][-1][1]:.4f}" in reader.text
    assert [path.name for path in tmp_path.iterdir()] == ["losses.png", "page.html"]


def test_a_page_in_the_folder_of_its_run_is_replaced(lm, runs, tmp_path):
    run = shutil.copytree(runs / "one", tmp_path / "one")
    for _ in range(2):
        result = lm("report", run, run / "../one", "--output", run / "page.html", "--plot", run / "losses.png")
        assert (result.code, result.err) == (0, "")
        assert result.out == f"{run / 'page.html'}: one\n"  # once, whatever it is called
    for name in ("config.yaml", next(run.glob("events.*")).name, "sweep.png"):
        (run / name).touch()
        result = lm("report", run, "--plot", run / name, "--output", run / "page.html")
        assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "plots are PNG pictures" in lm("report", run, "--plot", tmp_path / "a.pdf").err


def test_the_settings_that_differ(runs):
    names = {name for name, _ in differences(find_runs([runs]))}
    assert {"model.learning_rate", "samples.prompt", "trainer.max_steps"} <= names
    assert not {"model.d_model", "trainer.default_root_dir"} & names


def test_long_settings_come_last():
    runs = [
        Run(str(i), Path(), Curves(), {"trainer.callbacks": [{"class_path": "C"}] * i, "model.d_model": i}, "")
        for i in (1, 2)
    ]
    assert [name for name, _ in differences(runs)] == ["model.d_model", "trainer.callbacks"]


def test_a_race_stands_for_all_its_runs(runs, tmp_path):
    """By the shortest names that tell them apart; a run beside it keeps its own."""
    for name in ("b/seed-0", "a/seed-10", "a/seed-9"):
        shutil.copytree(runs / "one", tmp_path / "race" / name)
    shutil.copytree(runs / "one", tmp_path / "seed-0")

    def names(*places):
        return [run.name for run in find_runs([tmp_path / place for place in places])]

    assert names("race/a") == ["seed-9", "seed-10"]
    assert names("race", "race/a/seed-9") == ["seed-9", "seed-10", "seed-0"]
    assert names("race", "seed-0") == ["race/a/seed-9", "race/a/seed-10", "race/b/seed-0", "seed-0"]


def test_baselines_that_are_close_share_a_label():
    curves = Curves()
    for name, bits in (("unigram", 2.3), ("xz", 2.0), ("trigram", 1.16), ("4-gram", 1.13)):
        curves[f"baselines/{name}"] = Curve([1], [0.0], [bits])
    with new_figure(4.6, 2.9) as figure:
        axes = figure.subplots()
        assert sorted(_draw_baselines(axes, [curves])) == [1.13, 1.16, 2.0, 2.3]
        assert [text.get_text() for text in axes.texts] == ["unigram", "xz", "trigram, 4-gram"]
        assert len(axes.lines) == 4


def test_losses_on_two_texts_are_not_joined():
    curves = Curves()
    curves["val/loss"] = Curve([5, 10, 15], [1.0, 2.0, 3.0], [2.0, 1.0, 4.0])
    curves[SINCE] = Curve([15], [3.0], [10.0])
    with new_figure(4.6, 2.9) as figure:
        axes = figure.subplots()
        _draw_on(axes, "val/loss", LOSSES["val/loss"], "steps", [curves])
        assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, False, True, False]
    assert best(Run("any", Path(), curves, {}, "")) == "4.0000 at 15"


def test_a_page_takes_its_colours_from_the_mode(page):
    style, _, body = page.partition("</style>")
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    assert {"--curve-0", "--ink", "--paper"} <= used
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", body)) <= {"#ffffff"}  # invisible backgrounds


def test_when_where_and_by_which_code(page, tmp_path):
    reader = Reader()
    reader.feed(page)
    for words in (machine_in_words(torch.device("cpu")), code_in_words(), time.strftime("%Y-")):
        assert words in reader.text
    old = Curves()
    assert origin([Run("old", tmp_path, old, {}, "")]) == []
    old.began, old.starts = 1.0, [Start("", "")]
    assert [title for title, _ in origin([Run("old", tmp_path, old, {}, "")])] == ["began"]


def test_tensorboards_layout(runs):
    for path in (runs / "one").glob("events*"):  # each start writes it
        values = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
        (layout,) = (value for value in values if value.tag == "custom_scalars__config__")
        charts = [
            chart for group in Layout.FromString(make_ndarray(layout.tensor).item()).category for chart in group.chart
        ]
        tags = {value.tag for value in values if value.metadata.plugin_data.plugin_name == "scalars"}
        found = [[tag for tag in tags if any(re.search(p, tag) for p in chart.multiline.tag)] for chart in charts]
        assert set(found[0]) == {"train/loss", "val/loss"}
        assert all(found[place] for place, chart in enumerate(charts) if chart.title != "shares of a mixture")
        left, expected = tags.difference(*found), {"train/tokens_seen", "val/perplexity"}
        assert left == expected, add_to("LAYOUT in lm/training/plugins.py", left ^ expected)


def test_no_curve_is_forgotten(runs):
    """What a report leaves out is said here; of other tags, it has a figure and a column of results."""
    scalars, _ = read_events(runs / "one")
    logged = {tag for tag in scalars if tag == "lr" or tag.startswith(("train/", "val/"))}
    left, expected = logged - {*LOSSES, *OTHERS}, {"train/passes", "train/skipped_steps", "train/tokens_seen"}
    expected |= {"val/perplexity"}
    assert left == expected, add_to("OTHERS in lm/experiments/figures.py", left ^ expected)
    asked = Asked()
    results([Run("any", Path(), asked, {}, "")])
    left, expected = logged - asked.tags, {"lr", "train/gradient_norm", "val/gap", "val/perplexity"}
    assert left == expected, add_to("results in lm/experiments/report.py", left ^ expected)


def add_to(place, tags) -> str:
    return f"add {', '.join(sorted(tags))} to {place}, or, if it is left out on purpose, to `expected` in this test"


def test_what_is_no_run(lm, runs, tmp_path):
    result = lm("report", tmp_path, "--output", tmp_path / "page.html")
    assert (result.code, result.out) == (2, "")
    assert f"{tmp_path}: holds no events.out.tfevents.*" in result.err
    (tmp_path / "events.out.tfevents.1").write_text("no event")
    assert read_curves(tmp_path).damage == [f"{tmp_path / 'events.out.tfevents.1'}: holds no whole event"]
    shutil.copytree(runs / "one", tmp_path / "one")
    (tmp_path / "one/config.yaml").write_text("model: [")
    result = lm("report", tmp_path / "one", "--output", tmp_path / "page.html")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "config.yaml: line 1: " in result.err
    result = lm("report", runs / "one", "--output", tmp_path / "none/page.html")
    assert "name a file" in result.err
    assert not (tmp_path / "page.html").exists()


def test_durations():
    assert [format_duration(seconds) for seconds in (4000, 75, 9.6)] == ["1 h 06 min", "1 min 15 s", "10 s"]


def test_runs_in_order():
    names = ["a-1e-05", "a-0.5", "a-8", "a-16.0", "b"]
    assert sorted(map(Path, reversed(names)), key=by_number) == list(map(Path, names))
