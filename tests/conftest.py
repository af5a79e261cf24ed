"""Shared by the tests: GPT-2's own vocabulary, rebuilt from its merges; a small tokenizer; random text; token files
to train on, and the command `lm` on a tiny model. What only one file needs stands in that file."""

import contextlib
import gc
import gzip
import json
import os
import random
import shlex
import signal
import sys
import unicodedata
from collections.abc import Generator
from pathlib import Path

import pytest
from helpers import FIXTURES
from helpers.commands import run_lm
from helpers.processes import WORKERS, ForkServer, fork_server_process, free_port
from helpers.runs import DEBUG, SETTINGS, TINY

from lm.machine.lean_imports import import_torchmetrics_on_demand
from tokenization import END_OF_TEXT, Tokenizer
from tokenization.bpe import learn_merges
from tokenization.files import write_text
from tokenization.formats.gpt2 import byte_alphabet
from tokenization.pretokenization import count_pretokens

# What a shell starts with & ignores Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tiny tensors gain nothing from more
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # tests run side by side; see lm/machine/contention.py
import_torchmetrics_on_demand()  # as `lm` does


LEFT_BY_LIGHTNING = (
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
)  # for a run's other processes


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the garbage collector from looking through what is there for good: torch, and thousands of tests."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.set_threshold(20_000)  # far above Python's own: with torch and Lightning, each test makes thousands of objects
    gc.enable()
    return collected


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Prepares the environment for the processes that a test may train in together, before any fixture starts them.

    They get a free port. With a LOCAL_RANK that a run in this process has left, they would wait for others for ever;
    and in a process group that it has left, later runs would find themselves distributed.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
    for name in LEFT_BY_LIGHTNING:
        os.environ.pop(name, None)
    os.environ["MASTER_PORT"] = str(free_port())


STORY = """Once upon a time there was a little cat. The cat's name was Tom, and Tom didn't like the rain.
One day it rained and rained.  "We'll play inside," said the cat. They played all day, and they were happy.
"""


@pytest.fixture(scope="session")
def gpt2_files(tmp_path_factory) -> Path:
    """A folder with GPT-2's vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("gpt2")
    text = gzip.decompress((FIXTURES / "gpt2_merges.txt.gz").read_bytes()).decode()
    pairs = [tuple(line.split(" ")) for line in text.splitlines()]
    tokens = [*byte_alphabet().values(), *(left + right for left, right in pairs), END_OF_TEXT]
    table = {token: token_id for token_id, token in enumerate(tokens)}
    write_text(folder / "vocab.json", json.dumps(table))
    write_text(folder / "merges.txt", "#version: 0.2\n" + text)
    return folder


@pytest.fixture(scope="session")
def gpt2(gpt2_files) -> Tokenizer:
    return Tokenizer.load(gpt2_files)


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    """300 tokens learnt from STORY; <|endoftext|> is 256."""
    return Tokenizer(*learn_merges(count_pretokens(STORY), 300, [END_OF_TEXT]), [END_OF_TEXT])


def _stable_characters() -> dict[str, list[str]]:
    """Characters of every plane by kind, only those whose kind every Unicode version since 3.2 agrees on."""
    kinds: dict[str, list[str]] = {"L": [], "N": [], "M": [], "other": []}
    for character in map(chr, range(0x110000)):
        old, new = unicodedata.ucd_3_2_0.category(character), unicodedata.category(character)
        if old[0] == new[0] and new not in ("Cn", "Cs"):
            kinds.get(new[0], kinds["other"]).append(character)
    return kinds


@pytest.fixture(scope="session")
def random_text():
    """random_text(seed, length) -> letters, numbers, marks, signs of every plane, white space, contractions."""
    kinds = _stable_characters()
    spaces = [" "] * 8 + list("\n\n\n\t\r\v\f\x1c\x1f\x85\xa0\u1680\u2000\u2009\u200b\u2028\u2029\u202f\u205f\u3000")
    snippets = [
        "'s",
        "'ll",
        "'ve",
        "'re",
        "'d",
        "'m",
        "'t",
        "'S",
        "' s",
        "\u2019s",
        "don't",
        "  ",
        "\r\n",
        "\0",
        "😀",
        "👩‍👩‍👧",
    ]

    def make(seed: int, length: int = 60) -> str:
        rng = random.Random(seed)
        pools = [list("abcdeXYZ"), list("0123456789"), spaces, snippets, *kinds.values()]
        return "".join(
            rng.choice(rng.choices(pools, (6, 2, 6, 2, 2, 1, 1, 1))[0]) for _ in range(rng.randint(0, length))
        )

    return make


@pytest.fixture(scope="session")
def token_data(tmp_path_factory) -> Path:
    """A folder with tok/ (a tokenizer of 320 tokens) and train.bin, valid.bin: 600 and 60 sentences from a grammar."""
    folder, rng = tmp_path_factory.mktemp("token-data"), random.Random(0)
    subjects, verbs = ("Tom", "The cat", "A little girl", "Her friend Lily"), ("saw", "liked", "found", "lost")
    objects, places = ("a red ball", "the big tree", "a shiny stone", "some cake"), ("park", "garden", "house")
    for name, sentences in (("train", 600), ("valid", 60)):
        stories = []
        for _ in range(sentences // 6):
            choices = ([rng.choice(kind) for kind in (subjects, verbs, objects, places)] for _ in range(6))
            stories.append("".join(f"{who} {did} {what} in the {where}. " for who, did, what, where in choices))
        (folder / f"{name}.txt").write_text(END_OF_TEXT.join(stories), encoding="utf-8", newline="")
    text = (folder / "train.txt").read_text(encoding="utf-8")
    counts = count_pretokens(text, [END_OF_TEXT])
    tokenizer = Tokenizer(*learn_merges(counts, 320, [END_OF_TEXT]), [END_OF_TEXT])
    tokenizer.save(folder / "tok")
    for name in ("train", "valid"):
        tokenizer.encode_files([folder / f"{name}.txt"], folder / f"{name}.bin", num_processes=1)
    return folder


@pytest.fixture(scope="session")
def saved_run(token_data, tmp_path_factory) -> Path:
    """A run with a Llama of 2 layers that nobody has trained; to be read, not changed."""
    from helpers.models import save_run  # imports torch, which tests of the tokenizer do without

    folder = tmp_path_factory.mktemp("saved") / "run"
    save_run(folder, token_data)
    return folder


@pytest.fixture(scope="session")
def lm():
    """lm(*arguments) runs the command in this process -> its exit code and what it wrote."""
    return run_lm


SHARED, FOLDER = pytest.StashKey[contextlib.ExitStack](), pytest.StashKey[Path]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs) -> None:
    """Starts two fork servers, which this process ends: one of commands, shared by xdist's workers, and one of these.

    A coverage of what is imported needs workers that import it; what has threads on macOS, or has asked for a GPU, is
    not to be forked.
    """
    stash = config.stash
    stash[SHARED] = contextlib.ExitStack()
    stash[FOLDER] = stash[SHARED].enter_context(fork_server_process())
    has_gpu = Path("/dev/nvidiactl").exists()
    if sys.platform == "linux" and not has_gpu and not config.getoption("cov_source", None):
        workers = stash[SHARED].enter_context(fork_server_process(WORKERS, *config.invocation_params.args))
        for spec in specs:
            if spec.popen and not spec.python:
                spec.python = shlex.join(["sh", str(workers / "python")])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["fork_server"] = str(node.config.stash[FOLDER])


def pytest_unconfigure(config) -> None:
    if SHARED in config.stash:
        config.stash[SHARED].close()


LONGEST = ("reliability/", "training/", "drills/", "test_readme", "accounting/", "contracts/", "commands/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts folders of long tests first, so that none is left to one worker at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


@pytest.fixture(scope="session")
def fork_server(request):
    """Runs commands in processes of their own, which start at once."""
    shared = getattr(request.config, "workerinput", {}).get("fork_server")
    with contextlib.nullcontext(shared) if shared else fork_server_process() as folder:
        yield ForkServer(Path(folder))


@pytest.fixture(scope="session")
def fit_arguments(token_data):
    """fit_arguments(folder, *more): `lm fit` with configs/debug.yaml, a tiny model and the token files above."""

    def arguments(folder: Path, *more: object) -> list[object]:
        settings = {
            "trainer.default_root_dir": folder,
            "trainer.enable_progress_bar": "false",
            "trainer.log_every_n_steps": 1,
            **TINY,
            "samples.max_new_tokens": 5,
            "data.train_path": token_data / "train.bin",
            "data.val_path": token_data / "valid.bin",
            "data.tokenizer": token_data / "tok",
        }
        flags = dict(str(setting).removeprefix("--").partition("=")[::2] for setting in more)
        if "trainer.max_steps" in flags:  # a run is at least as long as its warmup and the way to a validation
            steps = int(flags["trainer.max_steps"]) if flags["trainer.max_steps"].isdecimal() else 60
            settings |= {"trainer.val_check_interval": max(1, min(20, steps)), "model.warmup_steps": min(5, steps)}
        return ["fit", "-c", DEBUG, *(f"--{name}={value}" for name, value in settings.items()), *more]

    return arguments


@pytest.fixture(scope="session")
def whole_run(lm, fit_arguments, tmp_path_factory) -> Path:
    """A run of 14 steps, validated at 4, 8, 12 and 14, saved at 3, 4, 6, 8, 9, 12 and 14; to be read, not changed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    result = lm(*fit_arguments(run, *SETTINGS))
    assert (result.code, result.err) == (0, "")
    return run


@pytest.fixture(scope="session")
def stopped_run(lm, fit_arguments, tmp_path_factory) -> Path:
    """The same run, ended by SIGTERM after step 6; to be copied."""
    from helpers.faults import Moment, send

    from lm.training.module import LanguageModel

    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        Moment(LanguageModel, "training_step", 6, send(signal.SIGTERM)).arm(patch)
        assert lm(*fit_arguments(run, *SETTINGS)).code == 143
    return run
