"""Reads YAML configurations strictly: UTF-8, no setting twice, numbers as written.

YAML 1.1 reads 010 as 8, 1:30 as 90, 1_000 as 1000 and `no` as false; here scalars follow YAML 1.2, in which these are
10 and three strings. Aliases may not expand to more than LIMIT values.
"""

import copy
import functools
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tokenization import InputError

GROUPS = ("model", "data", "trainer", "checkpoints", "samples", "norms", "baselines")
LIMIT = 100_000
LARGEST = 1 << 18  # bytes, a hundred times a usual configuration; reading so many takes seconds

SCALARS = {  # YAML 1.2, core schema
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}


FORMER = {"lm.divergence.StopWhenRisen": "lm.training.divergence.StopWhenRisen"}  # class paths in older runs


class ConfigLoader(yaml.SafeLoader):
    """PyYAML's SafeLoader with the scalars of YAML 1.2; refuses a key that is set twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        None: [(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{form})$")) for kind, form in SCALARS.items()]
    }

    def construct_document(self, node: yaml.Node) -> Any:
        if expanded_size(node, {}) > LIMIT:
            raise yaml.YAMLError(f"its aliases expand to more than {LIMIT:,} values; write them out, or use fewer")
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                raise yaml.YAMLError(f"{key.value} is set twice, on lines {lines[key.value]} and {line}; keep one")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


ConfigLoader.add_constructor("tag:yaml.org,2002:int", ConfigLoader.construct_integer)


def with_current_names(value: Any) -> Any:
    """Returns settings with every former class path replaced by the current one."""
    if isinstance(value, list):
        return [with_current_names(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        key: FORMER.get(entry, entry) if key == "class_path" and isinstance(entry, str) else with_current_names(entry)
        for key, entry in value.items()
    }


def expanded_size(node: yaml.Node, known: dict[int, float]) -> float:
    """Counts the nodes of a document with its aliases expanded; infinite if one contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        known[id(node)] = 1 + sum(expanded_size(child, known) for child in children(node))
    return known[id(node)]


def children(node: yaml.Node) -> Iterator[yaml.Node]:
    for entry in node.value if isinstance(node, yaml.CollectionNode) else []:
        yield from entry if isinstance(entry, tuple) else [entry]


def load(text: str) -> Any:
    """Loads one YAML document, or one value from the command line.

    The parser asks for the same value many times: what has been read is kept, and given out as a copy.
    """
    try:
        return copy.deepcopy(_load(text))
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None


@functools.lru_cache(1000)
def _load(text: str) -> Any:
    value = with_current_names(yaml.load(text, ConfigLoader))
    only_names = isinstance(value, dict) and value and all(entry is None for entry in value.values())
    return text if only_names and "\n" not in text.strip() else value  # "Tom:" is a prompt, not a setting


def read(path: Path) -> Any:
    """Reads a YAML file; InputError if it is not one."""
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path}: has {path.stat().st_size:,} bytes; no configuration has more than {LARGEST:,}")
    try:
        return load(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {where}{error.problem}; correct the YAML") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def check_config(path: Path) -> None:
    """Raises InputError unless the file maps names to settings."""
    settings = read(path)
    if not isinstance(settings, dict):
        what = (
            "holds no settings"
            if settings is None
            else "is not a configuration, which lists settings by name, group by group"
        )
        raise InputError(f"{path}: {what}; `lm fit -c configs/demo.yaml --print_config` shows one")
    for group in GROUPS:
        if not isinstance(settings.get(group), dict | str | None):  # a string names a file
            found = textwrap.shorten(repr(settings[group]), 60)
            raise InputError(f"{path}: {group} is {found}; it must list its settings by name")


def is_set(settings: Any, name: str) -> bool:
    """Tells whether a configuration sets this, given as "trainer.max_steps"."""
    for part in name.split("."):
        if not isinstance(settings, dict) or part not in settings:
            return False
        settings = settings[part]
    return True
