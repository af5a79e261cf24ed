"""Proves that lm/commands/ is what `lm --help` lists, that help comes without torch and Lightning, and that nothing but
a command reads a command line or prints a result."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from lm.__main__ import COMMANDS, COMPUTING, HELP, TRAINING

COMMAND_FILES = sorted((ROOT / "lm/commands").glob("*.py"))
LIBRARY = sorted({*(ROOT / "lm").rglob("*.py")} - {*COMMAND_FILES, ROOT / "lm/__main__.py"})
ANNOUNCING = {  # what happens to a run, said when it happens
    *("cli.py", "checks.py", "command_line.py", "fast_path.py", "module.py", "recovery.py", "plugins.py"),
    *("saving.py", "kept_tokenizer.py", "lock.py", "baselines.py", "first_weights.py", "overlap.py"),
    "kernel_loading.py",
}


def test_a_file_for_every_command():
    names = {path.stem for path in (ROOT / "lm/commands").glob("[!_]*.py")}
    assert names == set(COMMANDS.values())
    assert HELP.startswith(f"usage: lm {{{','.join(COMMANDS)}}} ...\n")
    assert set(re.findall(r"^  lm ([a-z-]+)", HELP, flags=re.MULTILINE)) == set(COMMANDS)
    assert set(TRAINING) < set(COMPUTING) < set(COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"], ["sweep", "--help"], ["find-lr", "--help"]])
def test_help_comes_without_torch_and_lightning(arguments):
    """In a process of its own, as other tests have imported both."""
    script = (
        "import sys\n"
        "from lm.__main__ import main\n"
        "try:\n"
        "    code = main(sys.argv[1:])\n"
        "except SystemExit as leaving:\n"
        "    code = leaving.code\n"
        "heavy = {'torch', 'lightning', 'lightning_fabric', 'pytorch_lightning'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, (code, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lm " in done.stdout


def calls(path: Path, name: str) -> Iterator[int]:
    """Yields the lines on which a function of this name is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node.lineno


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", LIBRARY, ids=[str(path.relative_to(ROOT)) for path in LIBRARY])
def test_only_a_command_reads_a_command_line_or_prints(path):
    names = set(imported(path))
    assert "argparse" not in {name.partition(".")[0] for name in names}
    assert not names & {"tokenization.commands.ArgumentParser", "lm.__main__"}
    assert not {name for name in names if name.startswith("lm.commands")}
    assert path.name in ANNOUNCING or not list(calls(path, "print"))


@pytest.mark.parametrize("path", COMMAND_FILES, ids=lambda path: path.stem)
def test_a_commands_file_is_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 250
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 45, node.name
