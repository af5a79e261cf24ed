"""Shared by the tests of training: a run that a test may change."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(whole_run, tmp_path) -> Path:
    """The whole run of 14 steps, moved elsewhere, for tests that change it."""
    return Path(shutil.copytree(whole_run, tmp_path / "elsewhere"))
