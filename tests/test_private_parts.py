"""Proves that no file of either package but lightning_inside, torch_inside and lean_imports reaches into a library."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from helpers import ROOT

from lm.machine import torch_inside
from lm.training import lightning_inside

LM = ROOT / "lm"
INSIDE = ("lightning_inside.py", "torch_inside.py", "lean_imports.py")  # the last: tests/machine/test_lean_imports.py
DOCUMENTED = ("_foreach_",)  # torch documents these ("Foreach Operations")
OURS = ("lm", "tokenization")


def files() -> list[Path]:
    return [path for path in sorted(LM.rglob("*.py")) if path.name not in INSIDE]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and not name.startswith(DOCUMENTED)


def private_touches(tree: ast.AST) -> list[str]:
    """What a file takes of a library that lies behind an underscore, in the order of the file: x._y, imports, getattr.

    An attribute is the file's own where the file defines a function of that name.
    """
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    own |= {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in own:
            found.append(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in OURS:
            found += [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            found += [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
    return [name for name in found if is_private(name) and name not in ("_asdict", "_exit", "_replace")]  # documented


def test_no_other_file_reaches_into_a_library():
    found = {path.name: touches for path in files() if (touches := private_touches(ast.parse(path.read_text())))}
    assert found == {}, "give each a function in lightning_inside.py or torch_inside.py, with a test here"


def test_no_other_class_overrides_what_is_private():
    """A method with an underscore in a class of ours must not be one of the library's class that it extends."""
    overridden = []
    for path in files():
        name = ".".join(path.relative_to(LM.parent).with_suffix("").parts).removesuffix(".__init__")
        if path.name == "__main__.py":
            continue
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            foreign = [base for base in kind.__mro__[1:] if not base.__module__.startswith(OURS)]
            if kind.__module__ == name:
                mine = [attribute for attribute in vars(kind) if is_private(attribute)]
                overridden += [f"{name}.{kind.__name__}.{x}" for x in mine if any(x in vars(base) for base in foreign)]
    ignored = ("._abc_impl", "._is_protocol")  # Python's own
    assert [name for name in overridden if not name.endswith(ignored)] == []


TOUCHES = {
    "trainer._logger_connector.x": ["_logger_connector"],
    "self._trainer": ["_trainer"],
    "from torch._inductor import utils": ["_inductor"],
    "from jsonargparse import _loaders_dumpers": ["_loaders_dumpers"],
    "import torch._dynamo": ["_dynamo"],
    "hasattr(torch.ops, '_linear')": ["_linear"],
    "class A:\n    def _own(self): self._own()": [],
    "torch._foreach_mul_(x, 2)": [],
    "from lm.model.fast import _spans": [],
    "x.__dict__": [],
}


@pytest.mark.parametrize("source", TOUCHES)
def test_touches_are_found(source):
    assert private_touches(ast.parse(source)) == TOUCHES[source]


@pytest.mark.parametrize("module", [lightning_inside, torch_inside])
def test_every_function_is_documented_and_tested(module):
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*_inside.py"))
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ != module.__name__:
            continue
        assert inspect.getdoc(function), name
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, name
        assert f"inside.{name}" in tests or name == "silence_harmless_warnings", f"{name} has no test of its own"
