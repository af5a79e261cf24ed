"""Instructions on vectors of float32, for the kernels of kernels.py. The tokenizer's compiler translates both.

Kernels know int64 alone: an address is one, and a float is passed as its 32 bits. Lengths are multiples of LANES.
Weights are float32, bfloat16 or int8, told apart by their size in bytes, and are converted to float32 as they are read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from tokenization.native.instructions import instruction, prefetch

LANES, WIDE = 16, 64  # floats of a vector, and of a step of the long loops
SIZES = FLOAT32, BFLOAT16, INT8 = 4, 2, 1  # the bytes of a weight
AHEAD, LINE = 4096, 64  # bytes: weights are asked for so early, a cache line at a time; twice as fast for int8

_INT, _LONG, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_ANY_ORDER = ("contract", "reassoc")  # sums may be taken in any order, and a product and a sum rounded once
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1.0, 1.0)


def _vector(length: int) -> Any:
    return ir.VectorType(_FLOAT, length)


def _everywhere(number: float, length: int = LANES) -> Any:
    return ir.Constant(_vector(length), [number] * length)


def _float(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.trunc(bits, _INT), _FLOAT)


def _bits(builder: Any, number: Any) -> Any:
    return builder.zext(builder.bitcast(number, _INT), _LONG)


def _spread(builder: Any, bits: Any, length: int = LANES) -> Any:
    """Fills a vector with one float."""
    nothing = ir.Constant(_vector(length), ir.Undefined)
    one = builder.insert_element(nothing, _float(builder, bits), _INT(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT, length), None))


def _at(builder: Any, address: Any, index: Any, size: int) -> Any:
    return builder.add(address, builder.mul(index, _LONG(size)))


def _load(builder: Any, address: Any, length: int = LANES, size: int = FLOAT32) -> Any:
    """Loads numbers of so many bytes each as a vector of float32."""
    kind = _FLOAT if size == FLOAT32 else ir.IntType(8 * size)
    numbers = builder.load(builder.inttoptr(address, ir.VectorType(kind, length).as_pointer()), align=1)
    if size == FLOAT32:
        return numbers
    ints = ir.VectorType(_INT, length)
    if size == INT8:
        return builder.sitofp(builder.sext(numbers, ints), _vector(length))
    return builder.bitcast(builder.shl(builder.zext(numbers, ints), ir.Constant(ints, [16] * length)), _vector(length))


def _store(builder: Any, vector: Any, address: Any) -> None:
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=4)


def _variable(builder: Any, start: Any) -> Any:
    with builder.goto_entry_block():
        place = builder.alloca(start.type)
    builder.store(start, place)
    return place


@contextmanager
def _loop(builder: Any, start: Any, stop: Any, step: int) -> Iterator[Any]:
    """Repeats what is built inside with index = start, start + step, ... below stop."""
    counter = _variable(builder, start)
    test, body, behind = (builder.append_basic_block() for _ in range(3))
    builder.branch(test)
    builder.position_at_end(test)
    index = builder.load(counter)
    builder.cbranch(builder.icmp_signed("<", index, stop), body, behind)
    builder.position_at_end(body)
    yield index
    builder.store(builder.add(index, _LONG(step)), counter)
    builder.branch(test)
    builder.position_at_end(behind)


def _call(builder: Any, name: str, *values: Any) -> Any:
    """Calls an intrinsic of LLVM that maps a vector to one of its own type, or to a float."""
    kind = values[-1].type
    result = _FLOAT if "reduce" in name else kind
    function = builder.module.declare_intrinsic(
        f"llvm.{name}.v{kind.count}f32", (), ir.FunctionType(result, [value.type for value in values])
    )
    return builder.call(function, values, fastmath=_ANY_ORDER if "fadd" in name else ())


def _sum(builder: Any, vector: Any) -> Any:
    return _call(builder, "vector.reduce.fadd", _FLOAT(0.0), vector)


def _add_product(builder: Any, place: Any, left: Any, right: Any) -> None:
    product = builder.fmul(left, right, flags=_ANY_ORDER)
    builder.store(builder.fadd(builder.load(place), product, flags=_ANY_ORDER), place)


def _exp(builder: Any, x: Any) -> Any:
    """Computes e^x to about 2 units in the last place; x is cut to -87 ... 88, and NaN stays NaN."""
    for comparison, limit in (("<", -87.0), (">", 88.0)):
        beyond = builder.fcmp_ordered(comparison, x, _everywhere(limit))
        x = builder.select(beyond, _everywhere(limit), x)
    power = _call(builder, "rint", builder.fmul(x, _everywhere(1.44269504088896341)))
    for part in (_LN2_HIGH, _LN2_LOW):
        x = builder.fsub(x, builder.fmul(power, _everywhere(part)), flags=("contract",))
    result = _everywhere(_EXP[0])
    for coefficient in _EXP[1:]:
        result = builder.fadd(builder.fmul(result, x), _everywhere(coefficient), flags=("contract",))
    ints = ir.VectorType(_INT, LANES)
    exponent = builder.add(builder.fptosi(power, ints), ir.Constant(ints, [127] * LANES))
    scale = builder.bitcast(builder.shl(exponent, ir.Constant(ints, [23] * LANES)), x.type)
    return builder.fmul(result, scale)


# --- floats ----------------------------------------------------------------------------------------------------------


@instruction
def add_floats(builder: Any, left: Any, right: Any) -> Any:
    """Adds two floats."""
    return _bits(builder, builder.fadd(_float(builder, left), _float(builder, right)))


@instruction
def multiply_floats(builder: Any, left: Any, right: Any) -> Any:
    """Multiplies two floats."""
    return _bits(builder, builder.fmul(_float(builder, left), _float(builder, right)))


@instruction
def inverse(builder: Any, number: Any) -> Any:
    """Computes 1 / number."""
    return _bits(builder, builder.fdiv(_FLOAT(1.0), _float(builder, number)))


@instruction
def inverse_root_of_mean(builder: Any, total: Any, count: Any, eps: Any) -> Any:
    """Computes 1 / sqrt(total / count + eps)."""
    mean = builder.fdiv(_float(builder, total), builder.sitofp(count, _FLOAT))
    sum_ = builder.fadd(mean, _float(builder, eps))
    root = builder.module.declare_intrinsic("llvm.sqrt", (_FLOAT,), ir.FunctionType(_FLOAT, [_FLOAT]))
    return _bits(builder, builder.fdiv(_FLOAT(1.0), builder.call(root, [sum_])))


# --- vectors ---------------------------------------------------------------------------------------------------------


def _dots(size: int, rows: int) -> Callable[[int, int, int, int, int, int], int]:
    """Returns the instruction that multiplies a row of weights of this size with so many vectors of floats."""
    wide = WIDE if rows == 1 else 2 * LANES

    @instruction
    def dots(builder: Any, weights: Any, x: Any, x_stride: Any, length: Any, y: Any, y_stride: Any) -> None:
        """Stores the dot products; strides are the bytes from one vector, or product, to the next."""
        inputs = [builder.add(x, builder.mul(x_stride, _LONG(row))) for row in range(rows)]
        outputs = [builder.add(y, builder.mul(y_stride, _LONG(row))) for row in range(rows)]
        totals = [_variable(builder, _FLOAT(0.0)) for _ in inputs]
        whole = builder.and_(length, _LONG(-wide))
        for width, start, stop in ((wide, _LONG(0), whole), (LANES, whole, length)):
            with builder.if_then(builder.icmp_signed("<", start, stop)):
                sums = [_variable(builder, _everywhere(0.0, width)) for _ in inputs]
                with _loop(builder, start, stop, width) as index:
                    address = _at(builder, weights, index, size)
                    for line in range(0, width * size, LINE) if width == wide else ():
                        prefetch.emit(builder, builder.add(address, _LONG(AHEAD + line)))  # type: ignore[attr-defined]
                    weight = _load(builder, address, width, size)
                    for place, vector in zip(sums, inputs, strict=True):
                        _add_product(builder, place, weight, _load(builder, _at(builder, vector, index, 4), width))
                for total, place in zip(totals, sums, strict=True):
                    builder.store(builder.fadd(builder.load(total), _sum(builder, builder.load(place))), total)
        for total, address in zip(totals, outputs, strict=True):
            builder.store(builder.load(total), builder.inttoptr(address, _FLOAT.as_pointer()), align=4)

    return dots


TOGETHER = 4  # vectors that are multiplied at once, where there are many
dot_float32, dot_bfloat16, dot_int8 = (_dots(size, 1) for size in SIZES)
dots_int8 = _dots(INT8, TOGETHER)


@instruction
def scale(builder: Any, x: Any, gains: Any, factor: Any, y: Any, length: Any) -> None:
    """Stores x_i * factor * gains_i."""
    factors = _spread(builder, factor)
    with _loop(builder, _LONG(0), length, LANES) as index:
        scaled = builder.fmul(_load(builder, _at(builder, x, index, 4)), factors)
        scaled = builder.fmul(scaled, _load(builder, _at(builder, gains, index, 4)))
        _store(builder, scaled, _at(builder, y, index, 4))


@instruction
def add(builder: Any, x: Any, y: Any, length: Any) -> None:
    """Adds x_i to y_i."""
    with _loop(builder, _LONG(0), length, LANES) as index:
        place = _at(builder, y, index, 4)
        _store(builder, builder.fadd(_load(builder, place), _load(builder, _at(builder, x, index, 4))), place)


@instruction
def gate(builder: Any, x: Any, values: Any, y: Any, length: Any) -> None:
    """Stores silu(x_i) * values_i."""
    with _loop(builder, _LONG(0), length, LANES) as index:
        number = _load(builder, _at(builder, x, index, 4))
        below = builder.fadd(_exp(builder, builder.fsub(_everywhere(-0.0), number)), _everywhere(1.0))
        gated = builder.fmul(builder.fdiv(number, below), _load(builder, _at(builder, values, index, 4)))
        _store(builder, gated, _at(builder, y, index, 4))


@instruction
def rotate(builder: Any, x: Any, cosines: Any, sines: Any, y: Any, length: Any) -> None:
    """Rotates pairs: y_2k = x_2k cos - x_2k+1 sin, y_2k+1 = x_2k+1 cos + x_2k sin.

    Of each pair, cosines holds (cos, cos), and sines (-sin, sin).
    """
    swapped = ir.Constant(ir.VectorType(_INT, LANES), [lane ^ 1 for lane in range(LANES)])
    with _loop(builder, _LONG(0), length, LANES) as index:
        pairs = _load(builder, _at(builder, x, index, 4))
        along = builder.fmul(pairs, _load(builder, _at(builder, cosines, index, 4)))
        across = builder.shuffle_vector(pairs, pairs, swapped)
        across = builder.fmul(across, _load(builder, _at(builder, sines, index, 4)))
        _store(builder, builder.fadd(along, across), _at(builder, y, index, 4))


@instruction
def softmax(builder: Any, scores: Any, length: Any, factor: Any) -> Any:
    """Replaces scores by e^(factor (score - the largest)), and returns their sum."""
    largest = _variable(builder, _everywhere(float("-inf")))
    with _loop(builder, _LONG(0), length, LANES) as index:
        numbers, seen = _load(builder, _at(builder, scores, index, 4)), builder.load(largest)
        builder.store(builder.select(builder.fcmp_ordered("<", numbers, seen), seen, numbers), largest)
    most = _spread(builder, _bits(builder, _call(builder, "vector.reduce.fmax", builder.load(largest))))
    total = _variable(builder, _everywhere(0.0))
    with _loop(builder, _LONG(0), length, LANES) as index:
        place = _at(builder, scores, index, 4)
        above = builder.fmul(builder.fsub(_load(builder, place), most), _spread(builder, factor))
        exponential = _exp(builder, above)
        _store(builder, exponential, place)
        builder.store(builder.fadd(builder.load(total), exponential), total)
    return _bits(builder, _sum(builder, builder.load(total)))


@instruction
def mix(builder: Any, shares: Any, count: Any, values: Any, length: Any, factor: Any, y: Any) -> None:
    """Stores factor times the sum of `count` vectors, one after another at `values`, each times its share."""
    with _loop(builder, _LONG(0), length, LANES) as column:
        total = _variable(builder, _everywhere(0.0))
        with _loop(builder, _LONG(0), count, 1) as index:
            share = builder.load(builder.inttoptr(_at(builder, shares, index, 4), _INT.as_pointer()), align=4)
            place = _at(builder, values, builder.add(builder.mul(index, length), column), 4)
            _add_product(builder, total, _spread(builder, builder.zext(share, _LONG)), _load(builder, place))
        _store(builder, builder.fmul(builder.load(total), _spread(builder, factor)), _at(builder, y, column, 4))


# --- threads ---------------------------------------------------------------------------------------------------------


@instruction
def call(builder: Any, address: Any) -> Any:
    """Calls a C function without arguments that returns an int."""
    kind = ir.FunctionType(_INT, []).as_pointer()
    return builder.sext(builder.call(builder.inttoptr(address, kind), []), _LONG)
