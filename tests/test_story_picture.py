"""Proves that docs/images/story.py draws what kept checkpoints write, and the last of it where nothing moves."""

import runpy
import sys
from xml.etree import ElementTree

import pytest
from helpers import ROOT

SCRIPT = ROOT / "docs" / "images" / "story.py"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def draw(monkeypatch):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_a_picture_of_two_steps(draw, lm, fit_arguments, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "story.svg"
    arguments = ("--trainer.max_steps=4", "--checkpoints.keep_every_n_steps=2", "--samples.max_new_tokens=0")
    assert lm(*fit_arguments(run, *arguments)).code == 0
    draw(run, "--steps", 2, 4, "--prompt", "Tom <&> the cat", "--output", picture)
    root = ElementTree.parse(picture).getroot()
    texts = root.findall(f"{SVG}text")
    titles = [text.text or "" for text in texts if text.get("class") == "title"]
    assert [title.partition(",")[0] for title in titles] == ["step 2", "step 4"]
    first, last = (texts.index(text) for text in texts if text.get("class") == "title")
    assert [text.get("opacity") for text in texts] == ["0"] * last + ["1"] * (len(texts) - last)
    assert all((texts[index + 1].text or "").startswith("Tom <&> the cat") for index in (first, last))
    for text in texts:
        (times,) = [[float(time) for time in (node.get("keyTimes") or "").split(";")] for node in text]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= 1
    with pytest.raises(SystemExit, match=r"step-3\.ckpt"):
        draw(run, "--steps", 3, "--output", tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
