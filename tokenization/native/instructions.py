"""Single instructions that Python has no words for: raw memory, 64 bytes compared at once, bit tricks, atomics.

All of them take and return int64.
"""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, cast

from llvmlite import ir  # type: ignore[import-untyped]

from tokenization.native.compiling import compiled
from tokenization.native.source import Instruction

LOW_HALF = (1 << 32) - 1
MIX_1, MIX_2 = 0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D  # odd constants that hashes multiply by

_BYTE, _WORD, _LONG = (ir.IntType(bits) for bits in (8, 32, 64))
_BLOCK = ir.VectorType(_BYTE, 64)

Arguments = ParamSpec("Arguments")


def instruction(emit: Callable[Concatenate[Any, Arguments], Any]) -> Callable[Arguments, int]:
    """Turns a function that emits LLVM code into an instruction for kernels, on int64 alone.

    emit: takes LLVM's builder and the values of the arguments; returns the value of the result, if there is one.
    """
    return cast(Callable[Arguments, int], Instruction(emit))


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(bits: int) -> Callable[[int], int]:
    kind = ir.IntType(bits)

    @instruction
    def load(builder: Any, address: Any) -> Any:
        value = builder.load(_pointer(builder, address, kind), align=1)
        return value if bits == 64 else builder.zext(value, _LONG)

    return load


def _store(bits: int) -> Callable[[int, int], int]:
    kind = ir.IntType(bits)

    @instruction
    def store(builder: Any, address: Any, value: Any) -> None:
        low = value if bits == 64 else builder.trunc(value, kind)
        builder.store(low, _pointer(builder, address, kind), align=1)

    return store


load8, load32, load64 = map(_load, (8, 32, 64))  # unaligned, zero-extended
store8, store16, store32, store64 = map(_store, (8, 16, 32, 64))  # unaligned, the low bits of the value


@instruction
def bytes_in_range(builder: Any, address: Any, low: Any, length: Any) -> Any:
    """Compares the 64 bytes at the address: bit i of the result says whether low <= byte i < low + length."""
    block = builder.load(_pointer(builder, address, _BLOCK), align=1)
    nothing, first = ir.Constant(_BLOCK, ir.Undefined), ir.Constant(ir.VectorType(_WORD, 64), None)

    def everywhere(value: Any) -> Any:
        one = builder.insert_element(nothing, builder.trunc(value, _BYTE), _WORD(0))
        return builder.shuffle_vector(one, nothing, first)

    inside = builder.icmp_unsigned("<", builder.sub(block, everywhere(low)), everywhere(length))
    return builder.bitcast(inside, _LONG)


def _least_of(number: int) -> Callable[[int], int]:
    block = ir.VectorType(_WORD, number)

    @instruction
    def least_of(builder: Any, address: Any) -> Any:
        words = builder.load(_pointer(builder, address, block), align=4)
        kind = ir.FunctionType(_WORD, [block])
        function = builder.module.declare_intrinsic(f"llvm.vector.reduce.umin.v{number}i32", (), kind)
        return builder.zext(builder.call(function, [words]), _LONG)

    return least_of


least_of_16, least_of_32, least_of_64 = map(_least_of, (16, 32, 64))  # the least of so many uint32 at an address


@instruction
def fill_words(builder: Any, address: Any, value: Any) -> None:
    """Stores a value into each of 16 uint32 at an address."""
    block = ir.VectorType(_WORD, 16)
    nothing = ir.Constant(block, ir.Undefined)
    one = builder.insert_element(nothing, builder.trunc(value, _WORD), _WORD(0))
    everywhere = builder.shuffle_vector(one, nothing, ir.Constant(block, None))
    builder.store(everywhere, _pointer(builder, address, block), align=4)


def _equal_above(bits: int) -> Callable[[int, int], int]:
    @instruction
    def equal_above(builder: Any, address: Any, value: Any) -> Any:
        block = ir.VectorType(_LONG, 8)
        numbers = builder.load(_pointer(builder, address, block), align=8)
        nothing, first = ir.Constant(block, ir.Undefined), ir.Constant(ir.VectorType(_WORD, 8), None)
        wanted = builder.shuffle_vector(builder.insert_element(nothing, value, _WORD(0)), nothing, first)
        equal = builder.icmp_unsigned("==", builder.lshr(numbers, ir.Constant(block, [bits] * 8)), wanted)
        return builder.zext(builder.bitcast(equal, _BYTE), _LONG)

    return equal_above


# Compares 8 uint64 at an address, without their lowest bits: bit i says whether number i equals the value.
equal_above_0, equal_above_22 = map(_equal_above, (0, 22))


@instruction
def trailing_zeros(builder: Any, bits: Any) -> Any:
    """Counts the zeros below the lowest bit that is set; 64 if none is."""
    return builder.cttz(bits, ir.Constant(ir.IntType(1), 0))


@instruction
def leading_zeros(builder: Any, bits: Any) -> Any:
    """Counts the zeros above the highest bit that is set; 64 if none is."""
    return builder.ctlz(bits, ir.Constant(ir.IntType(1), 0))


@instruction
def swap_bytes(builder: Any, value: Any) -> Any:
    """Makes the first byte in memory the most significant one, so that comparing numbers compares bytes in order."""
    return builder.bswap(value)


@instruction
def shift_right(builder: Any, value: Any, amount: Any) -> Any:
    """Shifts zeros in from the left; Python's >> of a negative number shifts in ones."""
    return builder.lshr(value, amount)


@instruction
def fold_multiply(builder: Any, left: Any, right: Any) -> Any:
    """Multiplies to 128 bits and xors the two halves: every bit of the result depends on every bit of both factors."""
    wide = ir.IntType(128)
    product = builder.mul(builder.zext(left, wide), builder.zext(right, wide))
    high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _LONG)
    return builder.xor(high, builder.trunc(product, _LONG))


@instruction
def load_shared(builder: Any, address: Any) -> Any:
    """Loads what another thread stored with store_shared; whatever that thread stored before is visible as well."""
    return builder.load_atomic(_pointer(builder, address, _LONG), "acquire", 8)


@instruction
def store_shared(builder: Any, address: Any, value: Any) -> None:
    """Stores a value for other threads, after everything that this thread stored before."""
    builder.store_atomic(value, _pointer(builder, address, _LONG), "release", 8)


@instruction
def add_shared(builder: Any, address: Any, amount: Any) -> Any:
    """Adds to a number that other threads add to as well; returns what it was before."""
    return builder.atomic_rmw("add", _pointer(builder, address, _LONG), amount, "monotonic")


@instruction
def take_shared(builder: Any, address: Any, value: Any) -> Any:
    """Stores a value where there is 0, and returns 0; otherwise returns what another thread has stored there."""
    pointer = _pointer(builder, address, _LONG)
    return builder.extract_value(builder.cmpxchg(pointer, _LONG(0), value, "acquire", "monotonic"), 0)


def _prefetch(builder: Any, address: Any, locality: int) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _WORD, _WORD, _WORD])
    function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE.as_pointer()], kind)
    builder.call(function, [_pointer(builder, address, _BYTE), _WORD(0), _WORD(locality), _WORD(1)])  # data, to read


@instruction
def prefetch(builder: Any, address: Any) -> None:
    """Asks for the cache line at the address."""
    _prefetch(builder, address, 3)


@instruction
def prefetch_nearby(builder: Any, address: Any) -> None:
    """Asks for the cache line at the address, but not for the first cache, which is small."""
    _prefetch(builder, address, 2)


@instruction
def prefetch_once(builder: Any, address: Any) -> None:
    """Asks for the cache line at the address, which is read once and need not displace others from the caches."""
    _prefetch(builder, address, 0)


@compiled
def same_bytes(left: int, right: int, length: int) -> bool:
    """Compares two stretches of memory."""
    offset = 0
    while offset + 8 <= length and load64(left + offset) == load64(right + offset):
        offset += 8
    while offset < length and load8(left + offset) == load8(right + offset):
        offset += 1
    return offset == length


@compiled
def copy_bytes(source: int, target: int, length: int) -> None:
    """Copies a stretch of memory to another that it does not overlap."""
    for offset in range(length):
        store8(target + offset, load8(source + offset))
