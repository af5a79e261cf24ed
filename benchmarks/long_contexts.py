"""How the cost of a token grows with the context, up to 8,192 tokens: in training, in reading a prompt, and in writing.

  python benchmarks/long_contexts.py       the table of docs/performance.md; two minutes with AMX

The model is the handout's base model with a longer context, in bfloat16 where the processor has it, with as many
threads as `lm fit` takes. Training is on one window, as scaling.py measures it. Reading and writing are for one text of
the context's length: all but its last tokens are the prompt. Each is a process of its own, so that its peak memory is
its own.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import scaling

ROOT = Path(__file__).parent.parent
CONTEXTS = (1024, 2048, 4096, 8192)
WRITTEN = 60  # tokens
STEPS = 5  # of training, of which the median counts


def main() -> None:
    if sys.argv[1:2] == ["--one"]:  # what a process measures
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    print(
        "| context | attention | training: ms a token | peak GB | reading: ms a token | writing: ms a token | peak GB |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for context in CONTEXTS:
        trained = scaling.run(scaling.BASE | {"context_length": context, "batch_size": 1}, STEPS)
        command = [sys.executable, __file__, "--one", str(context)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"a context of {context} failed:\n{done.stderr[-2000:]}")
        reading, writing, peak = json.loads(done.stdout)
        row = [f"{context:,}", trained["attention"], f"{1e3 / trained['speed']:.2f}", f"{trained['memory']:.2f}"]
        row += [f"{reading:.3f}", f"{writing:.2f}", f"{peak:.2f}"]
        print(f"| {' | '.join(row)} |", flush=True)


def measure(context: int) -> tuple[float, float, float]:
    """Returns milliseconds for a token that is read, and one that is written, and the peak memory in GB."""
    import torch

    from lm.generation.decoding import CachedReader
    from lm.generation.writer import PRECISIONS
    from lm.machine.resources import native_precision
    from lm.model.transformer import TransformerLM

    torch.manual_seed(0)
    model = TransformerLM(10_000, context, d_model=512, num_layers=4, num_heads=16)
    dtype = PRECISIONS["bf16" if native_precision("cpu") == "bf16-mixed" else "fp32"]
    reader = CachedReader(model, 1, dtype)
    prompt = torch.randint(10_000, (context - WRITTEN - 1,)).tolist()
    reader.read(0, prompt)  # once before, so that what is made at the first call is there
    reader.step([0])
    start = time.perf_counter()
    reader.read(0, prompt)
    read = time.perf_counter()
    for token_id in range(WRITTEN):
        reader.step([token_id])
    seconds = read - start, time.perf_counter() - read
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return 1e3 * seconds[0] / len(prompt), 1e3 * seconds[1] / WRITTEN, peak


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
