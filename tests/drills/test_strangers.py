"""A stranger's files cost little and break nothing: whatever config.json, weights, index, tokenizer.json or YAML say,
the answer is one line and exit code 2, within seconds and bounded memory. So it is for random changes of a good folder;
where one of them is still imported, the run is the model that transformers sees in the same folder, or a whole one.
"""

import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.llamas import SIZES, save_llama
from safetensors.torch import load_file, save, save_file

from lm.interchange.foreign import INDEX, SETTINGS, WEIGHTS, WORDS
from lm.runs.checkpoint import load_model, load_tokenizer
from lm.runs.folder import BEST

SECONDS, MEBIBYTES = 20, 400  # for each; most take milliseconds
Change = Callable[[Path], Any]


def status(name: str) -> int:
    """VmRSS and others of this process, in KiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Fails where the block takes more time or memory; a bomb meets a limit before it takes the machine's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, ((status("VmData") << 10) + (2 << 30), hard))
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True, file=sys.__stderr__)  # what hangs in C hears nothing else
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = status("VmRSS"), time.monotonic()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert time.monotonic() - start < SECONDS
    assert status("VmHWM") - before < MEBIBYTES << 10


@pytest.fixture(scope="module")
def llama(tmp_path_factory, token_data):
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder, token_data)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, token_data):
    folder = tmp_path_factory.mktemp("sharded")
    save_llama(folder, token_data, shards="50KB")
    return folder


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


def refused(done) -> bool:
    return done.code == 2 and done.err.count("\n") == 1 and len(done.err) < 1200 and done.err[:-1].isprintable()


def test_hostile_folders_are_refused_in_one_line(llama, sharded, lm, tmp_path):
    faults, tried = [], 0
    for name, good, change in cases(llama, sharded):
        tried += 1
        folder = like(good, tmp_path / "hf")
        change(folder)
        try:
            with bounds():
                done = lm("import", folder, "--output", tmp_path / "run")
            if not refused(done) or done.out or (tmp_path / "run").exists():
                faults.append(f"{name}: {done.code} {done.err[-300:]!r}")
        except Exception as error:
            faults.append(f"{name}: {error!r}")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.rmtree(folder)
    print(f"{tried} hostile folders: {tried - len(faults)} refused in one line, {len(faults)} faults")
    assert not faults, "\n".join(faults)
    assert tried > 300


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "\udcff", "x" * 200, "/".join(["x" * 200] * 20), "a\u202eb"])
def test_a_name_is_shown_on_one_line(name, lm, tmp_path):
    for arguments in (("import", name, "--output", tmp_path / "run"), ("export", name, "--output", tmp_path / "hf")):
        assert refused(lm(*arguments))


@pytest.mark.parametrize("pattern", [r"(a|aa)+$", r"(a*)*b", r"(?:\p{L}+)+\d"])
def test_a_catastrophic_pattern_ends(pattern, llama, lm, tmp_path, monkeypatch):
    """It may be imported; a text that it would take years for is answered in a line."""
    monkeypatch.setattr("tokenization.pretokenization.PATTERN_SECONDS", 0.2)
    folder = like(llama, tmp_path / "hf")
    edit(WORDS, lambda content: content.update(pre_tokenizer=splitting(pattern)))(folder)
    with bounds():
        done = lm("import", folder, "--output", tmp_path / "run")
        if done.code == 0:
            done = lm("generate", tmp_path / "run", "--prompt", "a" * 5000 + "c", "--max-new-tokens=1")
    assert refused(done) or done.code == 0
    assert "Traceback" not in done.err


# --- configurations --------------------------------------------------------------------------------------------------


def laughs() -> bytes:
    """A billion of them, were its aliases written out."""
    groups = [f"a{n}: &a{n} {{{', '.join(f'b{m}: *a{n - 1}' for m in range(10))}}}" for n in range(1, 10)]
    return "\n".join(["a0: &a0 {ha: ha}", *groups]).encode()


YAML: dict[str, bytes] = {
    "laughs": laughs(),
    "a circle": b"trainer: &a {callbacks: [*a]}",
    "deep": b"[" * 100_000,
    "huge": b" " * (1 << 27),
    "zeros": bytes(1000),
    "Latin-1": "# für".encode("latin-1"),
    "UTF-16": "trainer: {}".encode("utf-16"),
    "twice": b"trainer: {}\ntrainer: {}",
    "a tag": b"seed_everything: !!python/object/apply:os.mkdir [evil]",
    "5,000 digits": b"seed_everything: 1" + b"0" * 5000,
}
SETTINGS_OF_RUNS: dict[str, Any] = {
    "a list for a group": {"model": [1, 2]},
    "a number for a group": {"trainer": 7},
    "a table for a number": {"model": {"d_model": {"a": 1}}},
    "a list for a name": {"data": {"train_path": [1]}},
    "a table for a folder": {"trainer": {"default_root_dir": {"a": 1}}},
    "a wide model": {"model": {"d_model": 2**60}},
    "a deep model": {"model": {"num_layers": 10**9}},
    "a large model": {"model": {"d_ff": 2**28, "d_model": 2**14}},
    "a long context": {"model": {"context_length": 2**60}},
    "a class that is none": {"trainer": {"callbacks": [{"class_path": "os.mkdir", "init_args": {"path": "evil"}}]}},
    "a module that is none": {"trainer": {"callbacks": [{"class_path": "nowhere.Nothing"}]}},
}


def test_hostile_configurations_are_refused_in_one_line(lm, fit_arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, faults, tried = Path("evil.yaml"), [], 0

    def attempt(name: str, *arguments: object) -> None:
        nonlocal tried
        tried += 1
        try:
            with bounds():
                done = lm(*arguments)
            if not refused(done) or Path("evil").exists():
                faults.append(f"{name}, {arguments[0]}: {done.code} {done.err[-300:]!r}")
        except Exception as error:
            faults.append(f"{name}, {arguments[0]}: {error!r}")

    for name, content in YAML.items():
        put(path, content)
        attempt(name, "fit", "-c", path)
    for name, make in NO_FILES.items():
        if name not in ("nothing", "a pipe"):  # as in -c <(sed ...)
            path.unlink(missing_ok=True)
            make(path)
            attempt(name, "fit", "-c", path)
            path.rmdir() if path.is_dir() else path.unlink()
    for name, settings in SETTINGS_OF_RUNS.items():
        put(path, json.dumps(settings).encode())
        set_here = [f"--{group}.{key}=" for group, keys in settings.items() if isinstance(keys, dict) for key in keys]
        others = [word for word in fit_arguments(tmp_path / "run") if not str(word).startswith(tuple(set_here))]
        attempt(name, *others, "-c", path)
    put(path, laughs())
    for command in ("validate", "account", "find-lr"):
        attempt("laughs", command, "-c", path)
    attempt("laughs", "sweep", "-c", path, "--param=model.d_model", "--values=1", "--output=sweep")
    Path("read").mkdir()
    for name, content in YAML.items():
        put(Path("read/config.yaml"), content)
        attempt(name, "report", "read")
    print(f"{tried} hostile configurations: {tried - len(faults)} refused in one line, {len(faults)} faults")
    assert not faults, "\n".join(faults)


# --- random changes --------------------------------------------------------------------------------------------------

VALUES = (None, True, False, 0, 1, -1, 2, 0.5, 1e9, 2**31, 2**60, 10**400, float("nan"), float("inf"), "", "x", [], {})


def swap(content: Any, rng: random.Random) -> None:
    """Replaces, removes, renames or copies one value somewhere in a JSON document."""
    while True:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = rng.choice(keys)
        if isinstance(content[key], (dict, list)) and content[key] and rng.random() < 0.7:
            content = content[key]
            continue
        what = rng.choice(("replace", "replace", "replace", "remove", "copy"))
        if what == "remove":
            del content[key]
        elif what == "copy" and isinstance(content, dict):
            content[rng.choice((f"{key}_", "rope_theta", "head_dim", "sliding_window"))] = content[key]
        else:
            content[key] = rng.choice((*VALUES, content[rng.choice(keys)]))
        return


def change_something(folder: Path, rng: random.Random) -> str:
    name = rng.choice((SETTINGS, SETTINGS, WORDS, WEIGHTS, INDEX))
    path = folder / name if (folder / name).exists() else folder / WEIGHTS
    if not path.exists():
        path = rng.choice(sorted(folder.glob("*.safetensors")))
    content = bytearray(path.read_bytes())
    what = rng.choice(("swap", "swap", "flip", "cut")) if path.suffix == ".json" else rng.choice(("flip", "cut"))
    if what == "swap":
        document = json.loads(content)
        swap(document, rng)
        content = bytearray(json.dumps(document).encode())
    elif what == "cut":
        del content[rng.randrange(len(content)) :]
    else:  # half of them in the beginning, where the headers are
        bit = rng.randrange(8 * (len(content) if rng.random() < 0.5 else min(2000, len(content))))
        content[bit // 8] ^= 1 << bit % 8
    put(path, bytes(content))
    return f"{what} {path.name}"


@torch.inference_mode()
def transformers_agrees(folder: Path, run: Path) -> bool:
    """The run has the logits that transformers finds in the folder, where transformers reads it."""
    ours = load_model(run / BEST)
    load_tokenizer(run / BEST).encode("Tom saw a red ball.<|endoftext|>")
    try:
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception:  # it is stricter about what does not change a number
        return True
    token_ids = torch.randint(320, (2, min(32, ours.context_length)), generator=torch.Generator().manual_seed(1))
    found, expected = ours(token_ids), theirs(token_ids).logits
    return bool(((found - expected).abs() <= 1e-3 * (1 + expected.abs().max())).all() or not expected.isfinite().all())


@pytest.mark.parametrize("trials", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_changes_are_refused_or_seen_as_transformers_sees_them(trials, llama, sharded, lm, tmp_path):
    seed = 0 if trials < 1000 else random.SystemRandom().randrange(1 << 32)
    rng, faults, counts = random.Random(seed), [], {"refused": 0, "imported": 0}
    for number in range(trials):
        folder = like(rng.choice((llama, sharded)), tmp_path / "hf")
        what = change_something(folder, rng)
        try:
            with bounds():
                done = lm("import", folder, "--output", tmp_path / "run")
            if done.code == 0:
                counts["imported"] += 1
                if not transformers_agrees(folder, tmp_path / "run"):
                    faults.append(f"{number}: {what}: another model than transformers'")
            elif refused(done):
                counts["refused"] += 1
            else:
                faults.append(f"{number}: {what}: {done.code} {done.err[-300:]!r}")
        except Exception as error:
            faults.append(f"{number}: {what}: {error!r}")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.rmtree(folder)
    print(f"{trials} random changes: {counts}, {len(faults)} faults")
    assert not faults, "\n".join([f"seed {seed}: {len(faults)} of {trials}", *faults])
    assert counts["refused"] > trials / 4
