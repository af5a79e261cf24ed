"""Softmax of causal attention, in place, and its gradient: one pass over scores that are in the cache.

    P_qk = exp(S_qk - max) / sum     for keys k <= q, and 0 for those after the query            dS = P (dP - sum(dP P))

The queries are a block that begins at position `start`, the keys all those up to the block's end.
"""

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run, team_size, thread_of
from lm.machine.lanes import (
    BFLOAT16,
    FLOAT,
    FLOAT32,
    INT,
    LANES,
    LONG,
    Total,
    at,
    everywhere,
    exponentials,
    for_each,
    load,
    loop,
    spread,
    store,
    store_zeros,
)
from tokenization.native.instructions import instruction, load64


def _hide(builder: Any, row: Any, count: Any, reach: Any, size: int) -> None:
    """Replaces the last numbers, from `count` to before `reach`, by -inf; they are fewer than a vector has."""
    hidden = float("-inf")
    whole = builder.icmp_signed("==", builder.and_(reach, LONG(LANES - 1)), LONG(0))
    with builder.if_else(whole) as (in_one, one_by_one):
        with in_one:
            start = builder.sub(reach, LONG(LANES))
            place, numbers = at(builder, row, start, size), ir.VectorType(LONG, LANES)
            room = builder.sub(count, start)
            nothing = ir.Constant(numbers, ir.Undefined)
            ends = builder.shuffle_vector(
                builder.insert_element(nothing, room, INT(0)), nothing, ir.Constant(ir.VectorType(INT, LANES), None)
            )
            seen = builder.icmp_signed("<", ir.Constant(numbers, list(range(LANES))), ends)
            scores = builder.select(seen, load(builder, place, LANES, size), everywhere(hidden, LANES))
            store(builder, scores, place, size)
        with one_by_one, loop(builder, count, reach, 1) as index:
            store(builder, everywhere(hidden, 1), at(builder, row, index, size), size)


def _softmax(size: int) -> Callable[[int, int, int, int, int], int]:
    """Returns the instruction for rows of numbers of this size."""

    @instruction
    def softmax(builder: Any, row: Any, count: Any, reach: Any, length: Any, scratch: Any) -> None:
        """Replaces the first `count` scores of a row by their softmax, the others by 0; whole vectors end at reach."""
        _hide(builder, row, count, reach, size)
        _, total = exponentials(builder, row, reach, size, scratch)
        inverse = builder.fdiv(FLOAT(1.0), total)

        def shares(index: Any, width: int) -> None:
            powers = load(builder, at(builder, scratch, index, FLOAT32), width)
            powers = builder.fmul(powers, spread(builder, inverse, width))
            store(builder, powers, at(builder, row, index, size), size)

        for_each(builder, reach, shares)
        store_zeros(builder, row, reach, length, size)

    return softmax


def _softmax_backward(size: int) -> Callable[[int, int, int, int], int]:
    """Returns the instruction for rows of numbers of this size."""

    @instruction
    def softmax_backward(builder: Any, gradients: Any, shares: Any, reach: Any, length: Any) -> None:
        """Replaces the gradients of a row's shares by those of its scores, 0 from `reach` on."""
        total = Total(builder)

        def both(index: Any, width: int) -> tuple[Any, Any]:
            gradient, share = (load(builder, at(builder, x, index, size), width, size) for x in (gradients, shares))
            return gradient, share

        for_each(builder, reach, lambda index, width: total.add_product(builder, *both(index, width)))
        sum_ = total.sum(builder)

        def build(index: Any, width: int) -> None:
            gradient, share = both(index, width)
            result = builder.fmul(share, builder.fsub(gradient, spread(builder, sum_, width)))
            store(builder, result, at(builder, gradients, index, size), size)

        for_each(builder, reach, build)
        store_zeros(builder, gradients, reach, length, size)

    return softmax_backward


softmax_float32, softmax_bfloat16 = _softmax(FLOAT32), _softmax(BFLOAT16)
softmax_backward_float32, softmax_backward_bfloat16 = _softmax_backward(FLOAT32), _softmax_backward(BFLOAT16)

SCORES, SHARES, START, QUERIES, KEYS, SIZE, SCRATCH = range(FIELDS, FIELDS + 56, 8)


@compiled(__file__)
def causal_softmax_rows(task: int) -> None:
    """Computes a thread's matrices."""
    size = load64(task + SIZE)
    keys = load64(task + KEYS)
    queries = load64(task + QUERIES)
    scratch = load64(task + SCRATCH) + 4 * keys * thread_of(task)[0]
    first, behind = portion(task)
    for query in range(first * queries, behind * queries):
        row = load64(task + SCORES) + size * query * keys
        count = load64(task + START) + query - query // queries * queries + 1
        reach = min(keys, (count + LANES - 1) & -LANES)
        if size == BFLOAT16:
            softmax_bfloat16(row, count, reach, keys, scratch)
        else:
            softmax_float32(row, count, reach, keys, scratch)


@compiled(__file__)
def causal_softmax_rows_backward(task: int) -> None:
    """Computes a thread's matrices of gradients; SCORES holds dP, and then dS."""
    size = load64(task + SIZE)
    keys = load64(task + KEYS)
    queries = load64(task + QUERIES)
    first, behind = portion(task)
    for query in range(first * queries, behind * queries):
        row = load64(task + SCORES) + size * query * keys
        shares = load64(task + SHARES) + size * query * keys
        count = load64(task + START) + query - query // queries * queries + 1
        reach = min(keys, (count + LANES - 1) & -LANES)
        if size == BFLOAT16:
            softmax_backward_bfloat16(row, shares, reach, keys)
        else:
            softmax_backward_float32(row, shares, reach, keys)


def causal_softmax(scores: Tensor, start: int) -> None:
    """Replaces scores by attention weights: (n, queries, keys), contiguous."""
    n, queries, keys = scores.shape
    scratch = scores.new_empty(team_size(), keys, dtype=torch.float32)
    fields = (scores, 0, start, queries, keys, scores.element_size(), scratch)
    run(causal_softmax_rows, n, *fields, small=scores.numel() < SMALL)


def causal_softmax_backward(d_weights: Tensor, weights: Tensor, start: int) -> None:
    """Replaces gradients of attention weights by those of the scores: (n, queries, keys) each, contiguous."""
    n, queries, keys = weights.shape
    fields = (d_weights, weights, start, queries, keys, weights.element_size(), 0)
    run(causal_softmax_rows_backward, n, *fields, small=weights.numel() < SMALL)
