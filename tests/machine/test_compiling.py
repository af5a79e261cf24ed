"""Proves that a run outlives whatever torch.compile finds in its cache, or cannot do, and says so in a line."""

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from lm.machine import compiling
from lm.machine.compiling import compile_or_run, cut_off_libraries, is_cut_off, why_not_compiled
from lm.runs.events import read_curves


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Inductor's cache, with a library, its source, a module and a lock in it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("ab", "locks"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    shutil.copy(some_library(), tmp_path / "cache/ab/cabc.main.so")
    (tmp_path / "cache/ab/cabc.main.cpp").write_text("int x;")
    (tmp_path / "cache/ab/cabc.py").write_text("")
    (tmp_path / "cache/locks/cabc.lock").write_text("")
    return tmp_path / "cache"


def some_library() -> Path:
    return sorted(Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so"))[0]


TOLD = """compiling the model: some 30 s for a new shape, a few s after that
compiled in 0 s
"""


class Inductor:
    """Fails with these errors, one after another, and works then; for ever with the last where repeat is set."""

    def __init__(self, *errors: Exception, repeat: bool = False):
        self.errors, self.repeat = list(errors), repeat
        self.caches: list[str] = []

    def __call__(self, graph, inputs):
        self.caches.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        if self.errors:
            raise self.errors[0] if self.repeat and len(self.errors) == 1 else self.errors.pop(0)
        return "compiled"


def test_what_works_is_left_alone(cache, monkeypatch, capfd):
    monkeypatch.setattr(compiling, "run_inductor", Inductor())
    before = sorted(cache.rglob("*"))
    assert compile_or_run(len, []) == "compiled"
    assert sorted(cache.rglob("*")) == before
    assert capfd.readouterr() == (TOLD, "")


NAMED = {
    "cabc.main.so": "backend='inductor' raised:\nImportError: {}/ab/cabc.main.so: file too short",
    "cabc.main.cpp": "C++ compile error: {}/ab/cabc.main.cpp:3:1 ...",
    "cabc.py": "AttributeError: module 'torch._inductor.runtime.compile_tasks.cabc' has no attribute 'call'",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_file_that_an_error_names_is_deleted(name, cache, monkeypatch, capfd):
    path = cache / "ab" / name
    inductor = Inductor(ImportError(NAMED[name].format(cache)))
    monkeypatch.setattr(compiling, "run_inductor", inductor)
    assert compile_or_run(len, []) == "compiled"
    assert inductor.caches == [str(cache)] * 2
    assert not path.exists()
    assert len(list((cache / "ab").iterdir())) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == (TOLD, 1)
    assert err.startswith(f"lm fit: {path}: torch.compile left it damaged")


def test_an_error_that_names_nothing_leads_around_the_cache(cache, monkeypatch, capfd, tmp_path):
    """Files elsewhere are never deleted, whatever an error says of them."""
    for error in (
        RuntimeError("?"),
        OSError(f"{tmp_path}/mine.so: wrong"),
        OSError(f"{cache}/ab/gone.so: no such file"),
    ):
        (tmp_path / "mine.so").write_text("mine")
        inductor = Inductor(error)
        monkeypatch.setattr(compiling, "run_inductor", inductor)
        assert compile_or_run(len, []) == "compiled"
        assert inductor.caches[0] == str(cache) != inductor.caches[1]
        assert not Path(inductor.caches[1]).exists()
        assert (tmp_path / "mine.so").read_text() == "mine"
        out, err = capfd.readouterr()
        assert (out, len(err.splitlines())) == (TOLD, 1)
        assert err.startswith(f"lm fit: {cache}: torch.compile's cache cannot be used ({str(error)[:9]}")


def test_what_cannot_be_compiled_runs_as_it_is(cache, monkeypatch, capfd):
    """Even where the same file comes back damaged."""
    path = cache / "ab/cabc.main.cpp"
    inductor = Inductor(RuntimeError(f"{path}:3: error\n" + "much more\n" * 100), repeat=True)
    monkeypatch.setattr(compiling, "run_inductor", inductor)
    monkeypatch.setattr(compiling, "delete", lambda path: None)
    assert compile_or_run(len, []) is len
    assert len(inductor.caches) == 3
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == (TOLD.splitlines(keepends=True)[0], 1)
    assert "torch.compile does not work for this model" in err


def test_a_cache_that_cannot_be_used(tmp_path, monkeypatch):
    for folder in (os.devnull, tmp_path / "none"):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        monkeypatch.setattr(compiling, "run_inductor", Inductor(NotADirectoryError(folder)))
        assert compile_or_run(len, []) == "compiled"


@pytest.mark.skipif(sys.platform != "linux", reason="of ELF files")
def test_libraries_that_were_cut_off(cache):
    path, whole = cache / "ab/cabc.main.so", some_library().read_bytes()
    assert cut_off_libraries(cache) == []
    for size in (0, 1, 63, 64, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert cut_off_libraries(cache) == [path], size
    path.write_bytes(bytes(len(whole)))  # as a power cut leaves it
    assert cut_off_libraries(cache) == [path]
    with open(cache / "locks/cabc.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cut_off_libraries(cache) == []  # another process is writing it
    (cache / "locks/cabc.lock").unlink()
    assert cut_off_libraries(cache) == [path]
    big_endian = b"\x7fELF\x02\x02" + whole[6:]
    path.write_bytes(big_endian[:100])
    assert not is_cut_off(path)
    assert not is_cut_off(cache / "none.so")


def test_a_model_that_cannot_be_compiled_trains_all_the_same(lm, fit_arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("lm.training.fast_path.why_not_compiled", lambda device: "")
    monkeypatch.setattr(compiling, "run_inductor", Inductor(RuntimeError("out of order"), repeat=True))
    few = ("--trainer.max_steps=3", "--trainer.limit_val_batches=1", "--model.num_layers=1")
    torch._dynamo.reset()  # a graph of this shape that another test has compiled would be taken
    losses = []
    for compiled in ("true", "false"):
        done = lm(*fit_arguments(tmp_path / compiled, *few, f"--model.compile={compiled}"))
        assert done.code == 0
        expected = "lm fit: torch.compile does not work for this model (out of order); training goes on without it\n"
        assert done.err == (expected if compiled == "true" else "")
        losses.append(read_curves(tmp_path / compiled)["train/loss"].values)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# --- whether it works here ------------------------------------------------------------------------------------------


def probe(monkeypatch, run_inductor) -> str:
    torch.compiler.reset()  # the probe is compiled once in a process
    monkeypatch.setattr(compiling, "run_inductor", run_inductor)
    try:
        return why_not_compiled("cpu")
    finally:
        torch.compiler.reset()


def swap_two_lanes(graph, inputs):
    """Gives what the graph gives, but for two numbers of the last output, which change places."""

    def wrong(*inputs):
        *outputs, last = graph(*inputs)
        last[5, 3], last[5, 4] = last[5, 4].clone(), last[5, 3].clone()
        return *outputs, last

    return wrong


def one_is_not_a_number(graph, inputs):
    def wrong(*inputs):
        first, *outputs = graph(*inputs)
        first[0, 0] = torch.nan
        return first, *outputs

    return wrong


@pytest.mark.parametrize("run_inductor", [swap_two_lanes, one_is_not_a_number])
def test_wrong_numbers_are_found(run_inductor, cache, monkeypatch, tmp_path):
    compiler = tmp_path / "some-g++"
    compiler.write_text("#!/bin/sh\necho 'some-g++ (Debian 12.2.0-14) 12.2.0'\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(compiling, "cpp_compiler", lambda: str(compiler))
    assert probe(monkeypatch, run_inductor) == "torch.compile gives wrong numbers here (some-g++ 12.2.0)"


def test_right_numbers_are_no_reason(cache, monkeypatch):
    state = torch.get_rng_state()
    assert probe(monkeypatch, lambda graph, inputs: graph) == ""
    assert torch.equal(torch.get_rng_state(), state)  # a run is to be the same, compiled or not


def test_a_compiler_that_does_not_work_is_named_in_a_line(cache, monkeypatch):
    error = RuntimeError("C++ compile error\n\nCommand:\n" + "g++ and more\n" * 100)
    reason = probe(monkeypatch, Inductor(error, repeat=True))
    assert reason.startswith("torch.compile does not work here (")
    assert reason.endswith("C++ compile error); on a CPU it needs g++ or clang")
    assert len(reason.splitlines()) == 1


def test_a_run_goes_on_without_wrong_numbers(lm, fit_arguments, tmp_path, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "run_inductor", swap_two_lanes)
    monkeypatch.setattr(compiling, "compiler_version", lambda: "g++ 12.2.0")
    few = ("--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--model.num_layers=1", "--model.compile=true")
    done = lm(*fit_arguments(tmp_path / "run", *few))
    torch.compiler.reset()
    assert done.code == 0
    line = "lm fit: torch.compile gives wrong numbers here (g++ 12.2.0); training goes on without it\n"
    assert done.err == line
    assert ", compiled" not in done.out


@pytest.mark.slow
def test_what_gcc_got_wrong_is_right(tmp_path):
    """By the compiler that is here, from an empty cache."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = "from lm.machine.compiling import why_not_compiled; print(repr(why_not_compiled('cpu')))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "''\n", "")


# --- the compiler itself ---------------------------------------------------------------------------------------------

PROGRAM = """
import torch
from lm.machine.compiling import compile_or_run
x = torch.ones(7, 5, requires_grad=True)
loss = torch.compile(lambda x: (x.sin() * 2).sum(), backend=compile_or_run)(x)
loss.backward()
print(round(loss.item(), 3), round(x.grad.sum().item(), 3))
"""


@pytest.mark.slow
def test_every_file_of_the_cache_damaged(tmp_path):
    """Each kind in each way, as Inductor wrote them itself; the next run finds nothing wrong any more."""
    cache, whole = tmp_path / "cache", tmp_path / "whole"
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}

    def run() -> tuple[str, list[str]]:
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.splitlines()

    expected, errors = run()
    assert (expected.split()[0], errors) == ("58.903", [])
    shutil.copytree(cache, whole)
    graphs = [whole / "fxgraph", whole / "aotautograd"]
    for pattern in (r"\.main\.so", r"\.so", r"\.py", r"\.cpp", r"graph/.*"):
        files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
        files = [path for path in files if re.search(pattern + "$", str(path))]
        assert files
        for damage in (lambda data: b"", lambda data: data[: len(data) // 10], lambda data: os.urandom(300)):
            shutil.rmtree(cache)
            ignored = shutil.ignore_patterns(*(folder.name for folder in graphs if "graph" not in pattern))
            shutil.copytree(whole, cache, ignore=ignored)
            for path in files:
                (cache / path).write_bytes(damage((whole / path).read_bytes()))
            found, errors = run()
            assert found == expected
            assert all(line.startswith("lm fit: ") for line in errors), errors
            assert run() == (expected, [])


@pytest.mark.slow
def test_compilations_that_are_killed(tmp_path):
    """At whatever moment, with the compilers that they have started; the next run goes on with what they leave."""
    cache, rng = tmp_path / "cache", random.Random(0)
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM]
    start = time.monotonic()
    whole = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    usual, killed = time.monotonic() - start, 0
    for _ in range(10):
        if rng.random() < 0.5:
            shutil.rmtree(cache)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(usual * rng.uniform(0.3, 1))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        again = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (again.returncode, again.stdout) == (0, whole.stdout), again.stderr
        assert all(line.startswith("lm fit: ") for line in again.stderr.splitlines()), again.stderr
    assert killed


def test_the_key_of_the_cache_names_the_operators(cache, monkeypatch):
    tags = []

    def inductor(graph, inputs):
        tags.append(torch.compiler.config.cache_key_tag)

    monkeypatch.setattr(compiling, "run_inductor", inductor)
    with torch.compiler.config.patch(cache_key_tag="mine"):
        for digest in ("one", "two"):
            monkeypatch.setattr(compiling, "sources_digest", lambda digest=digest: digest)
            compiling.compile_graph(len, [])
        assert torch.compiler.config.cache_key_tag == "mine"
    assert tags == ["mine one", "mine two"]
