"""Machine and code are named as git and the system name them, and never by a repository that is not the code's own."""

import os
import re
import subprocess

import pytest
import torch

from lm.machine import identity
from lm.machine.identity import code_in_words, machine_in_words
from tokenization.version import own_version


def git(folder, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    git(tmp_path, "tag", "--annotate", "v1", "--message", "v1")
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as within a hook
    return tmp_path


def test_the_commit_and_whether_it_was_changed(clone):
    commit = git(clone, "rev-parse", "HEAD")[:12]
    assert code_in_words() == f"{own_version()}, commit {commit}"
    (clone / "code.py").write_text("2")
    assert code_in_words() == f"{own_version()}, commit {commit}, changed since"


def test_no_clone_or_no_git(clone, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_in_words() == own_version()
    monkeypatch.undo()
    (clone / "site-packages").mkdir()
    monkeypatch.setattr(identity, "ROOT", clone / "site-packages")  # within a repository of somebody else's
    assert code_in_words() == own_version()


def test_the_machine():
    cpu = torch.device("cpu")
    assert re.fullmatch(r".+, (1 core|\d+ cores)", machine_in_words(cpu))
    assert machine_in_words(cpu, 2) == f"{machine_in_words(cpu)}, 2 processes"
