"""How weights lie in memory while texts are written: as they are, or in oneDNN's own order.

A token needs every weight once, and which order is read faster depends on the processor, the dtype and the number of
rows. So both are timed, once for each model's shape, and the choice is kept from run to run: the two orders round
differently, and a seed is to write the same text tomorrow. Where it cannot be kept, the packed order is taken.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lm.machine.readings import keep, processor, recall
from lm.machine.torch_inside import has_packed_product, packed_product

Product = Callable[[Tensor], Tensor]  # (..., in_features) -> (..., out_features)

FEWEST = 1 << 20  # weights, from which on it is worth while to choose
MOST_BYTES = 1 << 28  # of weights to time, more than caches hold
ROUNDS, LONGEST = 12, 2.0  # a round is begun within so many seconds
GAIN = 0.95  # of the packed order's time, at most, for another to be taken


def multiply_plain(weight: Tensor) -> Product:
    return lambda x: x @ weight.T


PACKED, PLAIN = "packed", "plain"
LAYOUTS = {PACKED: packed_product, PLAIN: multiply_plain}


def can_pack(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether this weight can be laid out in oneDNN's order."""
    return weight.is_cpu and has_packed_product(dtype)


def lay_out(weights: Sequence[Tensor], dtype: torch.dtype, layout: str) -> Product:
    """Lay out the weights of several Linear with one input, as one product: (..., in) -> (..., all out)."""
    return LAYOUTS[layout](join(weights, dtype))


def join(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([weight.detach() for weight in weights]).to(dtype)


def choose_layout(products: Sequence[Sequence[Tensor]], dtype: torch.dtype, rows: int) -> str:
    """Choose the faster layout for this machine, or the one chosen before.

    products: the weights that each product of a token joins. rows: texts that are written at once, at most.
    """
    if not can_pack(products[0][0], dtype):
        return PLAIN
    shapes = [(sum(map(len, weights)), weights[0].shape[1]) for weights in products]
    if sum(outputs * inputs for outputs, inputs in shapes) < FEWEST:
        return PACKED
    rows = min(64, 1 << (rows - 1).bit_length())
    name = reading_name(shapes, dtype, rows)
    chosen = recall(name)
    if chosen not in LAYOUTS:
        seconds = time_layouts(products, dtype, rows)
        chosen = PLAIN if seconds[PLAIN] < GAIN * seconds[PACKED] else PACKED
        if not keep(name, chosen):
            return PACKED
    return chosen


def reading_name(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, rows: int) -> str:
    counts = ", ".join(f"{count} of {outputs} x {inputs}" for (outputs, inputs), count in Counter(shapes).items())
    where = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"layout on {where}: {rows} rows in {str(dtype).removeprefix('torch.')}, {counts}"


@torch.inference_mode()
def time_layouts(products: Sequence[Sequence[Tensor]], dtype: torch.dtype, rows: int) -> dict[str, float]:
    """Return the seconds that all products of a token take in each layout, taking turns.

    Each product counts by its fastest time: moments so short pass undisturbed on a busy machine, too.
    """
    joined, size = [], 0
    for weights in products:
        joined.append(join(weights, dtype))
        size += joined[-1].nbytes
        if size > MOST_BYTES:
            break
    inputs = [torch.ones(rows, 1, weight.shape[1], dtype=dtype) for weight in joined]
    laid_out = {layout: [multiply(weight) for weight in joined] for layout, multiply in LAYOUTS.items()}
    fewest = {layout: [float("inf")] * len(joined) for layout in LAYOUTS}
    begin = time.perf_counter()
    for done in range(ROUNDS):
        if done and time.perf_counter() > begin + LONGEST:
            break
        for layout, multiplied in laid_out.items():
            for number, (product, x) in enumerate(zip(multiplied, inputs, strict=True)):
                start = time.perf_counter()
                product(x)
                fewest[layout][number] = min(fewest[layout][number], time.perf_counter() - start)
    return {layout: sum(seconds) for layout, seconds in fewest.items()}
