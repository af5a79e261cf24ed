"""Chooses how weights are laid out in memory during generation: as they are, or in oneDNN's own order.

Each token needs every weight once, and which layout is read faster depends on the processor, the dtype and the number
of rows. So both are timed, once for each shape of model, and the choice is stored on this machine: the two round
differently, and a seed is to give the same text tomorrow. Where it cannot be stored, the packed layout is used. Weights
in 8 bits have one layout, as those in bfloat16 have where oneDNN does not multiply them (kernel_product.py), and the
kernel for one row (one_row.py) reads weights as they are.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lm.generation.kernel_product import KernelProduct
from lm.generation.program import obstacle
from lm.generation.quantization import PADDING, Quantized
from lm.machine.readings import keep, processor, recall
from lm.machine.teams import Team
from lm.machine.torch_inside import has_packed_product, packed_product

Product = Callable[[Tensor], Tensor]  # (..., in_features) -> (..., out_features)

FEWEST = 1 << 20  # weights; a smaller model is packed, untimed
MOST_BYTES = 1 << 28  # of weights that are timed, more than caches hold
ROUNDS, LONGEST = 12, 2.0  # the most rounds, and the seconds after which no other begins
GAIN = 0.95  # the plain layout is used where it takes at most this share of the packed one's time


def multiply_plain(weight: Tensor) -> Product:
    """Returns the product with a weight as it is, (out_features, in_features)."""
    without_onednn = not has_packed_product(torch.float32)  # then torch has another library, perhaps a fast one
    if weight.dtype != torch.bfloat16 or not weight.is_cpu or has_packed_product(weight.dtype) or without_onednn:
        return lambda x: x @ weight.T
    if weight.shape[1] % PADDING == 0 and not obstacle() and Team().size == torch.get_num_threads():
        return KernelProduct(weight.contiguous())
    return lambda x: (x.float() @ weight.float().T).to(x.dtype)


PACKED, PLAIN = "packed", "plain"
LAYOUTS = {PACKED: packed_product, PLAIN: multiply_plain}


def can_pack(weight: Tensor, dtype: torch.dtype) -> bool:
    """Tells whether this weight can be laid out in oneDNN's order."""
    return weight.is_cpu and has_packed_product(dtype)


def lay_out(weight: Tensor | Quantized, layout: str) -> Product:
    """Returns the product with a weight, laid out so: (..., in_features) -> (..., out_features)."""
    if isinstance(weight, Quantized):
        return KernelProduct(weight.numbers, weight.scales)
    return LAYOUTS[layout](weight)


def join(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Stacks weights that share an input, (all out_features, in_features); one alone, of this dtype, is not copied."""
    stacked = [weight.detach().to(dtype) for weight in weights]
    return torch.cat(stacked) if len(stacked) > 1 else stacked[0]


def choose_layout(products: Sequence[Sequence[Tensor]], dtype: torch.dtype, rows: int) -> str:
    """Chooses the faster layout on this machine, or the one chosen before.

    products: the weights that each product of a step joins. rows: the most texts generated at once.
    """
    if not can_pack(products[0][0], dtype):
        return PLAIN
    shapes = [(sum(map(len, weights)), weights[0].shape[1]) for weights in products]
    if sum(outputs * inputs for outputs, inputs in shapes) < FEWEST:
        return PACKED
    rows = min(64, 1 << (rows - 1).bit_length())
    name = reading_name(shapes, dtype, rows)
    recalled = recall(name)
    chosen = next((layout for layout in LAYOUTS if layout == recalled), None)
    if chosen is None:
        seconds = time_layouts(products, dtype, rows)
        chosen = PLAIN if seconds[PLAIN] < GAIN * seconds[PACKED] else PACKED
        if not keep(name, chosen):
            return PACKED
    return chosen


def reading_name(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, rows: int) -> str:
    """Names a choice by all that it depends on."""
    counts = ", ".join(f"{count} of {outputs} x {inputs}" for (outputs, inputs), count in Counter(shapes).items())
    where = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"layout on {where}: {rows} rows in {str(dtype).removeprefix('torch.')}, {counts}"


@torch.inference_mode()
def time_layouts(products: Sequence[Sequence[Tensor]], dtype: torch.dtype, rows: int) -> dict[str, float]:
    """Returns the seconds that all products of a step take in each layout; the layouts take turns.

    Each product counts by its fastest time: in so short a moment even a busy machine may not disturb it.
    """
    joined, size = [], 0
    for weights in products:
        joined.append(join(weights, dtype))
        size += joined[-1].nbytes
        if size > MOST_BYTES:
            break
    inputs = [torch.ones(rows, 1, weight.shape[1], dtype=dtype) for weight in joined]
    laid_out = {layout: [multiply(weight) for weight in joined] for layout, multiply in LAYOUTS.items()}
    fastest = {layout: [float("inf")] * len(joined) for layout in LAYOUTS}
    begin = time.perf_counter()
    for done in range(ROUNDS):
        if done and time.perf_counter() > begin + LONGEST:
            break
        for layout, multiplied in laid_out.items():
            for number, (product, x) in enumerate(zip(multiplied, inputs, strict=True)):
                start = time.perf_counter()
                product(x)
                fastest[layout][number] = min(fastest[layout][number], time.perf_counter() - start)
    return {layout: sum(seconds) for layout, seconds in fastest.items()}
