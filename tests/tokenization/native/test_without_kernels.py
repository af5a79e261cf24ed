"""Proves that without llvmlite, or with a compiler that fails, plain Python does the work; and that nothing is compiled
while phases are timed."""

import os
import subprocess
import sys

import pytest
from helpers.native import native_modules

from tokenization import END_OF_TEXT, GPT2_PATTERN, TrainingReport, native, train_bpe
from tokenization import kernels as kernels_module
from tokenization.native.compiling import Kernel

# --- without a compiler, without a cache ---


def run_python(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return done.stdout


def test_small_inputs_do_not_import_llvm():
    assert (
        run_python(
            "import sys; from tokenization import *;"
            "t = Tokenizer({i: bytes([i]) for i in range(256)}, []); t.encode('hello');"
            "print('llvmlite' in sys.modules)"
        )
        == "False\n"
    )


def test_without_llvmlite_the_reference_is_used(tmp_path):
    (tmp_path / "text.txt").write_text("hello world " * 10)
    code = f"""
import sys
sys.modules["llvmlite"] = None
from tokenization import *
from tokenization import kernels
kernels.KERNELS_FROM_BYTES = 0
report = TrainingReport()
train_bpe({str(tmp_path / "text.txt")!r}, 260, report=report)
print(report.path)
"""
    assert run_python(code) == "plain Python (llvmlite is not installed)\n"


def test_a_compiler_that_cannot_be_used_is_said_and_done_without(tmp_path):
    (tmp_path / "text.txt").write_text("hello world " * 10)
    code = f"""
import llvmlite.binding
def fail(*arguments, **names):
    raise RuntimeError("no target for this triple")
llvmlite.binding.create_mcjit_compiler = fail
from tokenization import *
from tokenization import kernels
from tokenization.encoding import EncodingReport
kernels.KERNELS_FROM_BYTES = 0
training, encoding = TrainingReport(), EncodingReport()
tokenizer = Tokenizer(*train_bpe({str(tmp_path / "text.txt")!r}, 260, report=training))
tokenizer.encode_files([{str(tmp_path / "text.txt")!r}], {str(tmp_path / "ids.bin")!r}, report=encoding)
print(training.path, encoding.path, *training.seconds, sep="; ")
"""
    training, encoding, *phases = run_python(code).strip().split("; ")
    assert training == encoding
    assert training == "plain Python (the kernels cannot be compiled: no target for this triple)"
    assert "compiling" not in phases


def test_whatever_the_compiler_raises_leads_to_plain_python(monkeypatch):
    def fail(work: str, pattern: str, step: object) -> None:
        raise OSError("libLLVM.so: cannot\nallocate memory")

    monkeypatch.setattr(native, "compile_kernels", fail)
    module, reason, _ = kernels_module.load_kernels.__wrapped__("training", GPT2_PATTERN)
    assert module is None
    assert reason == "plain Python (the kernels cannot be compiled: libLLVM.so: cannot allocate memory)"


@pytest.mark.parametrize("work", ["training", "encoding"])
def test_nothing_is_left_to_compile_while_phases_are_timed(work, tokenizer, text, tmp_path, always_compiled):
    """Every kernel that the package calls for the work is known to the function that compiles them beforehand."""
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    native.compile_kernels(work, tokenizer.pattern)
    kernels = {value for module in native_modules() for value in vars(module).values() if isinstance(value, Kernel)}
    loaded = {kernel for kernel in kernels if kernel.address}
    assert len(kernels) > 50
    assert len(loaded) >= 5
    if work == "training":
        report = TrainingReport()
        train_bpe(path, 1000, [END_OF_TEXT], num_processes=2, report=report)
        assert list(report.seconds) == ["loading", "reading", "pre-tokenizing", "merges"]
    else:
        tokenizer.encode_files([path], tmp_path / "ids.bin", 2)
    assert {kernel for kernel in kernels if kernel.address} == loaded
