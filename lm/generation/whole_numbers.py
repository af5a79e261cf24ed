"""Instructions on whole numbers, for the kernels that round to 16 or 8 bits and multiply int8 weights.

    numbers_i = round(x_i / s)          s = the largest |x_i| / LARGEST, or / MOST

Weights of 8 bits multiply vectors of 16 bits: whole numbers are added, which is exact and takes half the instructions
of converting the weights to float32. Kernels and floats are passed as in vectors.py.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from lm.generation.vectors import ask_ahead
from lm.machine.lanes import FLOAT, INT, LANES, LONG, WIDE, as_bits, at, call, load, loop, spread, variable
from tokenization.native.instructions import instruction

INT8 = 1  # the bytes of a weight
LARGEST, MOST = 32767, 127  # of 16 bits and of 8
SMALLEST_SCALED = 1e-30  # a vector whose largest number is below counts as zeros
EXACT = 512  # products of 8 and 16 bits, whose sum cannot overflow 32 bits: 512 * MOST * LARGEST < 2^31
SHORT, BYTE = ir.IntType(16), ir.IntType(8)


def largest_of(builder: Any, x: Any, length: Any) -> Any:
    """Returns the largest |x_i|. It is not finite if any x_i is not: compared as integers, NaN exceeds infinity."""
    ints = ir.VectorType(INT, LANES)
    most = variable(builder, ir.Constant(ints, [0] * LANES))
    with loop(builder, LONG(0), length, LANES) as index:
        bits = builder.bitcast(load(builder, at(builder, x, index, 4), LANES), ints)
        bits, seen = builder.and_(bits, ir.Constant(ints, [0x7FFFFFFF] * LANES)), builder.load(most)
        builder.store(builder.select(builder.icmp_unsigned(">", bits, seen), bits, seen), most)
    return builder.bitcast(_reduce(builder, "umax", builder.load(most)), FLOAT)


@instruction
def round_to_16_bits(builder: Any, x: Any, y: Any, length: Any) -> Any:
    """Stores x as whole numbers of 16 bits, round(x_i / s); returns s, the largest |x_i| / LARGEST.

    s is not finite if any x_i is not.
    """
    largest = largest_of(builder, x, length)
    tiny = builder.fcmp_ordered("<", largest, FLOAT(SMALLEST_SCALED))
    factor = builder.select(tiny, FLOAT(0.0), builder.fdiv(FLOAT(LARGEST), largest))
    factors = spread(builder, factor, LANES)
    with loop(builder, LONG(0), length, LANES) as index:
        scaled = builder.fmul(load(builder, at(builder, x, index, 4), LANES), factors)
        whole = builder.fptosi(call(builder, "rint", scaled), ir.VectorType(INT, LANES))
        numbers = builder.trunc(whole, ir.VectorType(SHORT, LANES))
        builder.store(numbers, builder.inttoptr(at(builder, y, index, 2), numbers.type.as_pointer()), align=2)
    return as_bits(builder, builder.fdiv(largest, FLOAT(LARGEST)))


@instruction
def round_to_8_bits(builder: Any, x: Any, y: Any, length: Any) -> Any:
    """Stores x as whole numbers of 8 bits, round(x_i / s); returns s, the largest |x_i| / MOST, or 1 for 0."""
    quotient = builder.fdiv(largest_of(builder, x, length), FLOAT(MOST))
    nothing = builder.fcmp_ordered("==", quotient, FLOAT(0.0))
    scale = builder.select(nothing, FLOAT(1.0), quotient)
    scales = spread(builder, scale, LANES)
    with loop(builder, LONG(0), length, LANES) as index:
        scaled = builder.fdiv(load(builder, at(builder, x, index, 4), LANES), scales)
        whole = builder.fptosi(call(builder, "rint", scaled), ir.VectorType(INT, LANES))
        for sign, limit in ((">", MOST), ("<", -MOST)):  # passed where the scale is denormal
            limits = ir.Constant(whole.type, [limit] * LANES)
            whole = builder.select(builder.icmp_signed(sign, whole, limits), limits, whole)
        numbers = builder.trunc(whole, ir.VectorType(BYTE, LANES))
        builder.store(numbers, builder.inttoptr(builder.add(y, index), numbers.type.as_pointer()), align=1)
    return as_bits(builder, scale)


@instruction
def dot_int8(builder: Any, weights: Any, x: Any, length: Any, y: Any) -> None:
    """Stores the dot product of int8 weights with a vector of 16 bits as a float, the only number that is rounded."""
    total = variable(builder, LONG(0))
    with loop(builder, LONG(0), length, EXACT) as begin:
        end = builder.add(begin, LONG(EXACT))
        end = builder.select(builder.icmp_signed("<", length, end), length, end)
        whole = builder.add(begin, builder.and_(builder.sub(end, begin), LONG(-WIDE)))
        for width, start, stop in ((WIDE, begin, whole), (LANES, whole, end)):
            with builder.if_then(builder.icmp_signed("<", start, stop)):
                place = variable(builder, ir.Constant(ir.VectorType(INT, width), [0] * width))
                with loop(builder, start, stop, width) as index:
                    address = builder.add(weights, index)
                    if width == WIDE:
                        ask_ahead(builder, address, width)
                    weight = _load_whole(builder, address, width, BYTE)
                    products = builder.mul(weight, _load_whole(builder, at(builder, x, index, 2), width, SHORT))
                    builder.store(builder.add(builder.load(place), products), place)
                number = builder.sext(_reduce(builder, "add", builder.load(place)), LONG)
                builder.store(builder.add(builder.load(total), number), total)
    number = builder.sitofp(builder.load(total), FLOAT)
    builder.store(number, builder.inttoptr(y, FLOAT.as_pointer()), align=4)


def _load_whole(builder: Any, address: Any, length: int, kind: Any) -> Any:
    """Loads whole numbers as int32; x86 has an instruction that multiplies and adds them as int16, which LLVM finds."""
    numbers = builder.load(builder.inttoptr(address, ir.VectorType(kind, length).as_pointer()), align=1)
    return builder.sext(numbers, ir.VectorType(INT, length))


def _reduce(builder: Any, name: str, numbers: Any) -> Any:
    """Combines a vector of whole numbers into one."""
    kind = numbers.type
    function = builder.module.declare_intrinsic(
        f"llvm.vector.reduce.{name}.v{kind.count}i{kind.element.width}", (), ir.FunctionType(kind.element, [kind])
    )
    return builder.call(function, [numbers])
