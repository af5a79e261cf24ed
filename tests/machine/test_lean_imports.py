"""Proves that torchmetrics is imported in parts, whole when more is asked for, and whole when its parts have moved.

On a package of that name that is written here; tests/training/test_signals.py sees `lm fit` spare the installed one.
"""

import sys
from importlib import import_module, invalidate_caches

import pytest

from lm.machine.lean_imports import import_torchmetrics_on_demand

FILES = {
    "__init__.py": """
        from torchmetrics.__about__ import *
        from torchmetrics.utilities import CHECKED
        from torchmetrics.metric import Metric
        from torchmetrics.collections import MetricCollection
        class Accuracy(Metric): pass
    """,
    "__about__.py": "__version__ = '9.9'",
    "utilities/__init__.py": """
        from torchmetrics import _logger
        from torchmetrics.metric import Metric
        CHECKED = Metric
    """,
    "metric.py": """
        import torchmetrics.utilities
        from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE, plot_single_or_multi_val
        class Metric:
            def plot(self, value):
                return plot_single_or_multi_val(value)
    """,
    "collections.py": "class MetricCollection: pass",
    "utilities/plot.py": """
        _AX_TYPE, _PLOT_OUT_TYPE = int, str
        def plot_single_or_multi_val(value):
            return f"drawn: {value}"
    """,
}
WITH_LOGGER = "_logger = 'its own'\n"


@pytest.fixture
def write_package(monkeypatch, tmp_path):
    """write_package(**changed files) writes and hides the installed one; nothing of it is left behind."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchmetrics"}

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
            del sys.modules[name]

    def write(**changed: str | None) -> None:
        folder = tmp_path / "torchmetrics"
        folder.mkdir()
        for name, text in (FILES | {f"{stem}.py": text for stem, text in changed.items()}).items():
            if text is not None:
                (folder / name).parent.mkdir(exist_ok=True)
                lines = [line.removeprefix("        ") for line in text.splitlines()]
                (folder / name).write_text((WITH_LOGGER if name == "__init__.py" else "") + "\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        invalidate_caches()
        forget()

    yield write
    forget()
    sys.modules.update(before)


def test_only_the_parts_are_imported(write_package):
    write_package()
    import_torchmetrics_on_demand()
    package = import_module("torchmetrics")
    assert package.Metric.__module__ == "torchmetrics.metric"
    assert package.MetricCollection.__module__ == "torchmetrics.collections"
    assert package.__version__ == "9.9"
    assert not hasattr(package, "__wrapped__")  # as inspect asks of every module
    assert "Accuracy" not in vars(package)
    assert "torchmetrics.utilities.plot" not in sys.modules


def test_what_draws_is_imported_when_something_is_drawn(write_package):
    write_package()
    import_torchmetrics_on_demand()
    assert import_module("torchmetrics").Metric().plot(3) == "drawn: 3"
    assert import_module("torchmetrics.utilities.plot")._AX_TYPE is int


def test_any_other_name_imports_the_whole_with_the_same_parts(write_package):
    write_package()
    import_torchmetrics_on_demand()
    package = import_module("torchmetrics")
    part = package.Metric
    assert issubclass(package.Accuracy, part)
    assert package.Metric is part
    assert vars(package)["_logger"] == "its own"
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = package.Nothing


@pytest.mark.parametrize(
    "moved", [{"metric": None}, {"metric": "Renamed = 1"}, {"utilities/__init__": None, "utilities/plot": None}]
)
def test_a_package_whose_parts_have_moved_is_imported_whole(write_package, moved):
    write_package(**moved, __init__="class Metric: pass\nclass MetricCollection: pass\n__version__ = '10'")
    import_torchmetrics_on_demand()
    package = import_module("torchmetrics")
    assert (package.Metric.__module__, package.__version__) == ("torchmetrics", "10")


def test_an_imported_package_stays(write_package):
    write_package()
    whole = import_module("torchmetrics")
    import_torchmetrics_on_demand()
    assert sys.modules["torchmetrics"] is whole
    assert "Accuracy" in vars(whole)


def test_without_the_package_nothing_happens(write_package, monkeypatch):
    write_package()
    monkeypatch.setattr("lm.machine.lean_imports.find_spec", lambda name: None)
    import_torchmetrics_on_demand()
    assert "torchmetrics" not in sys.modules
