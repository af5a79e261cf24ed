"""Proves that the rules of the house hold, from the imports as they are written."""

import ast

from helpers import ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))
NOT_TO_BE_IMPORTED = {path.stem for path in TESTS if path.stem.startswith("test_") or path.stem == "conftest"}


def imported(source: str) -> set[str]:
    """Returns every part of every module's name that a source imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {part for name in names for part in name.split(".")}


def test_imports_are_found():
    source = "import a.b\ndef f():\n    from tests.c import d as e\nfrom . import g\n"
    assert imported(source) >= {"a", "b", "tests", "c", "d", "g"}
    assert "test_house" in NOT_TO_BE_IMPORTED


def test_no_test_imports_a_test():
    """What two tests need stands in tests/helpers."""
    found = {path.relative_to(ROOT).as_posix(): imported(path.read_text()) & NOT_TO_BE_IMPORTED for path in TESTS}
    assert {path: names for path, names in found.items() if names} == {}
