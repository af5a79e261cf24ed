"""The size of a text from which the kernels do the work, set for a test."""

import pytest

THRESHOLDS = ("LOADED_FROM_BYTES", "CACHED_FROM_BYTES", "KERNELS_FROM_BYTES")
NEVER = 1 << 60


def take_kernels_from(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels take texts of num_bytes and more, whether or not they are loaded; 0 is always."""
    for threshold in THRESHOLDS:
        monkeypatch.setattr(f"tokenization.kernels.{threshold}", num_bytes)
    monkeypatch.setattr("tokenization.switching.LOADED_FROM_BYTES", num_bytes)
    for module in ("switching", "training", "encoding", "scaling.work"):
        monkeypatch.setattr(f"tokenization.{module}.KERNELS_FROM_BYTES", num_bytes)
