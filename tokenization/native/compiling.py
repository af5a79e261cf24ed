"""Compiles kernels for this processor and keeps their machine code in a folder named by a digest of the sources.

    Python -> LLVM's intermediate representation (translation.py) -> machine code -> a file in the cache

A kernel is compiled, or read from the cache, at its first call; whatever it calls becomes part of it. With the digest
in the path, any change to any source of this package starts an empty cache. Folders of former sources are deleted once
no process has used them for a day.
"""

import functools
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite  # type: ignore[import-untyped]
import llvmlite.binding as llvm  # type: ignore[import-untyped]

from tokenization.caches import places
from tokenization.files import writing
from tokenization.native.calling import add_symbols, built_in
from tokenization.native.source import Source
from tokenization.native.translation import translate

PREFIX = "kernels-"
UNUSED_SECONDS = 24 * 3600  # after which the cache of other sources is deleted

Function = TypeVar("Function", bound=Callable[..., Any])

_loading = threading.RLock()


class Kernel:
    """A function of int64 that is compiled; Python calls it like any other, and other threads go on meanwhile.

    They wait where it returns an object. It returns an int where the source says bool.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.source = Source(function)
        self.from_cache = False
        self.address = 0  # where the loaded kernel is, for kernels that are given it
        self._call: Any = None

    def __call__(self, *arguments: int) -> Any:
        if self._call is None:
            self.load()
        return self._call(*arguments)

    def load(self) -> None:
        """Compiles the kernel, or reads its machine code from the cache."""
        with _loading:
            if self._call is not None:
                return
            path = self._cached()
            code = read_code(path) if path else None
            self.from_cache = code is not None
            if code is None:
                code = machine_code(translate(self.source))
                if path:
                    write_code(path, code)
            self._link(code)

    def is_cached(self) -> bool:
        """Returns whether the kernel is loaded, or its machine code lies in the cache."""
        path = self._cached()
        return self._call is not None or (path is not None and path.exists())

    def _cached(self) -> Path | None:
        """Returns the file for the machine code; None where there is no cache, or its name does not tell the source."""
        folder = cache_folder()
        if not folder or Path(self.source.function.__code__.co_filename).parent != Path(__file__).parent:
            return None
        with suppress(OSError):
            mark_used(Path(folder))
        return Path(folder) / f"{self.source.name}.o"

    def _link(self, code: bytes) -> None:
        add_symbols()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
        engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self.address = engine.get_function_address("run")
        self._call, self._method = built_in(self.source.name, engine.get_function_address("call"))
        engine.detach()  # keeps the machine code for good: when Python ends, another thread may still run it


def compiled(function: Function) -> Function:
    """Marks a function to be compiled at its first call."""
    return cast(Function, Kernel(function))


def rare(kernel: Function) -> Function:
    """Marks a kernel that an inner loop seldom calls. It is not made part of the loop, which needs all registers."""
    cast(Kernel, kernel).source.is_rare = True
    return kernel


def load(kernel: Callable[..., Any]) -> int:
    """Compiles a kernel, or reads it from the cache, unless that was done; returns the address of its code."""
    assert isinstance(kernel, Kernel)
    kernel.load()
    return kernel.address


def built_in_of(kernel: Function) -> Function:
    """Returns the built-in function that calls a kernel, for those who call it so often that Kernel's call counts."""
    load(kernel)
    return cast(Function, kernel._call)  # type: ignore[attr-defined]


def is_cached(kernel: Callable[..., Any]) -> bool:
    """Returns whether a kernel need not be compiled."""
    assert isinstance(kernel, Kernel)
    return kernel.is_cached()


def target_machine() -> Any:
    """Returns LLVM's description of this processor. Each engine needs one of its own, and deletes it in the end."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=host_features(),
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


def host_features() -> str:
    """Returns the instruction sets of this processor, as LLVM writes them; "" where it cannot tell."""
    try:
        return str(llvm.get_host_cpu_features().flatten())
    except RuntimeError:
        return ""


def machine_code(module: Any) -> bytes:
    """Optimizes a module of LLVM's intermediate representation and returns its machine code."""
    machine = target_machine()
    module.triple, module.data_layout = llvm.get_process_triple(), str(machine.target_data)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization, options.slp_vectorization = True, False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return bytes(machine.emit_object(parsed))


# --- the cache --------------------------------------------------------------------------------------------------------


def read_code(path: Path) -> bytes | None:
    """Returns the machine code in a file; None where there is none, or where it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if sha256(code).digest() == digest else None


def write_code(path: Path, code: bytes) -> None:
    """Writes machine code into a file, if that is possible."""
    with suppress(OSError), writing(path) as file:
        file.write(sha256(code).digest() + code)


def files_digest() -> bytes:
    """Returns a digest of the names and contents of all sources in this package."""
    digest = sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + sha256(source.read_bytes()).digest())
    return digest.digest()


FILES_AT_IMPORT = files_digest()


def sources_digest() -> str:
    """Returns a digest of all sources in this package, of LLVM and of this processor."""
    digest = sha256(files_digest())
    machine = (llvmlite.__version__, llvm.get_process_triple(), llvm.get_host_cpu_name(), host_features())
    digest.update(repr(machine).encode())
    return digest.hexdigest()[:16]


@functools.cache
def cache_folder() -> str:
    """Returns the folder that caches the kernels of these very sources; "" where no place can be written.

    There is none, either, where a source has changed since it was imported: it would not be what is compiled.
    """
    if files_digest() != FILES_AT_IMPORT:
        return ""
    for place in places(Path(__file__).parent):
        folder = place / (PREFIX + sources_digest())
        try:
            mark_used(folder)
            probe = folder / f"{os.getpid()}.probe"
            probe.touch()
            probe.unlink()
        except OSError:  # a read-only installation; another user's folder
            continue
        delete_unused(place)
        return str(folder)
    return ""


def mark_used(folder: Path) -> None:
    """Dates the folder to now, which keeps other processes from deleting it; makes it where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)


def delete_unused(place: Path) -> None:
    """Deletes the caches of other sources that no process has used for UNUSED_SECONDS."""
    for folder in place.glob(PREFIX + "*"):
        try:
            unused = time.time() - folder.stat().st_mtime > UNUSED_SECONDS
        except OSError:  # another process has just deleted it
            continue
        if unused:
            shutil.rmtree(folder, ignore_errors=True)
