"""Shared by the tests of several processes: the environment that a launcher leaves."""

import pytest


@pytest.fixture
def environment(monkeypatch):
    """environment(variables): sets these; None removes one."""

    def change(variables: dict[str, str | None]) -> None:
        for name, value in variables.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return change
