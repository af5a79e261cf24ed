"""Proves that the rules of the house hold, from the imports as they are written."""

import ast
from pathlib import Path

import pytest
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


# --- imports go down only --------------------------------------------------------------------------------------------

FACE = "__init__"  # `import lm`, and `from lm import` of any name but a room's
FLOORS = {  # whoever stands in a row imports from the rows below it, and from its own room: a folder, or a file
    "lm": (
        {FACE},
        {"__main__"},
        {"commands"},
        {"experiments", "course"},
        {"training", "serving", "interchange", "loading"},
        {"monitoring", "distributed"},
        {"data", "accounting", "generation", "runs", "evaluation", "ngrams"},
        {"model", "optim"},
        {"machine"},
        {"durations", "strict_json"},
    ),
    "tokenization": (
        {FACE},
        {"__main__"},
        {"commands"},
        {"checking", "scaling"},
        {"adopting", "interchange", "samples", "vocabulary_sizes"},
        {"tokenizer", "training"},
        {"switching", "plain_encoding"},
        {"kernels"},
        {"native", "formats", "kept_tables", "decoding", "derivation"},
        {"bpe"},
        {"pretokenization", "text", "tokens", "plots"},
        {"files", "outputs", "patterns"},
        {"errors", "systems", "caches", "version", "numerals"},
    ),
}
ROOMS = {
    package: {room: height for height, rooms in enumerate(reversed(floors)) for room in rooms}
    for package, floors in FLOORS.items()
}
ONE_ROOM = {"encoding": "tokenizer"}  # encodes files with a Tokenizer, whose method `encode_files` calls it


def upward(path: str, source: str) -> list[str]:
    """Returns what a file of either package imports although it may not, as `room -> room`."""
    package, room, *_ = Path(path).with_suffix("").parts
    rooms, room = ROOMS[package], ONE_ROOM.get(room, room)
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [f"{room} -> a relative import"] * bool(node.level)
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for other, *rest in (name.split(".") for name in names):
            target = ONE_ROOM.get(rest[0], rest[0]) if rest else FACE
            target = target if target in rooms else FACE
            if package == "tokenization" and other == "lm":
                found.append("tokenization -> lm")
            elif package == other and target != room and rooms[target] >= rooms[room]:
                found.append(f"{room} -> {target}")
    return found


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("lm/model/fast.py", "from lm.model.layers import Linear\nfrom lm.machine import torch_inside", []),
        ("lm/model/layers.py", "def f():\n    from lm.training.module import LanguageModel", ["model -> training"]),
        ("lm/serving/engine.py", "from lm import training, generation", ["serving -> training"]),
        ("lm/optim/muon.py", "import lm.model.transformer", ["optim -> model"]),
        ("lm/commands/generate.py", "from lm import load", ["commands -> __init__"]),
        ("lm/loading.py", "from lm.course import softmax\nimport lm.generation.writer", ["loading -> course"]),
        ("lm/course.py", "def f():\n    import lm", ["course -> __init__"]),
        ("lm/__init__.py", "from lm.commands.generate import run", []),
        ("tokenization/bpe.py", "from lm.durations import format_duration", ["tokenization -> lm"]),
        ("tokenization/encoding.py", "from tokenization.tokenizer import Tokenizer", []),
        ("lm/model/x.py", "from ..training.module import LanguageModel", ["model -> a relative import"]),
        ("tokenization/text/places.py", "from tokenization.bpe import learn_merges", ["text -> bpe"]),
    ],
)
def test_a_wrong_import_is_found(path, source, found):
    assert upward(path, source) == found


def test_imports_go_down_only():
    found = {}
    for package, rooms in ROOMS.items():
        sources = {path.relative_to(ROOT): path.read_text() for path in (ROOT / package).rglob("*.py")}
        stems = {path.parts[1].removesuffix(".py") for path in sources}
        assert {ONE_ROOM.get(stem, stem) for stem in stems} == rooms.keys()
        found |= {path.as_posix(): upward(path, source) for path, source in sources.items()}
    assert {path: rooms for path, rooms in found.items() if rooms} == {}


def test_every_room_says_what_it_holds():
    for room in (path.parent for package in ROOMS for path in (ROOT / package).rglob("__init__.py")):
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())), room
