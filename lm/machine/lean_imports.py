"""Keeps `lm` from importing all of torchmetrics, of which Lightning uses two classes.

All of it includes every metric, transformers and matplotlib. In its place stands a module that imports those two when
they are asked for, and becomes the whole package when anything else is.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

PARTS = {  # what Lightning imports from torchmetrics
    "Metric": "torchmetrics.metric",
    "MetricCollection": "torchmetrics.collections",
    "__version__": "torchmetrics.__about__",
}
PLOTS = "torchmetrics.utilities.plot"  # where torchmetrics imports matplotlib


def import_torchmetrics_on_demand() -> None:
    """Makes `import torchmetrics` run the package's own code only when a name outside PARTS is asked for.

    Call it before Lightning is imported; it does nothing when torchmetrics has been imported already.
    """
    if "torchmetrics" in sys.modules:
        return
    spec = find_spec("torchmetrics")
    if spec is None or spec.loader is None:
        return
    package = module_from_spec(spec)
    package._logger = logging.getLogger("torchmetrics")  # type: ignore[attr-defined]  # its modules import this
    package.__getattr__ = _finder(package, spec.loader.exec_module)  # type: ignore[method-assign]
    sys.modules["torchmetrics"] = package


def _finder(package: ModuleType, execute: Callable[[ModuleType], None]) -> Callable[[str], Any]:
    """Returns the package's __getattr__, which imports one of PARTS, or for any other name the whole package."""

    def find(name: str) -> Any:
        if name in PARTS:
            try:
                with _plots_on_demand():
                    import_module("torchmetrics.utilities")  # first: it and torchmetrics.metric import each other
                    return getattr(import_module(PARTS[name]), name)
            except (ImportError, AttributeError):  # another version keeps it elsewhere: the whole package, from anew
                for part in [part for part in sys.modules if part.startswith("torchmetrics.")]:
                    del sys.modules[part]
        elif name.startswith("__"):
            raise AttributeError(name)
        vars(package).pop("__getattr__", None)
        execute(package)
        return getattr(package, name)

    return find


@contextmanager
def _plots_on_demand() -> Iterator[None]:
    """Gives the modules imported meanwhile a stand-in for PLOTS, which imports the real one when something is drawn."""
    if PLOTS in sys.modules:
        yield
        return

    def draw(*args: Any, **kwargs: Any) -> Any:
        return import_module(PLOTS).plot_single_or_multi_val(*args, **kwargs)

    plots = ModuleType(PLOTS)
    vars(plots).update(plot_single_or_multi_val=draw, _AX_TYPE=object, _PLOT_OUT_TYPE=object)
    sys.modules[PLOTS] = plots
    try:
        yield
    finally:
        del sys.modules[PLOTS]
