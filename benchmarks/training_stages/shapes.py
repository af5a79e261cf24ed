"""The shapes of the models that are trained, and the steps of the fast path."""

from typing import Any

VOCAB_SIZE, CONTEXT, D_MODEL, D_FF, LAYERS, HEADS = 10_000, 256, 512, 1344, 4, 16
SHAPES: dict[str, dict[str, Any]] = {  # settings of a model, and windows in a batch
    "base": {"vocab_size": 10_000, "d_model": 512, "num_layers": 4, "num_heads": 16, "d_ff": 1344, "batch_size": 32},
    "adamw": {"vocab_size": 2048, "d_model": 192, "num_layers": 4, "num_heads": 3, "d_ff": 512, "batch_size": 8},
    "fast": {"vocab_size": 2048, "d_model": 128, "num_layers": 3, "num_heads": 2, "d_ff": 320, "batch_size": 8},
}
LADDER = {  # each adds to the one before it
    "float32, plain": "float32",
    "bfloat16": "",
    "memory stays": "memory",
    "attention in blocks": "memory attention",
    "loss without logits": "memory attention loss",
    "kernels": "memory attention loss kernels",
    "compiled": "memory attention loss kernels compile",
    "recomputed": "memory attention loss kernels compile recompute",
}
