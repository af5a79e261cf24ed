"""A sharded checkpoint as processes would write it, put together here a second time; and FSDP in this process."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from helpers.checkpoints import archive, sign


def scatter(path: Path, count: int, run: Path, name: str = "last.ckpt", **changes: Any) -> list[Path]:
    """Writes the checkpoint in `path`, a single file, as one of `count` shards into a run's folder -> the shards."""
    state = torch.load(path, weights_only=True) | changes
    shapes, rows = {}, [{} for _ in range(count)]

    def cut(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            shapes[name] = list(value.shape)
            chunks = [*torch.chunk(value, count), *[value[:0]] * count][:count]
            for own, chunk in zip(rows, chunks, strict=True):
                own[name] = chunk.clone()
            return torch.empty(0)
        if isinstance(value, dict):
            return {key: cut(inner, f"{name}.{key}") for key, inner in value.items()}
        return [cut(inner, f"{name}.{key}") for key, inner in enumerate(value)] if isinstance(value, list) else value

    for part in ("state_dict", "optimizer_states"):
        if part in state:
            state[part] = cut(state[part], part)
    files = [f"shards/step-{state['global_step']}-0badcafe/{number}-of-{count}.pt" for number in range(count)]
    contents = [archive(own) for own in rows]
    (run / files[0]).parent.mkdir(parents=True, exist_ok=True)
    for file, content in zip(files, contents, strict=True):
        (run / file).write_bytes(content)
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in zip(files, contents, strict=True)}
    manifest = json.dumps({"step": state["global_step"], "shards": digests})
    (run / name).write_bytes(sign(archive(state | {"sharded": shapes}), manifest))
    return [run / file for file in files]
