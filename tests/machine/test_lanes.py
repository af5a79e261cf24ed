"""What kernels compute with vectors: rounding to bfloat16, by either way, reciprocals and exponentials."""

import pytest

pytest.importorskip("llvmlite")

import torch

from lm.machine import lanes
from lm.machine.kernels import FIELDS, compiled, run
from lm.machine.lanes import BFLOAT16, FLOAT32, LANES, SMALLEST, WIDE, at, exp, for_each, load, reciprocal, store
from tokenization.native.instructions import instruction, load64

SOURCE, TARGET, COUNT = range(FIELDS, FIELDS + 24, 8)


@instruction
def round_numbers(builder, source, target, count):
    def build(index, width):
        numbers = load(builder, at(builder, source, index, FLOAT32), width)
        store(builder, numbers, at(builder, target, index, BFLOAT16), BFLOAT16)

    for_each(builder, count, build, (WIDE, LANES, 2, 1))


def mapped(function):
    """Returns the instruction that stores a function of each number."""

    @instruction
    def map_numbers(builder, source, target, count):
        def build(index, width):
            numbers = load(builder, at(builder, source, index, FLOAT32), width)
            store(builder, function(builder, numbers), at(builder, target, index, FLOAT32))

        for_each(builder, count, build)

    return map_numbers


invert_numbers, raise_numbers = mapped(reciprocal), mapped(exp)


@compiled(__file__)  # one kernel for each way, as machine code is cached under a kernel's name
def round_in_steps(task: int) -> None:
    round_numbers(load64(task + SOURCE), load64(task + TARGET), load64(task + COUNT))


@compiled(__file__)
def round_at_once(task: int) -> None:
    round_numbers(load64(task + SOURCE), load64(task + TARGET), load64(task + COUNT))


@compiled(__file__)
def invert(task: int) -> None:
    invert_numbers(load64(task + SOURCE), load64(task + TARGET), load64(task + COUNT))


@compiled(__file__)
def exponentiate(task: int) -> None:
    raise_numbers(load64(task + SOURCE), load64(task + TARGET), load64(task + COUNT))


def of_bits(*bits: int) -> torch.Tensor:
    """Returns float32 whose upper halves are all there are, with each of these lower halves."""
    upper = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int64)[:, None] * (1 << 16)
    return (upper + torch.tensor(bits)).flatten().to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("kernel", [round_in_steps, round_at_once])
def test_bfloat16_is_rounded_as_torch_does(kernel, monkeypatch):
    if kernel is round_in_steps:
        monkeypatch.setattr(lanes, "rounds_at_once", lambda: False)
    elif not lanes.rounds_at_once():
        pytest.skip("this processor has no instruction that rounds to bfloat16")
    numbers = of_bits(0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)[:-21]  # so that all widths occur
    result = torch.zeros(len(numbers), dtype=torch.bfloat16)
    run(kernel, 1, numbers, result, len(numbers), small=True)
    expected = numbers.bfloat16()
    if kernel is round_at_once:
        denormal = numbers.abs() < torch.finfo(torch.float32).tiny
        assert not result[denormal].any()
        result, expected = result[~denormal], expected[~denormal]
    nan = expected.isnan()
    assert result[nan].isnan().all()
    assert torch.equal(result[~nan].view(torch.int16), expected[~nan].view(torch.int16))


def test_reciprocals_are_quotients():
    numbers = of_bits(0, 0x1234, 0xFFFF)[:-21]
    numbers = numbers[((numbers.abs() > 1e-30) & (numbers.abs() < 1e30)) | numbers.isnan()]
    result = torch.zeros_like(numbers)
    run(invert, 1, numbers, result, len(numbers), small=True)
    nan = numbers.isnan()
    assert result[nan].isnan().all()
    relative = result[~nan].double() * numbers[~nan].double() - 1
    assert relative.abs().max() < 3e-7


def test_exponentials_are_powers_of_e():
    numbers = of_bits(0, 0x1234, 0xFFFF)[:-21]
    numbers = numbers[~(numbers > 88)]
    result = torch.zeros_like(numbers)
    run(exponentiate, 1, numbers, result, len(numbers), small=True)
    nan, below = numbers.isnan(), numbers < SMALLEST
    assert nan.any()
    assert result[nan].isnan().all()
    assert numbers[below].min() == -torch.inf
    assert not result[below].any()
    relative = result[~nan & ~below].double() / numbers[~nan & ~below].double().exp() - 1
    assert relative.abs().max() < 3e-7
