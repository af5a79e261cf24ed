"""The language of the kernels: Python functions, plus instructions that Python cannot express."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, get_args

from llvmlite import ir  # type: ignore[import-untyped]

LONG, BIT = ir.IntType(64), ir.IntType(1)
ZERO, ONE = LONG(0), LONG(1)


class Instruction:
    """One step that Python has no word for. emit: takes LLVM's builder and int64 values; returns one, or None."""

    def __init__(self, emit: Callable[..., Any]) -> None:
        self.emit = emit


class Source:
    """A kernel in Python: its name and signature, and what it consists of, which is read when it is translated."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        code = function.__code__
        self.parameters = code.co_varnames[: code.co_argcount]
        self.num_results = num_results(function.__annotations__["return"])
        self.is_rare = False  # see compiling.rare
        self.returns_object = function.__annotations__["return"] is object  # named by its address

    @functools.cached_property
    def definition(self) -> ast.FunctionDef:
        """The syntax tree."""
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(self.function))).body
        assert isinstance(definition, ast.FunctionDef)
        return definition

    def named(self, name: str) -> Any:
        """Returns what a name that is not local stands for; None if it is not defined."""
        return self.function.__globals__.get(name)

    def type(self) -> Any:
        """Returns LLVM's type of the function."""
        result = ir.VoidType() if self.num_results == 0 else LONG
        if self.num_results > 1:
            result = ir.LiteralStructType([LONG] * self.num_results)
        return ir.FunctionType(result, [LONG] * len(self.parameters))


def num_results(annotation: Any) -> int:
    """Returns how many values a function with this annotation returns."""
    return 0 if annotation is None else len(get_args(annotation)) or 1
