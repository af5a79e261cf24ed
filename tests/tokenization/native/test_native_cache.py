"""The cache of compiled kernels follows their sources, whatever file changes; heads are filled by name."""

import importlib.util
import linecache
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tokenization
from tokenization import Tokenizer, train_bpe
from tokenization.native.memory import Head, address_of

PACKAGE = Path(tokenization.__file__).parent


PLUS_ONE = """
def plus_one(number: int) -> int:
    return number + 1
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's sources, with no cache."""
    return shutil.copytree(PACKAGE, tmp_path / "tokenization", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture
def native(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TOKENIZATION_CACHE_DIR", raising=False)
    (copy / "native" / "example.py").write_text(PLUS_ONE)
    return copy / "native"


def load_compiling(native: Path) -> ModuleType:
    return load_module(native / "compiling.py")


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_copy(copy: Path, code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZATION_CACHE_DIR"}
    command = [sys.executable, "-c", code]  # which looks for packages in the current folder first
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=copy.parent, check=True)
    return done.stdout


def edit(path: Path, old: str, new: str) -> None:
    source = path.read_text()
    assert source.count(old) == 1
    path.write_text(source.replace(old, new))


def test_a_changed_callee_in_another_file_is_noticed(copy):
    """first_invalid is in text.py, which does not change."""
    code = """
import numpy as np
from tokenization.native.memory import address_of
from tokenization.native.text import first_invalid
text = np.frombuffer("é".encode() + bytes(128), np.uint8)
valid = first_invalid(address_of(text), address_of(text) + 2) - address_of(text)
print(valid, "from the cache" if first_invalid.from_cache else "compiled")
"""
    right, wrong = "return 1 + (lead >= 0xC0)", "return 2 + (lead >= 0xC0)"
    assert run_copy(copy, code) == "2 compiled\n"
    edit(copy / "native/characters.py", right, wrong)
    assert run_copy(copy, code) == "0 compiled\n"
    edit(copy / "native/characters.py", wrong, right)
    assert run_copy(copy, code) == "2 from the cache\n"


def test_nothing_is_cached_once_a_source_is_another_than_was_imported(native):
    compiling = load_compiling(native)
    edit(native / "characters.py", "Characters as kernels see them", "Characters as they see them")
    assert compiling.cache_folder() == ""
    assert compiling.compiled(load_module(native / "example.py").plus_one)(2) == 3
    assert not list(native.rglob("*.o"))


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")
def test_the_cache_lies_beside_the_sources_or_in_the_users_or_nowhere(native, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    beside = load_compiling(native).cache_folder()
    assert Path(beside).parent == native / "__pycache__"

    shutil.rmtree(native / "__pycache__")
    (native / "__pycache__").write_text("a file where nothing can be written")
    users = load_compiling(native).cache_folder()
    assert tmp_path / "users" in Path(users).parents
    assert Path(users).name == Path(beside).name

    monkeypatch.setenv("XDG_CACHE_HOME", str(native / "__pycache__"))
    nowhere = load_compiling(native)
    assert nowhere.cache_folder() == ""
    kernel = nowhere.compiled(load_module(native / "example.py").plus_one)
    assert kernel(2) == 3
    assert not list(tmp_path.rglob("*.o"))


def test_the_folder_that_is_told_is_respected(native, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZATION_CACHE_DIR", str(tmp_path / "told"))
    compiling = load_compiling(native)
    assert Path(compiling.cache_folder()).parent == tmp_path / "told"
    assert compiling.compiled(load_module(native / "example.py").plus_one)(2) == 3
    assert [path.parent for path in tmp_path.rglob("*.o")] == [Path(compiling.cache_folder())]


def test_what_is_not_of_the_package_is_not_cached(native):
    """Its name does not tell which source it has."""
    compiling = load_compiling(native)
    example = native.parent / "example.py"
    for content, result in ((PLUS_ONE, 3), (PLUS_ONE.replace("1", "2"), 4)):
        example.write_text(content)
        linecache.checkcache()
        kernel = compiling.compiled(load_module(example).plus_one)
        assert kernel(2) == result
        assert not kernel.from_cache


def test_damaged_machine_code_is_compiled_anew(native):
    compiling = load_compiling(native)
    compiling.compiled(load_module(native / "example.py").plus_one)(2)
    (path,) = Path(compiling.cache_folder()).glob("*.o")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], whole):
        path.write_bytes(damaged)
        kernel = compiling.compiled(load_module(native / "example.py").plus_one)
        assert kernel(2) == 3
        assert kernel.from_cache == (damaged == whole)
        assert path.read_bytes() == whole


def test_whether_a_kernel_must_be_compiled_is_known(native):
    compiling = load_compiling(native)
    first, second = (compiling.compiled(load_module(native / "example.py").plus_one) for _ in range(2))
    assert [compiling.is_cached(kernel) for kernel in (first, second)] == [False, False]
    first.load()
    assert [compiling.is_cached(kernel) for kernel in (first, second)] == [True, True]
    (path,) = Path(compiling.cache_folder()).glob("*.o")
    path.unlink()
    assert [compiling.is_cached(kernel) for kernel in (first, second)] == [True, False]


def test_the_digest_is_of_all_names_and_contents(native):
    compiling = load_compiling(native)
    digests = [compiling.sources_digest()]
    for change in (
        lambda: (native / "merging.py").write_text((native / "merging.py").read_text() + "\n"),
        lambda: (native / "merging.py").rename(native / "other.py"),
        lambda: (native / "empty.py").write_text(""),
        lambda: (native / "text.py").unlink(),
    ):
        change()
        digests.append(compiling.sources_digest())
    assert len(set(digests)) == len(digests)
    (native / "notes.txt").write_text("no source")
    assert compiling.sources_digest() == digests[-1]


def test_caches_of_other_sources_go_when_nobody_has_used_them_for_a_day(native):
    cache = native / "__pycache__"
    day = 24 * 3600
    ages = {"kernels-old": day + 60, "kernels-recent": day - 60, "others": 9 * day}
    for name, age in ages.items():
        (cache / name / "native_0").mkdir(parents=True)
        (cache / name / "native_0" / "kernel.o").write_text("")
        os.utime(cache / name, (time.time() - age,) * 2)
    folder = load_compiling(native).cache_folder()
    left = {path.name for path in cache.iterdir() if path.is_dir()}  # Python's own files lie beside them
    assert left == {"kernels-recent", "others", Path(folder).name}


def test_a_process_keeps_its_cache_by_using_it(native):
    """However long ago it imported the kernels; and where another process has deleted the cache, it makes a new one."""
    compiling = load_compiling(native)
    folder = Path(compiling.cache_folder())
    plus_one = load_module(native / "example.py").plus_one
    kernel = compiling.compiled(plus_one)
    os.utime(folder, (0, 0))
    assert kernel(2) == 3
    compiling.delete_unused(folder.parent)
    assert len(list(folder.glob("*.o"))) == 1

    shutil.rmtree(folder)
    assert compiling.compiled(plus_one)(2) == 3
    assert len(list(folder.glob("*.o"))) == 1


def test_a_head_takes_every_field_by_its_name():
    numbers = np.arange(3)
    head = Head((0, 8), {8: numbers, 0: 5})
    assert (head[0], head[8]) == (5, address_of(numbers))
    assert head.arrays[8] is numbers
    copy = head.copy()
    copy[0] = 6
    assert (head[0], copy[0], copy[8]) == (5, 6, head[8])
    assert copy.arrays[8] is numbers
    for values in ({0: 5}, {0: 5, 8: 1, 16: 1}, {0: 5, 16: 1}):
        with pytest.raises(ValueError, match="missing from a head, or unknown to it"):
            Head((0, 8), values)


@pytest.mark.slow
def test_the_order_of_fields_is_declared_once(copy, tmp_path):
    """All declarations of fields in reverse: kernels and classes still agree, and merges and ids are the same."""
    num_changed = 0
    for path in (copy / "native").glob("*.py"):
        source = path.read_text()
        for fields in re.findall(r"\(  # fields of .*\n((?:    .*\n)+)\) = \w+_FIELDS", source):
            source = source.replace(fields, "".join(reversed(fields.splitlines(keepends=True))))
            num_changed += 1
        path.write_text(source)
    assert num_changed == 5
    text = tmp_path / "text.txt"
    text.write_text("the cat's hat, they'll say, is 1234 times the hat of aaaaaaaaaaaaaaaaaaaaaaaaaaa catssss\n" * 50)
    tokenizer = Tokenizer(*train_bpe(text, 320))
    code = f"""
from tokenization import *
from tokenization import kernels
kernels.KERNELS_FROM_BYTES = 0
report = TrainingReport()
tokenizer = Tokenizer(*train_bpe({str(text)!r}, 320, report=report))
file = tokenizer.encode_files([{str(text)!r}], {str(tmp_path / "ids.bin")!r})
print((report.path, tokenizer.merges, file.tokens.tolist()))
"""
    expected = ("compiled kernels", tokenizer.merges, tokenizer.plain.encode(text.read_text()))
    assert run_copy(copy, code) == f"{expected}\n"
