"""How fast the handout's base writes: 32 tokens read, 200 written, always the likeliest."""

import statistics
from functools import partial
from typing import Any

import torch

from gpu_stages.bench import Bench, Part, make_model
from lm.generation.sampling import Sampling
from lm.generation.writer import PRECISIONS, generate_batch


def parts(bench: Bench) -> dict[str, Part]:
    return {
        f"{precision}, batch {batch}": partial(speed, bench, precision, batch)
        for batch in (1, 2 if bench.small else 64)
        for precision in PRECISIONS
    }


@torch.inference_mode()
def speed(bench: Bench, precision: str, batch: int) -> dict[str, Any]:
    model = make_model(bench, bench.shape)
    read, written = (5, 10) if bench.small else (32, 200)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(model.vocab_size, (batch, read), generator=generator).tolist()

    def write(count: int) -> None:
        texts = list(generate_batch(model, prompts, count, Sampling(0), dtype=PRECISIONS[precision]))
        assert len(texts) == batch * count

    write(3)
    seconds = statistics.median(bench.seconds(partial(write, written)) for _ in range(3))
    return {"tokens/s": round(batch * written / seconds), "ms a token": round(1000 * seconds / written, 3)}
