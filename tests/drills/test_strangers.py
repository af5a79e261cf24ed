"""A stranger's files cost little and break nothing: whatever config.json, weights, index, tokenizer.json or YAML say,
the answer is one line and exit code 2, within seconds and bounded memory. So it is for random changes of a good folder;
where one of them is still imported, the run is the model that transformers sees in the same folder, or a whole one.
"""

import contextlib
import faulthandler
import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.hostile_folders import NO_FILES, cases, edit, like, put, splitting
from helpers.llamas import save_llama

from lm.interchange.foreign import INDEX, SETTINGS, WEIGHTS, WORDS
from lm.runs.checkpoint import load_model, load_tokenizer
from lm.runs.folder import BEST

SECONDS, MEBIBYTES = 20, 400  # for each; most take milliseconds


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
