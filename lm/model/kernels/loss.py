"""The loss of rows of logits and its gradient, which takes the place of the logits while they are in the cache.

l = log(sum(exp(x)))        loss = l - x_target + z l^2            dx = p (1 + 2 z l) - [is target],  p = exp(x - l)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run, team_size, thread_of
from lm.machine.lanes import (
    BFLOAT16,
    FLOAT,
    FLOAT32,
    INT,
    as_float,
    at,
    exponentials,
    for_each,
    load,
    log,
    spread,
    store,
    store_zeros,
)
from tokenization.native.instructions import instruction, load64


def _loss(size: int) -> Callable[[int, int, int, int, int, int], int]:
    """Returns the instruction that computes a row's loss from logits of this size."""

    @instruction
    def loss(builder: Any, row: Any, length: Any, target: Any, z: Any, scratch: Any, result: Any) -> Any:
        """Stores the loss, and the exponentials of the logits in scratch; returns the factor that makes dx of them."""
        most, sum_ = exponentials(builder, row, length, size, scratch)
        weight = as_float(builder, z)
        picked = builder.extract_element(load(builder, at(builder, row, target, size), 1, size), INT(0))
        beyond = log(builder, sum_)
        normalizer = builder.fadd(beyond, most)
        square = builder.fmul(weight, builder.fmul(normalizer, normalizer))
        one = builder.fadd(builder.fsub(beyond, builder.fsub(picked, most)), square)
        store(builder, spread(builder, one, 1), result)
        doubled = builder.fmul(FLOAT(2.0), builder.fmul(weight, normalizer))
        factor = builder.fdiv(builder.fadd(FLOAT(1.0), doubled), sum_)
        return builder.zext(builder.bitcast(factor, INT), row.type)

    return loss


def _loss_backward(size: int) -> Callable[[int, int, int, int, int, int], int]:
    """Returns the instruction that stores dx in numbers of this size."""

    @instruction
    def loss_backward(builder: Any, row: Any, length: Any, padded: Any, target: Any, scratch: Any, factor: Any) -> None:
        """Stores the scaled exponentials, less 1 at the target, and 0 behind the vocabulary."""
        place = at(builder, scratch, target, FLOAT32)
        hit = builder.fdiv(FLOAT(1.0), as_float(builder, factor))
        store(builder, builder.fsub(load(builder, place, 1), spread(builder, hit, 1)), place)

        def build(index: Any, width: int) -> None:
            powers = load(builder, at(builder, scratch, index, FLOAT32), width)
            powers = builder.fmul(powers, spread(builder, as_float(builder, factor), width))
            store(builder, powers, at(builder, row, index, size), size)

        for_each(builder, length, build)
        store_zeros(builder, row, length, padded, size)

    return loss_backward


loss_float32, loss_bfloat16 = _loss(FLOAT32), _loss(BFLOAT16)
loss_backward_float32, loss_backward_bfloat16 = _loss_backward(FLOAT32), _loss_backward(BFLOAT16)

LOGITS, TARGETS, LENGTH, PADDED, SIZE, Z, SCRATCH, LOSSES, WITH_GRADIENTS = range(FIELDS, FIELDS + 72, 8)


@compiled(__file__)
def loss_rows(task: int) -> None:
    """Computes the losses of a thread's rows, and their gradients where they are wanted."""
    first, behind = portion(task)
    length = load64(task + LENGTH)
    padded = load64(task + PADDED)
    size = load64(task + SIZE)
    z = load64(task + Z)
    scratch = load64(task + SCRATCH) + 4 * length * thread_of(task)[0]
    for index in range(first, behind):
        row = load64(task + LOGITS) + size * index * padded
        target = load64(load64(task + TARGETS) + 8 * index)
        result = load64(task + LOSSES) + 4 * index
        if size == BFLOAT16:
            factor = loss_bfloat16(row, length, target, z, scratch, result)
        else:
            factor = loss_float32(row, length, target, z, scratch, result)
        if load64(task + WITH_GRADIENTS):
            if size == BFLOAT16:
                loss_backward_bfloat16(row, length, padded, target, scratch, factor)
            else:
                loss_backward_float32(row, length, padded, target, scratch, factor)


def losses_of(logits: Tensor, targets: Tensor, vocab_size: int, z_loss: float, with_gradients: bool) -> Tensor:
    """Returns the loss of each row, (rows,) in float32; `with_gradients` puts their gradients in the logits' place.

    logits: (rows, at least vocab_size), float32 or bfloat16, contiguous; targets: (rows,), int64, contiguous. Raises
    TypeError for other dtypes, ValueError for other lengths, and IndexError for a target outside of the vocabulary.
    """
    if targets.dtype != torch.int64 or logits.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"the kernel of the loss does not know {logits.dtype} logits with {targets.dtype} targets")
    if len(targets) != len(logits):
        raise ValueError(f"there are {len(targets)} targets for {len(logits)} rows of logits")
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < vocab_size):
        raise IndexError(f"a target is outside of the vocabulary of {vocab_size} tokens")
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    scratch = logits.new_empty(team_size(), vocab_size, dtype=torch.float32)
    sizes = (vocab_size, logits.shape[1], logits.element_size(), float(z_loss))
    fields = (logits, targets, *sizes, scratch, losses, int(with_gradients))
    run(loss_rows, len(logits), *fields, small=logits.numel() < SMALL)
    return losses
