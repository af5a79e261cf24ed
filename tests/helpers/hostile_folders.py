"""Hostile folders of a Hugging Face model: what is changed in a good one, by name."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from helpers.llamas import SIZES
from lm.interchange.foreign import INDEX, SETTINGS, WEIGHTS, WORDS

Change = Callable[[Path], Any]


def like(good: Path, folder: Path) -> Path:
    """A folder with links to the good files, as transformers keeps its downloads."""
    folder.mkdir()
    for path in good.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def to(name: str, content: bytes) -> Change:
    return lambda folder: put(folder / name, content)


def edit(name: str, change: Callable[[dict], Any]) -> Change:
    """change: what happens to the content of a JSON file."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes())
        change(content)
        put(folder / name, json.dumps(content).encode())

    return apply


def instead(name: str, make: Callable[[Path], Any]) -> Change:
    """make: of something else than a file."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


# --- the table -------------------------------------------------------------------------------------------------------

NO_FILES: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "endless noise": lambda path: path.symlink_to("/dev/urandom"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere"),
}
NO_JSON: dict[str, bytes] = {
    "empty": b"",
    "deep": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "4,000 digits": b'{"vocab_size": 1' + b"0" * 4000 + b"}",
    "5,000 digits": b'{"vocab_size": 1' + b"0" * 5000 + b"}",
    "twice": b'{"model_type": "llama", "model_type": "llama"}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "UTF-16": '{"model_type": "llama"}'.encode("utf-16"),
    "zeros": bytes(1000),
    "huge": b" " * (1 << 27),
}
SIZES_TO_TRY = (10**9, 2**31, 2**60, 10**400, 0, -1, 1.0, True, "2", [2], {}, {"a": [1]}, None)


def settings_cases() -> Iterator[tuple[str, Change]]:
    for name in SIZES:
        for size in SIZES_TO_TRY:
            yield f"{name} {str(size)[:20]}", edit(SETTINGS, lambda c, name=name, size=size: c.update({name: size}))
    everything = {name: 2**31 for name in SIZES if name != "num_hidden_layers"}
    yield "all sizes", edit(SETTINGS, lambda c: c.update(everything, num_hidden_layers=4096, head_dim=1))
    yield "4,096 layers", edit(SETTINGS, lambda c: c.update(num_hidden_layers=4096))
    for value in (["llama"], {"a": 1}, 7, "llama\n\x1b[31m" * 1000, [[["llama"]]]):
        for name in ("model_type", "hidden_act", "rope_parameters", "attention_bias", "architectures"):
            yield f"{name} {value!r:.20}", edit(SETTINGS, lambda c, name=name, value=value: c.update({name: value}))
    yield "a key of a megabyte", edit(SETTINGS, lambda c: c.update({"k" * 1_000_000: 1}))
    yield "keys", edit(SETTINGS, lambda c: c.update({f"key {n}": n for n in range(20_000)}))


def header(entries: dict, tail: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def entry(begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": [(end - begin) // 4], "data_offsets": [begin, end]}


def sparse(folder: Path) -> None:
    """A terabyte of zeros in one page of the disk: the model that config.json describes with it."""
    rows, (path, config) = 1 << 31, (folder / WEIGHTS, folder / SETTINGS)
    shapes = {name: list(weight.shape) for name, weight in load_file(path).items()}
    shapes |= {name: [rows, 64] for name in ("lm_head.weight", "model.embed_tokens.weight")}
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * (shape[1] if shape[1:] else 1)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    put(path, header(entries))
    os.truncate(path, path.stat().st_size + end)
    put(config, json.dumps(json.loads(config.read_text()) | {"vocab_size": rows}).encode())


def weights_cases(good: Path) -> Iterator[tuple[str, Change]]:
    content, weights = (good / WEIGHTS).read_bytes(), load_file(good / WEIGHTS)
    name, weight = "model.layers.1.mlp.up_proj.weight", weights["model.layers.1.mlp.up_proj.weight"]

    def other(value: torch.Tensor) -> Change:
        return to(WEIGHTS, save({**weights, name: value}))

    for dtype in (torch.int8, torch.uint8, torch.bool, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2):
        yield str(dtype), other(weight.to(dtype))
    for number in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            spoilt = weight.to(dtype)
            spoilt[3, 5] = number
            yield f"{number} in {dtype}", other(spoilt)
    yield "overflow in float32", other(weight.double() * 1e300)
    yield "another shape", other(weight.T.contiguous())
    yield "one feature less", other(weight[:, 1:].contiguous())
    yield "a scalar", other(torch.tensor(1.0))
    yield "nothing in it", other(torch.zeros(0, 64))
    for words, bad in {
        "no header": b"",
        "half a length": content[:4],
        "a length beyond the file": struct.pack("<Q", 1 << 30) + content[8:],
        "the longest length": struct.pack("<Q", (1 << 64) - 1) + content[8:],
        "half of it": content[: len(content) // 2],
        "a byte less": content[:-1],
        "a byte more": content + b"\0",
        "no JSON": struct.pack("<Q", 4) + b"{{{{" + content,
        "a deep header": struct.pack("<Q", 1 << 20) + b"[" * (1 << 20),
        "two weights in one place": header({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        "overlapping": header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        "a hole": header({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)),
        "backwards": header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
        "negative": header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
        "2**60": header({"a": {"dtype": "F32", "shape": [1 << 60, 1 << 60], "data_offsets": [0, 8]}}, bytes(8)),
        "another dtype": header({"a": entry(0, 8, "Q9")}, bytes(8)),
        "strings": header({"a": {"dtype": 1, "shape": "2", "data_offsets": "08"}}, bytes(8)),
        "100,000 weights": header({f"w{n}": entry(4 * n, 4 * n + 4) for n in range(100_000)}, bytes(400_000)),
        "a pickle": b"\x80\x04cos\nsystem\nX\x04\0\0\0true\x85R.",
    }.items():
        yield f"weights: {words}", to(WEIGHTS, bad)
    yield "a terabyte of zeros", sparse


def index_cases(good: Path) -> Iterator[tuple[str, Change]]:
    places = json.loads((good / INDEX).read_text())["weight_map"]
    first, second = sorted(set(places.values()))[:2]
    one, another = (next(name for name, file in places.items() if file == part) for part in (first, second))
    outside = good.parent / "outside.safetensors"
    shutil.copy(good / first, outside)

    def map_of(change: dict) -> Change:
        return edit(INDEX, lambda content: content["weight_map"].update(change))

    for path in (
        f"../{outside.name}",
        str(outside),
        "../x",
        "/etc/passwd",
        "/dev/zero",
        ".",
        "..",
        "",
        "a/b.safetensors",
    ):
        yield f"shard {path[-20:]}", map_of({one: path})
    for value in (7, None, [first], {"a": first}, "x.bin", "pytorch_model.bin", "a\nb.safetensors", "\0.safetensors"):
        yield f"shard {value!r}", map_of({one: value})
    yield "a shard that is missing", map_of({one: "model-00009-of-00009.safetensors"})
    yield "a weight in another shard", map_of({one: second})
    yield "weights that no shard has", map_of({f"w{n}": first for n in range(1000)})
    yield "a weight that is not listed", edit(INDEX, lambda content: content["weight_map"].pop(one))
    for value in ([], {}, None, 7, "x", [first]):
        yield f"map {value!r}", edit(INDEX, lambda content, value=value: content.update(weight_map=value))

    def twice(folder: Path) -> None:
        """A weight in two shards, with other numbers."""
        weights = load_file(folder / first)
        (folder / first).unlink()
        save_file(weights | {another: torch.zeros(1)}, folder / first)

    yield "a weight in two shards", twice
    yield "a shard that is a pipe", instead(first, os.mkfifo)
    yield "a shard without end", instead(first, lambda path: path.symlink_to("/dev/zero"))


def words_cases() -> Iterator[tuple[str, Change]]:
    def model(**change: Any) -> Change:
        return edit(WORDS, lambda content: content["model"].update(change))

    def whole(**change: Any) -> Change:
        return edit(WORDS, lambda content: content.update(change))

    no_vocabulary = ([], {}, None, 7, "x", [[["a", "b"]]], {"a": -1}, {"a": True}, {"a": 2**33}, {"a": [1]})
    for value in no_vocabulary:
        yield f"vocab {value}", model(vocab=value)
        yield f"model {value}", whole(model=value)
    for value in (None, 7, "x", ["a"], [7], [["a"]], [["a", "b", "c"]], [["a", 7]], ["a b c"], [["Q", "Qx"]], {"a": 1}):
        yield f"merges {value}", model(merges=value)
    for size in (2**31, 2**33, 2**63, 10**400, -1, True, 1.5, "5", None, []):
        yield f"an id {str(size)[:20]}", edit(WORDS, lambda c, size=size: c["model"]["vocab"].update(a=size))
    id_5, id_1 = {"id": 5, "content": ""}, {"id": 1, "content": 2}
    for token in (7, None, "x", {}, {"id": 1}, {"id": [], "content": []}, id_5, id_1, {"id": 2**60, "content": "new"}):
        yield f"a special token {token}", whole(added_tokens=[token])
    yield "special tokens", whole(added_tokens=[{"id": 1000 + n, "content": f"<{n}>"} for n in range(100_000)])
    for value in ([], {}, 7, "x", {"type": []}, {"type": "Sequence"}, {"type": "Sequence", "pretokenizers": 7}):
        yield f"pre_tokenizer {value}", whole(pre_tokenizer=value)
        if value:
            for name in ("decoder", "post_processor", "normalizer"):
                yield f"{name} {value}", whole(**{name: value})
    long = "x" * 1_000_000
    for name, change in {
        "vocab": model(vocab={long: -1}),
        "vocab's sign": model(vocab={f"{long}\n": 1}),
        "merge": model(merges=[long]),
        "pair": model(merges=[[long, long]]),
        "special token": whole(added_tokens=[{"id": -1, "content": long}]),
        "surrogate": whole(added_tokens=[{"id": 500, "content": f"{long}\ud800"}]),
        "key": whole(**{long: 1}),
        "type": whole(decoder={"type": long}),
        "class": whole(pre_tokenizer=splitting(f"[{long[:9000]}&&")),
        "group": whole(pre_tokenizer=splitting(f"({long[:9000]}")),
    }.items():
        yield f"a {name} of a megabyte", change
    for pattern in ("(", "[", 7, None, ["a"], "(" * 100_000, "x" * 10_000_000):
        yield f"pattern {str(pattern)[:20]}", whole(pre_tokenizer=splitting(pattern))


def splitting(pattern: Any) -> dict:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def cases(llama: Path, sharded: Path) -> Iterator[tuple[str, Path, Change]]:
    for name in (SETTINGS, WEIGHTS, WORDS, INDEX):
        good = sharded if name == INDEX else llama
        yield from ((f"{name}: {what}", good, instead(name, make)) for what, make in NO_FILES.items())
        if name != WEIGHTS:
            yield from ((f"{name}: {what}", good, to(name, content)) for what, content in NO_JSON.items())
    for kind in (settings_cases(), weights_cases(llama), words_cases()):
        yield from ((name, llama, change) for name, change in kind)
    yield from ((name, sharded, change) for name, change in index_cases(sharded))
