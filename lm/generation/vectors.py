"""Instructions on vectors of float32, for the kernels of kernels.py; those on whole numbers are in whole_numbers.py.

The tokenizer's compiler translates both. Kernels know int64 alone: an address is one, and a float is passed as its 32
bits. Lengths are multiples of LANES. Weights are float32 or bfloat16, told apart by their size in bytes; bfloat16 is
converted to float32 as it is read.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir

from lm.machine.lanes import (
    ANY_ORDER,
    BFLOAT16,
    FLOAT,
    FLOAT32,
    INT,
    LANES,
    LONG,
    WIDE,
    as_bits,
    as_float,
    at,
    call,
    everywhere,
    exp,
    larger,
    load,
    loop,
    root,
    spread,
    store,
    sum_of,
    variable,
)
from tokenization.native.instructions import instruction, prefetch_nearby, prefetch_once

# AMD's processors read faster what is brought past their caches. Intel's then read it from memory each time, even where
# their last cache could hold the whole model: that took more than twice as long.
PAST_CACHES = llvm.get_host_cpu_name().startswith("znver")
AHEAD, LINE = 1024 if PAST_CACHES else 4096, 64  # bytes: weights are asked for so early, a cache line at a time


def _add_product(builder: Any, place: Any, left: Any, right: Any) -> None:
    product = builder.fmul(left, right, flags=ANY_ORDER)
    builder.store(builder.fadd(builder.load(place), product, flags=ANY_ORDER), place)


# --- floats ----------------------------------------------------------------------------------------------------------


@instruction
def add_floats(builder: Any, left: Any, right: Any) -> Any:
    """Adds two floats."""
    return as_bits(builder, builder.fadd(as_float(builder, left), as_float(builder, right)))


@instruction
def multiply_floats(builder: Any, left: Any, right: Any) -> Any:
    """Multiplies two floats."""
    return as_bits(builder, builder.fmul(as_float(builder, left), as_float(builder, right)))


@instruction
def inverse(builder: Any, number: Any) -> Any:
    """Computes 1 / number."""
    return as_bits(builder, builder.fdiv(FLOAT(1.0), as_float(builder, number)))


@instruction
def inverse_root_of_mean(builder: Any, total: Any, count: Any, eps: Any) -> Any:
    """Computes 1 / sqrt(total / count + eps)."""
    mean = builder.fdiv(as_float(builder, total), builder.sitofp(count, FLOAT))
    sum_ = builder.fadd(mean, as_float(builder, eps))
    return as_bits(builder, builder.fdiv(FLOAT(1.0), root(builder, sum_)))


# --- vectors ---------------------------------------------------------------------------------------------------------


def _dot(size: int) -> Callable[[int, int, int, int], int]:
    """Returns the instruction that multiplies a row of weights of this size with a vector of floats."""

    @instruction
    def dot(builder: Any, weights: Any, x: Any, length: Any, y: Any) -> None:
        """Stores the dot product."""
        total = variable(builder, FLOAT(0.0))
        whole = builder.and_(length, LONG(-WIDE))
        for width, start, stop in ((WIDE, LONG(0), whole), (LANES, whole, length)):
            with builder.if_then(builder.icmp_signed("<", start, stop)):
                place = variable(builder, everywhere(0.0, width))
                with loop(builder, start, stop, width) as index:
                    address = at(builder, weights, index, size)
                    if width == WIDE:
                        ask_ahead(builder, address, width * size)
                    weight = load(builder, address, width, size)
                    _add_product(builder, place, weight, load(builder, at(builder, x, index, 4), width))
                builder.store(builder.fadd(builder.load(total), sum_of(builder, builder.load(place))), total)
        builder.store(builder.load(total), builder.inttoptr(y, FLOAT.as_pointer()), align=4)

    return dot


def ask_ahead(builder: Any, address: Any, size: int) -> None:
    """Prefetches the weights that follow those of so many bytes at an address, AHEAD bytes further on."""
    for line in range(0, size, LINE):
        ask = prefetch_once if PAST_CACHES else prefetch_nearby
        ask.emit(builder, builder.add(address, LONG(AHEAD + line)))  # type: ignore[attr-defined]


dot_float32, dot_bfloat16 = _dot(FLOAT32), _dot(BFLOAT16)


# --- the parts of a layer --------------------------------------------------------------------------------------------


@instruction
def scale(builder: Any, x: Any, gains: Any, factor: Any, y: Any, length: Any) -> None:
    """Stores x_i * factor * gains_i."""
    factors = spread(builder, as_float(builder, factor), LANES)
    with loop(builder, LONG(0), length, LANES) as index:
        scaled = builder.fmul(load(builder, at(builder, x, index, 4), LANES), factors)
        scaled = builder.fmul(scaled, load(builder, at(builder, gains, index, 4), LANES))
        store(builder, scaled, at(builder, y, index, 4))


@instruction
def add(builder: Any, x: Any, y: Any, length: Any) -> None:
    """Adds x_i to y_i."""
    with loop(builder, LONG(0), length, LANES) as index:
        place = at(builder, y, index, 4)
        store(builder, builder.fadd(load(builder, place, LANES), load(builder, at(builder, x, index, 4), LANES)), place)


@instruction
def gate(builder: Any, x: Any, values: Any, y: Any, length: Any) -> None:
    """Stores silu(x_i) * values_i."""
    with loop(builder, LONG(0), length, LANES) as index:
        number = load(builder, at(builder, x, index, 4), LANES)
        bounded = larger(builder, number, everywhere(-88.0, LANES))
        below = builder.fadd(exp(builder, builder.fneg(bounded)), everywhere(1.0, LANES))
        gated = builder.fmul(builder.fdiv(number, below), load(builder, at(builder, values, index, 4), LANES))
        store(builder, gated, at(builder, y, index, 4))


@instruction
def rotate(builder: Any, x: Any, cosines: Any, sines: Any, y: Any, length: Any) -> None:
    """Rotates pairs: y_2k = x_2k cos - x_2k+1 sin, y_2k+1 = x_2k+1 cos + x_2k sin.

    Of each pair, cosines holds (cos, cos), and sines (-sin, sin).
    """
    swapped = ir.Constant(ir.VectorType(INT, LANES), [lane ^ 1 for lane in range(LANES)])
    with loop(builder, LONG(0), length, LANES) as index:
        pairs = load(builder, at(builder, x, index, 4), LANES)
        along = builder.fmul(pairs, load(builder, at(builder, cosines, index, 4), LANES))
        across = builder.shuffle_vector(pairs, pairs, swapped)
        across = builder.fmul(across, load(builder, at(builder, sines, index, 4), LANES))
        store(builder, builder.fadd(along, across), at(builder, y, index, 4))


@instruction
def softmax(builder: Any, scores: Any, length: Any, factor: Any) -> Any:
    """Replaces scores by e^(factor (score - the largest)), and returns their sum."""
    largest = variable(builder, everywhere(float("-inf"), LANES))
    with loop(builder, LONG(0), length, LANES) as index:
        numbers, seen = load(builder, at(builder, scores, index, 4), LANES), builder.load(largest)
        builder.store(builder.select(builder.fcmp_ordered("<", numbers, seen), seen, numbers), largest)
    most = spread(builder, call(builder, "vector.reduce.fmax", builder.load(largest)), LANES)
    factors = spread(builder, as_float(builder, factor), LANES)
    total = variable(builder, everywhere(0.0, LANES))
    with loop(builder, LONG(0), length, LANES) as index:
        place = at(builder, scores, index, 4)
        above = builder.fmul(builder.fsub(load(builder, place, LANES), most), factors)
        exponential = exp(builder, above)
        store(builder, exponential, place)
        builder.store(builder.fadd(builder.load(total), exponential), total)
    return as_bits(builder, sum_of(builder, builder.load(total)))


@instruction
def mix(builder: Any, shares: Any, count: Any, values: Any, length: Any, factor: Any, y: Any) -> None:
    """Stores factor times the sum of `count` vectors, one after another at `values`, each times its share."""
    factors = spread(builder, as_float(builder, factor), LANES)
    with loop(builder, LONG(0), length, LANES) as column:
        total = variable(builder, everywhere(0.0, LANES))
        with loop(builder, LONG(0), count, 1) as index:
            share = builder.load(builder.inttoptr(at(builder, shares, index, 4), FLOAT.as_pointer()), align=4)
            place = at(builder, values, builder.add(builder.mul(index, length), column), 4)
            _add_product(builder, total, spread(builder, share, LANES), load(builder, place, LANES))
        store(builder, builder.fmul(builder.load(total), factors), at(builder, y, column, 4))
