"""Proves that `lm init` puts the repository's configurations and sample stories into a folder, changes no file that is
there, and prints commands that docs/walkthrough.md has, too."""

from pathlib import Path

import pytest
from helpers import ROOT

from lm.commands.init import starter_files

CONFIGS = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
DATA = {f"data/{name}" for name in ("LICENSE", "README.md", "tinystories-train.txt.gz", "tinystories-valid.txt.gz")}


def test_a_new_folder_gets_every_configuration_and_the_stories_with_their_licence(lm, tmp_path):
    result = lm("init", tmp_path / "new" / "work")
    assert (result.code, result.err) == (0, "")
    written = {str(path.relative_to(tmp_path / "new/work")) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == CONFIGS | DATA == set(starter_files())
    for name in written:
        path = tmp_path / "new/work" / name
        assert path.read_bytes() == (ROOT / name).read_bytes()
        assert not path.is_symlink()


def test_the_commands_it_prints_are_those_of_the_walkthrough(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    into, *commands = [line.strip() for line in lm("init", "my work").out.splitlines() if line.startswith("  ")]
    assert into == "cd 'my work'"
    walkthrough = (ROOT / "docs/walkthrough.md").read_text()
    assert commands[:-1] == [line for line in commands[:-1] if f"\n{line}\n" in walkthrough]
    assert [command.split()[:2] for command in commands[-2:]] == [["lm", "fit"], ["lm", "generate"]]
    monkeypatch.chdir("my work")
    assert "cd " not in lm("init").out


def state(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns  # and not when it was read


def test_a_second_time_nothing_is_written_and_what_is_missing_comes_back(lm, tmp_path):
    lm("init", tmp_path)
    (tmp_path / "configs/demo.yaml").unlink()
    before = {path: state(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert f"1 files written, {len(CONFIGS | DATA) - 1} already there" in lm("init", tmp_path).out
    assert {path: state(path) for path in before} == before
    assert (tmp_path / "configs/demo.yaml").read_bytes() == (ROOT / "configs/demo.yaml").read_bytes()


@pytest.mark.parametrize("name", ["configs/demo.yaml", "data/LICENSE", "configs/experiments/nope.yaml"])
def test_a_file_that_differs_is_kept_and_nothing_is_written(lm, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    result = lm("init", tmp_path)
    assert (result.code, result.out) == (2, "")
    reason = "already exists and differs; nothing was written. Name another folder"
    assert result.err == f"lm init: {tmp_path / name}: {reason}\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_in_the_place_of_a_file_is_refused(lm, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    result = lm("init", tmp_path)
    assert result.code == 2
    assert "is a link" in result.err
    assert not (tmp_path / "elsewhere.yaml").exists()
