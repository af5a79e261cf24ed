"""Operators with a backward pass of their own, which torch.compile takes as one node of its graph.

    @operator("lm::double")
    def double(x: Tensor) -> Tensor:
        return 2 * x

    double.register_fake(torch.empty_like)
    double.register_autograd(lambda ctx, d_y: double(d_y), setup_context=lambda ctx, inputs, output: None)

They are those of torch.library.custom_op, where torch's dispatcher takes a quarter of a millisecond for a call and its
backward pass. Where nothing traces the computation, the same functions are called through torch.autograd.Function, or
directly where no gradient is needed. The result is the same. There is one derivative, backwards, by torch.autograd: a
second one, torch.func.grad and derivatives in forward mode are refused.
"""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm.machine.torch_inside import is_followed, is_forward_mode

_SOURCES: dict[str, str] = {}  # the files that define operators, each with the digest that it had then


class Operator:
    """A function of tensors and numbers that changes none of its arguments and returns new tensors.

    op: the operator of torch.library, which a compiled graph contains.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.function, self.name = function, name
        _add_source(function.__code__.co_filename)
        self.op = torch.library.custom_op(name, mutates_args=())(function)
        self.differentiable: type[torch.autograd.Function] | None = None

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """Sets what computes the shapes and dtypes of the results alone."""
        self.op.register_fake(fake)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Sets the backward pass and what is kept for it, as torch.library does."""
        self.op.register_autograd(backward, setup_context=setup_context)

        # With a setup_context of its own, Function.apply would read the function's signature at each call.
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = self.function(*arguments)
            setup_context(ctx, arguments, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self.differentiable = type(self.name, (torch.autograd.Function,), methods)

    def __call__(self, *arguments: Any) -> Any:
        """Computes the function of all its arguments; NotImplementedError in forward mode, where torch would take 0."""
        if is_forward_mode():
            raise NotImplementedError(f"{self.name} has no derivative in forward mode; take the plain modules")
        if is_followed():
            return self.op(*arguments)
        if not torch.is_grad_enabled():
            return self.function(*arguments)
        if self.differentiable is None:
            return self.op(*arguments)  # which refuses to be differentiated
        return self.differentiable.apply(*arguments)  # type: ignore[no-untyped-call]


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Makes a function an operator of this name, such as "lm::double"."""
    return lambda function: Operator(name, function)


def sources_digest() -> str:
    """Returns a digest of the files that define operators.

    Compiled code relies on the shapes that an operator told at its compilation, and torch's cache of such code does not
    know when they change.
    """
    return hashlib.sha256(repr(sorted(_SOURCES.items())).encode()).hexdigest()


def _add_source(path: str) -> None:
    with contextlib.suppress(OSError):  # a notebook's cell has no file
        _SOURCES[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
