"""Proves that a kernel computes what Python computes with the same function, and that other Python is refused."""

import random
import re
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from tokenization.native.compiling import Kernel, compiled, rare
from tokenization.native.instructions import load_shared, store_shared
from tokenization.native.memory import address_of
from tokenization.native.translation import translate

GLOBAL, YES = 12345, True


def wrapped(number: int) -> int:
    """Wraps a number of Python's around, as int64 does."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def sums(a: int, b: int) -> int:
    return a * 3 + b - GLOBAL


def bits(a: int, b: int) -> int:
    return (a & b | a ^ ~b) - (-a >> 3) + ((b & 255) << 7)


def division(a: int, b: int) -> int:
    return a // 7 + b // -3


def comparisons(a: int, b: int) -> int:
    equal = a == b
    equal |= a < b
    return equal + 2 * (a <= b) + 4 * (a > 0) + 8 * (b >= 5) + 16 * (a != b) + 32 * YES


def conditions(a: int, b: int) -> tuple[int, int]:
    both = a > 0 and b > 0 and a < 50
    either = a < -50 or not b > 0 or (a & 1 and b & 1)
    return (1 if both else 2), (a if either else b if a & 2 else 7)


def branches(a: int, b: int) -> int:
    if a < 0:
        if b < 0:
            return 1
        a = -a
    elif a > 50:
        return 2 if b else 3
    else:
        b = a = 5
    return a * 100 + b


def loops(a: int, b: int) -> int:
    total = steps = 0
    for index in range(a):
        if index == 3:
            continue
        if index > 40:
            break
        total += index * b
        index = 0  # has no influence on what follows
    for index in range(b & 7, a, 3):
        total ^= index
    while a > 0:
        a -= 7
        steps += 1
        while True:
            total += 1
            if total & 1:
                break
    return total * 64 + steps


def swaps(a: int, b: int) -> tuple[int, int, int]:
    a, b = b, a
    a, c = twice(a)
    b += 1
    return a, b, c + twice(b)[1] + min(a, b, 3) - max(a, -b)


@compiled
def twice(number: int) -> tuple[int, int]:
    return number, 2 * number


def tuples(a: int, b: int) -> tuple[int, int]:
    a, b = (b, a) if a < b else twice(a)
    return (a, b) if b else (b, 3 * a)


@rare
@compiled
def seldom(a: int) -> int:
    return a ^ 5


def often(a: int, b: int) -> int:
    return a + seldom(b)


FUNCTIONS = (sums, bits, division, comparisons, conditions, branches, loops, swaps, tuples, often)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_kernels_compute_what_python_computes(function: Callable[[int, int], int]):
    kernel, source = Kernel(function), random.Random(0)
    pairs = [(source.randint(-100, 100), source.randint(-100, 100)) for _ in range(300)]
    for pair in [*pairs, (0, 0), (1, 0), (-1, -1)]:
        assert kernel(*pair) == function(*pair), pair


def test_what_is_rare_stays_out_of_its_callers():
    functions = {function.name.rpartition(".")[2]: function for function in translate(Kernel(often).source).functions}
    assert {name for name, function in functions.items() if "noinline" in function.attributes} == {"seldom"}


def product(a: int, b: int) -> int:
    return a * b + (a - b)


def test_sums_wrap_around():
    kernel, source = Kernel(product), random.Random(1)
    numbers = [1 << 63, -(1 << 63), (1 << 63) - 1, *(source.getrandbits(64) for _ in range(100))]
    for a in map(wrapped, numbers):
        for b in (3, -1, a):
            assert kernel(a, b) == wrapped(product(a, b))


def floats(number: int) -> int:
    return number + 0.5  # type: ignore[return-value]


def true_division(number: int) -> int:
    return number / 2  # type: ignore[return-value]


def chained(number: int) -> int:
    return 0 < number < 3


def plus(number: int) -> int:
    return +number


def contained(number: int) -> int:
    return number in (1, 2)


def unknown(number: int) -> int:
    return len(number)  # type: ignore[arg-type]


def undefined(number: int) -> int:
    return number + nowhere  # type: ignore[name-defined]  # noqa: F821


def lists(number: int) -> int:
    for item in [number]:
        return item
    return 0


def raises(number: int) -> int:
    raise ValueError(number)


REFUSED = {
    floats: "0.5",
    true_division: "number / 2",
    chained: "0 < number < 3",
    plus: "+number",
    contained: "number in (1, 2)",
    unknown: "len(number)",
    undefined: "nowhere",
    lists: "[number]",
    raises: "raise ValueError(number)",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_what_no_kernel_may_have_is_named(function: Callable[[int], int]):
    line = function.__code__.co_firstlineno + 1
    with pytest.raises(TypeError, match=rf"test_translation\.py, line {line}: .*{re.escape(f'`{REFUSED[function]}`')}"):
        Kernel(function).load()


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3), (1, None), (1, "2"), (1, 2.5), (1, 1 << 64)])
def test_other_arguments_are_refused(arguments):
    kernel = Kernel(swaps)
    with pytest.raises((TypeError, OverflowError)):
        kernel(*arguments)
    assert kernel(1, 2) == swaps(1, 2)


def wait_for(address: int) -> int:
    store_shared(address, 1)
    answer = 0
    while answer == 0:
        answer = load_shared(address + 8)
    return answer


def test_other_threads_go_on_while_a_kernel_runs():
    """This one says that it runs, and ends when another thread has answered, which none could if the kernel held
    Python's lock."""
    flags, results = np.zeros(2, np.int64), []
    thread = threading.Thread(target=lambda: results.append(Kernel(wait_for)(address_of(flags))), daemon=True)
    thread.start()
    while thread.is_alive() and not flags[0]:
        time.sleep(1e-3)
    assert not results
    flags[1] = 7
    thread.join(10)
    assert results == [7]
