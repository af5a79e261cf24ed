"""Prints the oldest version that pyproject.toml allows of each dependency, as constraints for pip."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?>=(?P<floor>[\w.]+)")


def floors() -> dict[str, str]:
    """Returns the floor of every dependency by its name, those of the tests included."""
    found = {}
    for requirement in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]):
        match = REQUIREMENT.match(requirement)
        if match is None:
            raise SystemExit(f"pyproject.toml: {requirement!r} has no floor; write it as name>=version")
        found[match["name"]] = match["floor"]
    return found


if __name__ == "__main__":
    for name, floor in floors().items():
        print(f"{name}=={floor}")
