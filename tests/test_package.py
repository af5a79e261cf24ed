"""Proves that pyproject.toml declares what the code imports, that both commands know their version, and that a source
archive and a wheel made of it hold all that is needed away from the repository."""

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import tokenization.__main__
from tokenization import version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# --- imports ---------------------------------------------------------------------------------------------------------

OTHER_NAMES = {
    "backports": "backports.zstd",
    "llama_cpp": "llama-cpp-python",
    "lm_eval": "lm-eval",
    "tiktoken_ext": "tiktoken",
    "yaml": "PyYAML",
}
UNDECLARED = {"litgpt"}  # pins versions that exclude ours: benchmarks/training.py wants it in another environment
EXTRAS = {
    "lm": ("gguf",),
    "tokenization": ("parquet", "cluster"),
    "tests": ("test", "elsewhere"),
    "benchmarks": ("bench", "elsewhere"),
    "examples": (),
}


def declared(*extras: str) -> set[str]:
    requirements = [*PROJECT["dependencies"], *(r for extra in extras for r in PROJECT["optional-dependencies"][extra])]
    return {re.split(r"[\[<>=;]", requirement)[0] for requirement in requirements}


def imported(folder: str) -> dict[str, Path]:
    """Every distribution that the folder's files import, with one of those files."""
    own = {path.stem for path in (*ROOT.iterdir(), *(ROOT / folder).rglob("*"), *(ROOT / "examples").iterdir())}
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {module.partition(".")[0] for module in modules} - own - sys.stdlib_module_names:
                if name != "compression":  # the standard library's from Python 3.14 on
                    found[OTHER_NAMES.get(name, name)] = path
    return found


@pytest.mark.parametrize("folder", EXTRAS)
def test_what_is_imported_is_declared(folder):
    used = imported(folder)
    missing = {name: str(path) for name, path in used.items() if name not in declared(*EXTRAS[folder]) | UNDECLARED}
    assert missing == {}
    assert folder in ("examples", "benchmarks") or len(used) >= 5  # it has found some


def test_what_is_declared_is_imported():
    assert declared() - imported("lm").keys() - imported("tokenization").keys() == set()


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_requirements_with_hashes_are_the_tested_versions(name):
    """As pip reads them: a version and at least one digest for each, whatever pyproject.toml needs, and no address."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", line) for line in lines)
    found = {re.sub("[._]", "-", line.partition("==")[0]).lower(): line.partition("==")[2].split()[0] for line in lines}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {re.sub("[._]", "-", package).lower(): version for package, version in pins.items()}
    assert {
        package for package in found if found[package].partition("+")[0] != pins.get(package, found[package])
    } == set()
    assert {re.sub("[._]", "-", package).lower() for package in declared()} <= found.keys()
    assert any(package.startswith("nvidia-") for package in found) == (name == "cuda")


def test_floors_are_printed_for_pip_and_lie_below_the_tested_versions(capsys):
    runpy.run_path(str(ROOT / ".ci/floors.py"), run_name="__main__")
    floors = dict(line.split("==") for line in capsys.readouterr().out.splitlines())
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert floors.keys() == declared("test")
    assert floors["jsonargparse"].startswith("4.")

    def numbers(name: str) -> list[int]:
        return [int(part) for part in pins[name].split(".")]

    for name, floor in floors.items():
        assert [int(part) for part in floor.split(".")] <= numbers(name), name


# --- the version -----------------------------------------------------------------------------------------------------


def test_both_commands_print_their_version(lm, capsys):
    assert lm("--version").out == f"lm {PROJECT['version']}\n"
    assert tokenization.__main__.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tokenization {PROJECT['version']}\n"


def test_the_version_is_a_clones_own_and_elsewhere_that_of_the_installed_package(monkeypatch, tmp_path):
    monkeypatch.setattr(version, "version", lambda name: f"{name} as installed")
    assert version.own_version() == PROJECT["version"]
    monkeypatch.setattr(version, "__file__", str(tmp_path / "tokenization/version.py"))
    assert version.own_version() == "text-to-lm as installed"


# --- archives --------------------------------------------------------------------------------------------------------
MADE = {".venv", ".venv-oldest", ".venv-cluster", ".git", "build", "dist", ".hypothesis", "gpu-results", "site"}


def made(folder: str, names: list[str]) -> list[str]:
    """What git does not hold: for shutil.copytree's ignore."""
    left = MADE | {name for name in names if name.endswith(("__pycache__", "_cache", ".egg-info"))}
    if Path(folder) in (ROOT / "data", ROOT / "checkpoints"):
        left |= {name for name in names if name not in ("LICENSE", "README.md") and "tinystories" not in name}
    return [name for name in names if name in left]


def run(*command: object, folder: Path, **environment: str) -> str:
    """Runs a command without our source on its path, and returns what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([*map(str, command)], cwd=folder, env=inherited, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> SimpleNamespace:
    """A source archive of this repository, the tree that it unpacks to, and the wheel that is built there."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("archives")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=made)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    run(sys.executable, "-c", build, "build_sdist", folder, folder=folder / "source")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-c", build, "build_wheel", folder, folder=unpacked)
    (wheel,) = folder.glob("*.whl")
    return SimpleNamespace(source=folder / "source", unpacked=unpacked, wheel=wheel)


@pytest.mark.slow
def test_a_source_archive_holds_the_repository_and_its_tests_run_there(archives):
    files = {path.relative_to(archives.source) for path in archives.source.rglob("*") if path.is_file()}
    lost = [name for name in files if not (archives.unpacked / name).is_file() and "egg-info" not in str(name)]
    assert lost == []
    tests = ("tests/commands/test_init.py", "tests/optim/test_schedule.py", "tests/model/test_loss.py")
    run(sys.executable, "-m", "pytest", "-q", *tests, folder=archives.unpacked, PYTHONPATH=str(archives.unpacked))


@pytest.mark.slow
def test_a_wheel_works_from_another_folder(archives, tmp_path):
    with zipfile.ZipFile(archives.wheel) as wheel:
        names = wheel.namelist()
    assert {"lm/py.typed", "tokenization/py.typed"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lm", "tokenization", "text_to_lm"}
    python, bin_ = tmp_path / "venv/bin/python", tmp_path / "venv/bin"
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", folder=tmp_path)
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", archives.wheel, folder=tmp_path)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # but not what is linked there
    printed = run(bin_ / "lm", "init", "work", folder=tmp_path)
    small = "--trainer.max_steps=2 --trainer.val_check_interval=2 --trainer.limit_val_batches=1 --model.warmup_steps=1"
    small += " --model.d_model=24 --model.num_layers=1 --samples.max_new_tokens=5"
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert commands.pop(0) == "cd work"
    for command in commands:
        program, *arguments = shlex.split(command)
        arguments += small.split() if arguments[0] == "fit" else []
        written = run(bin_ / program, *arguments, folder=tmp_path / "work")
    assert written.startswith("Once upon a time")
    where = run(python, "-c", "import lm, tokenization; print(lm.__file__, tokenization.__file__)", folder=tmp_path)
    assert where.count(str(tmp_path / "venv")) == 2
