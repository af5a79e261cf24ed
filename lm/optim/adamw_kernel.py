"""AdamW's update of a list of weights on a CPU, by a kernel in one pass over memory; see adamw.adamw_update."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lm.machine.kernels import FIELDS, SMALL, compiled, run, share_of, thread_of
from lm.machine.lanes import ANY_ORDER, FLOAT32, INT, LONG, at, for_each, load, root, spread, store
from tokenization.native.compiling import load as load_machine_code
from tokenization.native.instructions import instruction, load64

TENSORS, COUNT, DECAY, STEP_SIZE, BETA1, BETA2, REST1, REST2, EPS = range(FIELDS, FIELDS + 72, 8)
WEIGHT, GRADIENT, M, V, LENGTH, ENTRY = range(0, 48, 8)  # an entry of the list of tensors, and its bytes


@instruction
def update_numbers(builder: Any, task: Any, weight: Any, gradient: Any, m: Any, v: Any, length: Any) -> None:
    """Updates numbers that follow one another, by the constants of a task."""

    def constant(field: int, width: int) -> Any:
        return spread(builder, builder.extract_element(load(builder, builder.add(task, LONG(field)), 1), INT(0)), width)

    def build(index: Any, width: int) -> None:
        w_at, g_at, m_at, v_at = (at(builder, x, index, FLOAT32) for x in (weight, gradient, m, v))
        w, g, old_m, old_v = (load(builder, place, width) for place in (w_at, g_at, m_at, v_at))

        def mean(old: Any, new: Any, beta: int, rest: int) -> Any:
            kept = builder.fmul(constant(beta, width), old, flags=ANY_ORDER)
            return builder.fadd(kept, builder.fmul(constant(rest, width), new, flags=ANY_ORDER), flags=ANY_ORDER)

        new_m = mean(old_m, g, BETA1, REST1)
        new_v = mean(old_v, builder.fmul(g, g), BETA2, REST2)
        denominator = builder.fadd(root(builder, new_v), constant(EPS, width))
        moved = builder.fdiv(builder.fmul(constant(STEP_SIZE, width), new_m), denominator)
        store(builder, builder.fsub(builder.fmul(constant(DECAY, width), w), moved), w_at)
        store(builder, new_m, m_at)
        store(builder, new_v, v_at)

    for_each(builder, length, build)


@compiled(__file__)
def update_tensors(task: int) -> None:
    """Updates a thread's part of each tensor."""
    thread, threads = thread_of(task)
    entry = load64(task + TENSORS)
    for _ in range(load64(task + COUNT)):
        start, stop = share_of(load64(entry + LENGTH), thread, threads)
        weight = load64(entry + WEIGHT) + 4 * start
        gradient = load64(entry + GRADIENT) + 4 * start
        m = load64(entry + M) + 4 * start
        v = load64(entry + V) + 4 * start
        update_numbers(task, weight, gradient, m, v, stop - start)
        entry += ENTRY


def load_kernels() -> None:
    """Compiles the kernel, or reads it from the cache."""
    load_machine_code(update_tensors)


def update(
    tensors: Sequence[Sequence[Tensor]],
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Does adamw.adamw_update to tensors, each (weight, gradient, m, v): contiguous, in float32, on a CPU."""
    entries = torch.tensor([[*(x.data_ptr() for x in each), each[0].numel()] for each in tensors])
    step_size = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
    constants = (1.0 - lr * weight_decay, step_size, *betas, 1.0 - betas[0], 1.0 - betas[1], eps)
    numbers = sum(each[0].numel() for each in tensors)
    run(update_tensors, 0, entries, len(tensors), *map(float, constants), small=numbers < SMALL)
