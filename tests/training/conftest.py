"""Shared by the tests of training: a run that a test may change, and the environment of a process."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(whole_run, tmp_path) -> Path:
    """The whole run of 14 steps, moved elsewhere, for tests that change it."""
    return Path(shutil.copytree(whole_run, tmp_path / "elsewhere"))


@pytest.fixture
def environment(monkeypatch):
    """environment(variables): sets these; None removes one."""

    def change(variables: dict[str, str | None]) -> None:
        for name, value in variables.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return change
