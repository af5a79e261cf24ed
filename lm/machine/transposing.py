"""Transposes matrices in memory, 16 numbers by 16 at a time; torch takes three times as long.

With AMX, oneDNN multiplies at half its speed where the left matrix is transposed, as it is for the gradient of every
weight.
"""

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, portion, run
from lm.machine.lanes import BFLOAT16, FLOAT32, INT
from tokenization.native.instructions import instruction, load8, load32, load64, store8, store32

SIDE = 16


def _tile(size: int, target_size: int, blocks: int) -> Callable[[int, int, int, int], int]:
    """Returns the instruction that transposes a tile of (blocks * SIDE, SIDE) numbers into (SIDE, blocks * SIDE)."""

    @instruction
    def tile(builder: Any, source: Any, source_stride: Any, target: Any, target_stride: Any) -> None:
        """Strides are the bytes from one row to the next."""
        number = ir.IntType(8 * size)
        kind = ir.VectorType(number, SIDE)
        done = []
        for block in range(blocks):
            rows = []
            for row in range(SIDE):
                address = builder.add(source, builder.mul(source_stride, ir.IntType(64)(block * SIDE + row)))
                rows.append(builder.load(builder.inttoptr(address, kind.as_pointer()), align=size))
            done.append(_transpose(builder, rows))
        for column in range(SIDE):
            parts = [rows[column] for rows in done]
            address = builder.add(target, builder.mul(target_stride, ir.IntType(64)(column)))
            numbers = parts[0] if blocks == 1 else _join(builder, *parts)
            if target_size != size:
                wide = ir.VectorType(INT, numbers.type.count)
                sixteen = ir.Constant(wide, [16] * numbers.type.count)
                numbers = builder.shl(builder.zext(numbers, wide), sixteen)
            builder.store(numbers, builder.inttoptr(address, numbers.type.as_pointer()), align=target_size)

    return tile


def _transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """Exchanges the bits of a number's row with those of its column, one bit at a time."""
    for bit in (1, 2, 4, 8):
        low = [lane if not lane & bit else SIDE + lane - bit for lane in range(SIDE)]
        high = [lane + bit if not lane & bit else SIDE + lane for lane in range(SIDE)]
        masks = [ir.Constant(ir.VectorType(INT, SIDE), lanes) for lanes in (low, high)]
        new = list(rows)
        for row in (row for row in range(SIDE) if not row & bit):
            for mask, place in zip(masks, (row, row + bit), strict=True):
                new[place] = builder.shuffle_vector(rows[row], rows[row + bit], mask)
        rows = new
    return rows


def _join(builder: Any, left: Any, right: Any) -> Any:
    lanes = ir.VectorType(INT, 2 * SIDE)
    return builder.shuffle_vector(left, right, ir.Constant(lanes, list(range(2 * SIDE))))


tile_float32, tile_bfloat16 = _tile(FLOAT32, FLOAT32, 1), _tile(BFLOAT16, BFLOAT16, 2)
tile_widened = _tile(BFLOAT16, FLOAT32, 1)

SOURCE, TARGET, ROWS, COLUMNS, SIZE, TARGET_SIZE = range(FIELDS, FIELDS + 48, 8)
BAND = 2 * SIDE  # rows that a thread takes at a time


@compiled(__file__)
def transpose_bands(task: int) -> None:
    """Transposes a thread's bands of rows."""
    rows = load64(task + ROWS)
    columns = load64(task + COLUMNS)
    stride = columns * load64(task + SIZE)
    target_stride = rows * load64(task + TARGET_SIZE)
    first, behind = portion(task)
    for band in range(first, behind):
        row = band * BAND
        source = load64(task + SOURCE) + row * stride
        target = load64(task + TARGET) + row * load64(task + TARGET_SIZE)
        whole = columns & -SIDE
        if row + BAND > rows:
            whole = 0
        for _ in range(0, whole, SIDE):
            transpose_tiles(task, source, stride, target, target_stride)
            source += SIDE * load64(task + SIZE)
            target += SIDE * target_stride
        for _ in range(whole, columns):
            for below in range(min(BAND, rows - row)):
                copy_number(task, source + below * stride, target + below * load64(task + TARGET_SIZE))
            source += load64(task + SIZE)
            target += target_stride


@compiled(__file__)
def transpose_tiles(task: int, source: int, stride: int, target: int, target_stride: int) -> None:
    """Transposes BAND rows of SIDE numbers."""
    if load64(task + TARGET_SIZE) == BFLOAT16:
        tile_bfloat16(source, stride, target, target_stride)
    elif load64(task + SIZE) == BFLOAT16:
        tile_widened(source, stride, target, target_stride)
        tile_widened(source + SIDE * stride, stride, target + 4 * SIDE, target_stride)
    else:
        tile_float32(source, stride, target, target_stride)
        tile_float32(source + SIDE * stride, stride, target + 4 * SIDE, target_stride)


@compiled(__file__)
def copy_number(task: int, source: int, target: int) -> None:
    """Copies one number."""
    if load64(task + SIZE) == FLOAT32:
        store32(target, load32(source))
        return
    bits = load8(source) + (load8(source + 1) << 8)
    if load64(task + TARGET_SIZE) == FLOAT32:
        store32(target, bits << 16)
    else:
        store8(target, bits)
        store8(target + 1, bits >> 8)


def transposed(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns the transpose of a matrix, contiguous: (rows, columns) -> (columns, rows).

    matrix: in float32 or bfloat16; dtype: of the result, the matrix's own or float32.
    """
    matrix = matrix.contiguous()
    rows, columns = matrix.shape
    result = matrix.new_empty(columns, rows, dtype=dtype or matrix.dtype)
    bands = (rows + BAND - 1) // BAND
    sizes = (matrix.element_size(), result.element_size())
    run(transpose_bands, bands, matrix, result, rows, columns, *sizes, small=matrix.numel() < SMALL)
    return result
