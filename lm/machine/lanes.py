"""Builds LLVM instructions on vectors of floats, for our kernels.

    loop, for_each      repeat what is built inside;  for_each takes as many numbers at once as are left
    load, store         numbers in memory, float32 or bfloat16, as vectors of float32
    exp, log, reciprocal, sum_of      functions of a vector

The tokenizer's compiler translates kernels. They know int64 alone: an address is one, and a float is passed as its 32
bits. What is here takes LLVM's builder first, and addresses, indices and lengths as int64.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir

from tokenization.native.compiling import host_features

FLOAT32, BFLOAT16 = 4, 2  # the bytes of a number
WIDE, LANES = 64, 16  # numbers in a step of the long loops, and in a vector of the processor
INT, LONG, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
ANY_ORDER = ("contract", "reassoc")  # sums may be taken in any order, and a product and a sum rounded once
FUSED = ("contract",)

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (8.3125013508e-3, 4.1890331892e-2, 1.6667115389e-1, 4.9999230307e-1, 1.0, 1.0)  # e^r to 1.1e-7, |r| < ln(2) / 2
_ROUNDING = 1.5 * 2.0**23  # a float32 of this size has no fraction
SMALLEST = -80.0  # e^x is 0 below: products of smaller numbers would be denormal, and a hundred times as slow


def vector(length: int) -> Any:
    """Returns the type of a vector of float32."""
    return ir.VectorType(FLOAT, length)


def everywhere(number: float, length: int) -> Any:
    """Returns a vector that holds one number everywhere."""
    return ir.Constant(vector(length), [number] * length)


def as_float(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.trunc(bits, INT), FLOAT)


def as_bits(builder: Any, number: Any) -> Any:
    return builder.zext(builder.bitcast(number, INT), LONG)


def spread(builder: Any, number: Any, length: int) -> Any:
    """Fills a vector with one float."""
    nothing = ir.Constant(vector(length), ir.Undefined)
    one = builder.insert_element(nothing, number, INT(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(INT, length), None))


def at(builder: Any, address: Any, index: Any, size: int) -> Any:
    """Returns the address of a number in an array of numbers of so many bytes."""
    return builder.add(address, builder.mul(index, LONG(size)))


def load(builder: Any, address: Any, length: int, size: int = FLOAT32) -> Any:
    """Loads numbers of so many bytes each as a vector of float32."""
    kind = FLOAT if size == FLOAT32 else ir.IntType(8 * size)
    numbers = builder.load(builder.inttoptr(address, ir.VectorType(kind, length).as_pointer()), align=size)
    if size == FLOAT32:
        return numbers
    ints = ir.VectorType(INT, length)
    return builder.bitcast(builder.shl(builder.zext(numbers, ints), ir.Constant(ints, [16] * length)), vector(length))


def store(builder: Any, numbers: Any, address: Any, size: int = FLOAT32) -> None:
    """Stores a vector of float32 as numbers of so many bytes each; bfloat16 is rounded to even."""
    if size == BFLOAT16:
        numbers = rounded(builder, numbers)
    builder.store(numbers, builder.inttoptr(address, numbers.type.as_pointer()), align=size)


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not know."""

    def __str__(self) -> str:
        return "bfloat"


@functools.cache
def rounds_at_once() -> bool:
    """Tells whether this processor has an instruction that rounds to bfloat16, for vectors of any length.

    Older versions of LLVM call a function for single numbers instead, which is not there.
    """
    needed = {"+avx512bf16", "+avx512vl"}
    return needed <= {*host_features().split(",")} and llvm.llvm_version_info >= (18,)


def rounded(builder: Any, numbers: Any) -> Any:
    """Returns a vector of float32 as the bits of bfloat16; the processor's own turns denormal numbers into 0."""
    length = numbers.type.count
    if rounds_at_once():
        halves = ir.VectorType(ir.IntType(16), length)
        return builder.bitcast(builder.fptrunc(numbers, ir.VectorType(BFloat(), length)), halves)
    ints = ir.VectorType(INT, length)

    def constant(number: int) -> Any:
        return ir.Constant(ints, [number] * length)

    bits = builder.bitcast(numbers, ints)
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    nearest = builder.add(bits, builder.add(odd, constant(0x7FFF)))
    quiet = builder.or_(bits, constant(0x400000))  # a NaN must not be carried over into an infinity
    nearest = builder.select(builder.fcmp_unordered("uno", numbers, numbers), quiet, nearest)
    return builder.trunc(builder.lshr(nearest, constant(16)), ir.VectorType(ir.IntType(16), length))


def variable(builder: Any, start: Any) -> Any:
    """Returns a place for a value that changes."""
    with builder.goto_entry_block():
        place = builder.alloca(start.type)
    builder.store(start, place)
    return place


@contextmanager
def loop(builder: Any, start: Any, stop: Any, step: int) -> Iterator[Any]:
    """Repeats what is built inside with index = start, start + step, ... below stop."""
    counter = variable(builder, start)
    test, body, behind = (builder.append_basic_block() for _ in range(3))
    builder.branch(test)
    builder.position_at_end(test)
    index = builder.load(counter)
    builder.cbranch(builder.icmp_signed("<", index, stop), body, behind)
    builder.position_at_end(body)
    yield index
    builder.store(builder.add(index, LONG(step)), counter)
    builder.branch(test)
    builder.position_at_end(behind)


def for_each(builder: Any, length: Any, build: Callable[[Any, int], None], widths: tuple[int, ...] = ()) -> None:
    """Builds build(index, width), which computes `width` numbers from an index on, for all of `length` numbers."""
    start: Any = LONG(0)
    for width in widths or (WIDE, LANES, 1):
        stop = builder.and_(length, LONG(-width))
        with loop(builder, start, stop, width) as index:
            build(index, width)
        start = stop


class Total:
    """A sum, or another reduction, over all of `for_each`: one accumulator for each width."""

    def __init__(self, builder: Any, widths: tuple[int, ...] = (WIDE, LANES, 1), start: float = 0.0) -> None:
        self.places = {width: variable(builder, everywhere(start, width)) for width in widths}
        self.start = start

    def add(self, builder: Any, numbers: Any) -> None:
        place = self.places[numbers.type.count]
        builder.store(builder.fadd(builder.load(place), numbers, flags=ANY_ORDER), place)

    def add_product(self, builder: Any, left: Any, right: Any) -> None:
        self.add(builder, builder.fmul(left, right, flags=ANY_ORDER))

    def raise_to(self, builder: Any, numbers: Any) -> None:
        place = self.places[numbers.type.count]
        builder.store(larger(builder, numbers, builder.load(place)), place)

    def sum(self, builder: Any) -> Any:
        """Returns the float that all additions give."""
        parts = [sum_of(builder, builder.load(place)) for place in self.places.values()]
        total = parts[0]
        for part in parts[1:]:
            total = builder.fadd(total, part)
        return total

    def largest(self, builder: Any) -> Any:
        """Returns the largest float."""
        result = everywhere(self.start, 1)
        for place in self.places.values():
            most = call(builder, "vector.reduce.fmax", builder.load(place))
            result = larger(builder, spread(builder, most, 1), result)
        return builder.extract_element(result, INT(0))


def sum_of_squares(builder: Any, numbers: Any, length: Any) -> Any:
    """Returns the sum of the squares of floats that follow one another, a float; numbers: their address."""
    total = Total(builder)

    def build(index: Any, width: int) -> None:
        x = load(builder, at(builder, numbers, index, FLOAT32), width)
        total.add_product(builder, x, x)

    for_each(builder, length, build)
    return total.sum(builder)


def larger(builder: Any, left: Any, right: Any) -> Any:
    """Takes the larger of each pair, and the left one where it is NaN."""
    return builder.select(builder.fcmp_ordered("<=", left, right), right, left)


def call(builder: Any, name: str, *values: Any) -> Any:
    """Calls an intrinsic of LLVM that maps vectors to one of their type, or to a float."""
    kind = values[-1].type
    result = FLOAT if "reduce" in name else kind
    function = builder.module.declare_intrinsic(
        f"llvm.{name}.v{kind.count}f32", (), ir.FunctionType(result, [value.type for value in values])
    )
    return builder.call(function, values, fastmath=ANY_ORDER if "fadd" in name else ())


def sum_of(builder: Any, numbers: Any) -> Any:
    """Adds up a vector."""
    return call(builder, "vector.reduce.fadd", FLOAT(0.0), numbers)


def root(builder: Any, number: Any) -> Any:
    """Computes the square root of a float or of a vector."""
    if number.type != FLOAT:
        return call(builder, "sqrt", number)
    function = builder.module.declare_intrinsic("llvm.sqrt", (FLOAT,), ir.FunctionType(FLOAT, [FLOAT]))
    return builder.call(function, [number])


def exp(builder: Any, x: Any) -> Any:
    """Computes e^x to about 2 units in the last place, for x up to 88; below SMALLEST it is 0, and NaN stays NaN.

    e^x = 2^k e^r with k = round(x / ln 2). k is rounded by adding a number so large that the sum has no room for
    fractions: the last bits of the sum are k, and go into the exponent of 2^k.
    """
    length = x.type.count
    below = builder.fcmp_ordered("<", x, everywhere(SMALLEST, length))
    x = builder.select(below, everywhere(SMALLEST, length), x)
    rounding = everywhere(_ROUNDING, length)
    scaled = builder.fmul(x, everywhere(1.44269504088896341, length), flags=FUSED)
    whole = builder.fadd(scaled, rounding, flags=FUSED)
    power = builder.fsub(whole, rounding)
    for part in (_LN2_HIGH, _LN2_LOW):
        x = builder.fsub(x, builder.fmul(power, everywhere(part, length), flags=FUSED), flags=FUSED)
    result = everywhere(_EXP[0], length)
    for coefficient in _EXP[1:]:
        result = builder.fadd(builder.fmul(result, x, flags=FUSED), everywhere(coefficient, length), flags=FUSED)
    ints = ir.VectorType(INT, length)
    exponent = builder.shl(builder.bitcast(whole, ints), ir.Constant(ints, [23] * length))
    scale = builder.bitcast(builder.add(exponent, ir.Constant(ints, [127 << 23] * length)), x.type)
    return builder.select(below, everywhere(0.0, length), builder.fmul(result, scale))


def reciprocal(builder: Any, x: Any) -> Any:
    """Computes 1 / x to about 2 units in the last place, for x between 1e-30 and 1e30; NaN stays NaN.

    A guess y from the exponent has an error e = 1 - x y of a twentieth at most. y <- y (1 + e + e^2) leaves e^3, and
    Newton's step, y <- y (1 + e), squares that. All this takes less than half of a division's time.
    """
    length = x.type.count
    ints = ir.VectorType(INT, length)
    y = builder.bitcast(builder.sub(ir.Constant(ints, [0x7EF311C3] * length), builder.bitcast(x, ints)), x.type)

    def error() -> Any:
        return builder.fsub(everywhere(1.0, length), builder.fmul(x, y, flags=FUSED), flags=FUSED)

    e = error()
    e = builder.fadd(e, builder.fmul(e, e, flags=FUSED), flags=FUSED)
    y = builder.fadd(y, builder.fmul(y, e, flags=FUSED), flags=FUSED)
    return builder.fadd(y, builder.fmul(y, error(), flags=FUSED), flags=FUSED)


def exponentials(builder: Any, row: Any, length: Any, size: int, scratch: Any) -> tuple[Any, Any]:
    """Stores e^(x_i - the largest x) in scratch, in float32; returns the largest, and the sum of what is stored."""
    largest, total = Total(builder, start=float("-inf")), Total(builder)

    def numbers(index: Any, width: int) -> Any:
        return load(builder, at(builder, row, index, size), width, size)

    for_each(builder, length, lambda index, width: largest.raise_to(builder, numbers(index, width)))
    most = largest.largest(builder)

    def build(index: Any, width: int) -> None:
        powers = exp(builder, builder.fsub(numbers(index, width), spread(builder, most, width)))
        total.add(builder, powers)
        store(builder, powers, at(builder, scratch, index, FLOAT32))

    for_each(builder, length, build)
    return most, total.sum(builder)


def store_zeros(builder: Any, row: Any, start: Any, stop: Any, size: int) -> None:
    """Stores zeros in a row from `start` to before `stop`."""
    here = at(builder, row, start, size)
    for_each(
        builder,
        builder.sub(stop, start),
        lambda index, width: store(builder, everywhere(0.0, width), at(builder, here, index, size), size),
    )


def log(builder: Any, number: Any) -> Any:
    """Computes the natural logarithm of a normal float above 0, to about 2 units in the last place.

    number = 2^k m with m between 1 / sqrt(2) and sqrt(2); log m = 2 artanh(s) with s = (m - 1) / (m + 1).
    """
    bits = builder.bitcast(number, INT)
    power = builder.ashr(builder.sub(bits, INT(0x3F3504F3)), INT(23))  # the bits of 1 / sqrt(2)
    m = builder.bitcast(builder.sub(bits, builder.shl(power, INT(23))), FLOAT)
    s = builder.fdiv(builder.fsub(m, FLOAT(1.0)), builder.fadd(m, FLOAT(1.0)))
    square = builder.fmul(s, s)
    series = FLOAT(1 / 9)
    for odd in (7, 5, 3, 1):
        series = builder.fadd(builder.fmul(series, square), FLOAT(1 / odd))
    doubled = builder.fmul(builder.fmul(FLOAT(2.0), s), series)
    whole = builder.sitofp(power, FLOAT)
    logarithm = builder.fadd(builder.fmul(whole, FLOAT(_LN2_LOW)), doubled)
    logarithm = builder.fadd(builder.fmul(whole, FLOAT(_LN2_HIGH)), logarithm)
    return builder.select(builder.fcmp_unordered("uno", number, number), number, logarithm)
