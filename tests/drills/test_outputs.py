"""The output drill: every command that writes, pointed at each of its inputs under every name these have, at every
other file and folder, at links, devices, places where nothing can be made, and a full disk. Nothing is lost: the
command refuses in one line with exit code 2 and leaves no file behind, or what was there is there afterwards.

Which options name outputs is taken from the parsers, by their type; RECIPES only knows how each command is called.
"""

import contextlib
import io
import os
import resource
import shutil
import stat
import subprocess
from argparse import Action
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.models import save_run
from helpers.shards import scatter
from torch.utils.tensorboard import SummaryWriter

import tokenization.__main__
from lm.__main__ import COMMANDS
from lm.commands.export import FORMATS
from tokenization import Tokenizer
from tokenization.commands import ArgumentParser, output_name, output_path

WORKS = {  # for each option that names an output, a call that works
    "tokenization train --output": ["train text.txt texts --vocab-size 270 --processes 1 --output"],
    "tokenization train --work": ["train text.txt texts --vocab-size 270 --processes 1 --output new --work"],
    "tokenization encode --output": ["encode text.txt texts --tokenizer tok --processes 1 --output"],
    "tokenization adopt --output": ["adopt train.bin --tokenizer tok --output"],
    "tokenization import --output": ["import theirs.json --output", "import ours.tiktoken --pattern gpt2 --output"],
    "tokenization export --output": ["export tok --output"],
    "tokenization check --json": ["check text.txt texts --json"],
    "tokenization compare --plot": ["compare tok --text text.txt --curve --plot"],
    "lm export --output": [f"export run --format {kind} --output" for kind in FORMATS],
    "lm import --output": ["import hf --output"],
    "lm report --output": ["report run --output"],
    "lm report --plot": ["report run --output new.html --plot"],
    "lm account --plot": ["account -c config.yaml --plot"],
    "lm sweep --output": ["sweep -c config.yaml --param model.learning_rate --values 0.001 0.01 --output"],
    "lm race --output": ["race config.yaml --seeds 1 --steps 2 --output"],
    "lm find-lr --output": ["find-lr -c config.yaml --steps 20 --output"],
    "lm init folder": ["init"],
    "lm consolidate --output": ["consolidate sharded --output"],
}
IN_PLACE = {"tokenization index folder"}  # completes what it reads; tests/tokenization/tokens/test_token_set.py refuses
COSTLY = ("lm sweep", "lm race", "lm find-lr", "lm init")  # read a whole configuration, train, or write megabytes
REPLACED = {"lm report --output": "page.html"}
REPLACED |= dict.fromkeys(("lm report --plot", "lm account --plot", "tokenization compare --plot"), "plot.png")


# --- what there is ---------------------------------------------------------------------------------------------------


def parsers() -> Iterator[tuple[str, ArgumentParser]]:
    """ "lm export" and its parser, for each command of both programs but Lightning's own."""
    for name, file in tokenization.__main__.COMMANDS.items():
        yield f"tokenization {name}", import_module(f"tokenization.commands.{file}").make_parser()
    for name, file in COMMANDS.items():
        if name not in ("fit", "validate"):  # whose output is a setting
            yield f"lm {name}", import_module(f"lm.commands.{file}").make_parser()


def outputs() -> dict[str, Action]:
    return {
        f"{name} {(action.option_strings or [action.dest])[-1]}": action
        for name, parser in parsers()
        for action in parser._actions
        if action.type in (output_path, output_name)
    }


def test_every_output_is_known_for_one_and_has_a_call_that_works():
    assert outputs().keys() - IN_PLACE == WORKS.keys()
    named = {
        f"{name} {action.option_strings[-1]}"
        for name, parser in parsers()
        for action in parser._actions
        if action.dest in ("out", "output", "plot", "save", "save_to") or "to write" in (action.help or "")
    }
    assert named - WORKS.keys() == set()


# --- the place -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(lm, token_data, tmp_path_factory) -> Path:
    """A folder with inputs for every command, and a file of every kind that there is."""
    folder = tmp_path_factory.mktemp("pristine")
    (folder / "texts").mkdir()
    for name in ("text.txt", "texts/a.txt", "texts/b.txt"):
        (folder / name).write_text((token_data / "valid.txt").read_text()[:2000])
    tokenizer = Tokenizer.load(token_data / "tok")
    tokenizer.save(folder / "tok")
    for name in ("train", "valid"):
        tokenizer.encode_files([token_data / f"{name}.txt"], folder / f"{name}.bin", num_processes=1)
    save_run(folder / "run", token_data, d_model=16, num_layers=1)
    scatter(folder / "run/best.ckpt", 2, folder / "sharded", "best.ckpt")
    tokenizer.save(folder / "sharded/tokenizer")
    with SummaryWriter(str(folder / "run")) as events:
        events.add_scalar("train/loss", 1.0, 1)
    (folder / "notes.md").write_text("notes")
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n a photo")
    (folder / "table.csv").write_text("a,b\n1,2\n")
    (folder / "site.html").write_text("<!doctype html>\n<html></html>")
    (folder / "empty").touch()
    (folder / "cellar").mkdir()
    config = yaml.safe_load((ROOT / "configs/debug.yaml").read_text())
    config["trainer"] |= {"default_root_dir": "other", "max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1}
    config["trainer"] |= {"enable_progress_bar": False, "limit_val_batches": 1}
    config["model"] |= {"vocab_size": 320, "context_length": 16, "d_model": 16, "num_heads": 2, "warmup_steps": 1}
    config["data"] |= {"train_path": "train.bin", "val_path": "valid.bin", "tokenizer": "tok"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with contextlib.chdir(folder):
        for made in ("export tok --output theirs.json", "export tok --output ours.tiktoken"):
            assert tokenization.__main__.main(made.split()) == 0
        for made in ("export run --output hf", "report run --output page.html --plot plot.png"):
            assert lm(*made.split()).code == 0
    return folder


@pytest.fixture
def place(pristine, tmp_path, monkeypatch) -> Path:
    shutil.copytree(pristine, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def snapshot(folder: Path) -> dict[str, object]:
    """Everything in it, and where links lead."""
    found: dict[str, object] = {}
    before = len(os.path.join(folder, ""))
    for place, folders, files in os.walk(folder):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            mode = os.lstat(path).st_mode
            content = Path(path).read_bytes() if stat.S_ISREG(mode) else None
            found[path[before:]] = os.readlink(path) if stat.S_ISLNK(mode) else (mode, content)
    return found


# --- the targets -----------------------------------------------------------------------------------------------------


def existing() -> list[str]:
    """Every file and folder."""
    return sorted(str(path) for path in Path().rglob("*"))


def inputs(call: str) -> list[str]:
    """The arguments that exist, and all that is in those which are folders."""
    named = [Path(word) for word in call.split() if Path(word).exists()]
    if Path("config.yaml") in named:
        named += map(Path, ("train.bin", "train.bin.json", "valid.bin", "valid.bin.json", "tok"))
    return [str(path) for name in named for path in (name, *sorted(name.rglob("*")))]


def other_names(path: str) -> dict[str, Callable[[], object]]:
    """The same file or folder by other names; how to make those that do not exist yet."""
    names: dict[str, Callable[[], object]] = {
        f"texts/../{path}": lambda: None,
        str(Path(path).absolute()): lambda: None,
        f"around/{path}": lambda: Path("around").symlink_to("."),
        "soft": lambda: Path("soft").symlink_to(path),
    }
    return names if Path(path).is_dir() else names | {"hard": lambda: os.link(path, "hard")}


ODD: dict[str, Callable[[], object]] = {
    "": lambda: None,
    "dangling": lambda: Path("dangling").symlink_to("nowhere"),
    "loop": lambda: Path("loop").symlink_to("loop"),
    "linked": lambda: Path("linked").symlink_to("cellar"),
    "linked/new/deeper": lambda: Path("linked").symlink_to("text.txt"),
    "text.txt/new": lambda: None,
    "text.txt/new/deeper": lambda: None,
    "pipe": lambda: os.mkfifo("pipe"),
    "/dev/null": lambda: None,
    "/dev/full": lambda: None,
    "/proc/new": lambda: None,
    "/proc/new/deeper": lambda: None,
    "/sys/new": lambda: None,
    "/dev/null/new": lambda: None,
    "n" * 300: lambda: None,
}


# --- the trials ------------------------------------------------------------------------------------------------------


@dataclass
class Trials:
    """Calls, each with one output, and what must hold of every one."""

    lm: Callable
    pristine: Path
    place: Path
    before: dict[str, object]
    count: int = 0
    refused: int = 0

    def call(self, program: str, arguments: list[str]) -> tuple[int, str]:
        if program == "lm":
            result = self.lm(*arguments)
            return result.code, result.err
        error = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            return tokenization.__main__.main(arguments), error.getvalue()

    def __call__(self, option: str, call: str, output: str, make: Callable = lambda: None, must_fail=True) -> None:
        make()
        before = snapshot(self.place)
        program = option.split()[0]
        code, err = self.call(program, [*call.split(), output])
        self.count, after, what = self.count + 1, snapshot(self.place), (option, call, output, code, err)
        lost = [name for name in before if after.get(name) != before[name]]
        assert not lost, (*what, lost)
        if must_fail or code:
            assert code == 2, what
            assert err.startswith(f"{program} {call.split()[0]}: "), what
            assert err.count("\n") == 1, what
            assert not any(word in err for word in ("Traceback", "[Errno", "None", ".tmp")), what
            assert after == before, (*what, after.keys() - before.keys())
            self.refused += 1
        if after != self.before:
            self.clear()

    def clear(self) -> None:
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.pristine, ".", dirs_exist_ok=True)


@pytest.fixture
def trial(lm, pristine, place) -> Trials:
    return Trials(lm, pristine, place, snapshot(place))


@pytest.fixture
def figure() -> Callable[[str], None]:
    """A line for docs/reliability.md, shown by `pytest -rP`."""
    return print


def calls(costly: bool) -> Iterator[tuple[str, str]]:
    for option, works in WORKS.items():
        if option.startswith(COSTLY) == costly:
            yield from ((option, call) for call in works)


def is_folder_output(option: str) -> bool:
    """Whose output may be a folder that exists, if nothing in it is replaced."""
    return (
        option in ("tokenization train --output", "tokenization import --output", "lm init folder")
        or "--work" in option
        or "lr" in option
        or "sweep" in option
    )


SIZES = pytest.mark.parametrize(
    ("costly", "stride"), [(False, 5), *(pytest.param(costly, 1, marks=pytest.mark.slow) for costly in (False, True))]
)


def some(paths: list[str], costly: bool, stride: int) -> list[str]:
    """Every stride-th; of the folders one is enough for a command that would train for each."""
    return [path for path in paths[::stride] if not (costly and Path(path).is_dir() and path != "cellar")]


@SIZES
def test_inputs_under_every_name(trial, figure, costly, stride):
    for option, call in calls(costly):
        for path in some(inputs(call), costly, stride):
            folder = Path(path).is_dir()
            trial(option, call, path, must_fail=not (folder and is_folder_output(option)))
            for name, make in other_names(path).items():
                trial(option, call, name, make, must_fail=not (folder and is_folder_output(option)))
    figure(f"{trial.count} outputs that are inputs: {trial.refused} refused, nothing lost")
    assert trial.refused > 50


@SIZES
def test_every_other_file_and_folder_that_there_is(trial, figure, costly, stride):
    for option, call in calls(costly):
        for path in some(existing(), costly, stride):
            if path == REPLACED.get(option):
                continue
            trial(option, call, path, must_fail=not (Path(path).is_dir() and is_folder_output(option)))
            if "encode" in option or "export tok" in call:  # which takes it for leave to replace its own kind
                own = {
                    "encode": ("train.bin", "valid.bin"),
                    "export": ("theirs.json", "hf/tokenizer.json", "ours.tiktoken"),
                }
                if path not in own[call.split()[0]]:
                    trial(option, call.replace("--output", "--overwrite --output"), path)
    figure(f"{trial.count} outputs that exist: {trial.refused} refused, nothing lost")


@pytest.mark.parametrize("costly", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_links_devices_and_places_where_nothing_can_be_made(trial, figure, costly):
    for option, call in calls(costly):
        for output, make in ODD.items():
            trial(option, call, output, make, must_fail=not (output == "linked" and is_folder_output(option)))
    figure(f"{trial.count} links, devices and impossible places: {trial.refused} refused, nothing lost")


@pytest.mark.parametrize(
    ("option", "output"),
    [
        ("lm sweep --output", "text.txt"),
        ("lm sweep --output", "dangling"),
        ("lm find-lr --output", "text.txt/new"),
        ("lm find-lr --output", ""),
        ("lm init folder", "text.txt"),
        ("lm init folder", "text.txt/new"),
        ("lm init folder", "dangling"),
        ("lm init folder", ""),
        ("lm account --plot", "photo.png"),
        ("lm account --plot", "config.yaml"),
    ],
)
def test_some_of_the_costly_ones(trial, option, output):
    trial(option, WORKS[option][0], output, ODD.get(output, lambda: None))


def test_lm_fit_and_its_folder(trial):
    for output in ("text.txt", "text.txt/new", "dangling", "/proc/new"):
        call = "fit -c config.yaml --trainer.max_steps 2 --trainer.default_root_dir"
        trial("lm fit", call, output, ODD.get(output, lambda: None))


# --- a full disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_beyond(num_bytes: int) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("room", [700, *(pytest.param(room, marks=pytest.mark.slow) for room in (0, 20))])
def test_no_room(trial, figure, room):
    """Without a disk that is full: files may grow to this size, and then a write fails as it does there."""
    for option, call in calls(costly=False):
        with no_file_beyond(room):
            trial(option, call, "new")
    figure(f"{trial.count} outputs without room: {trial.refused} refused, nothing lost")


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    path.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", path], capture_output=True
    ).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("costly", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_disk_that_is_full(trial, figure, tmp_path, costly):
    """A disk of 4 kB, which is full; where none may be mounted, files of no bytes: what is refused is the same."""
    with small_disk(tmp_path / "disk") as mounted:
        if mounted:
            (tmp_path / "disk" / "full").write_bytes(bytes(4096))
        for option, call in calls(costly):
            with contextlib.nullcontext() if mounted else no_file_beyond(0):
                trial(option, call, str(tmp_path / "disk" / "new"))
        assert [path.name for path in (tmp_path / "disk").iterdir()] in ([], ["full"])
    figure(f"{trial.count} outputs on a full disk ({'tmpfs' if mounted else 'limit of size'}): {trial.refused} refused")


@pytest.mark.parametrize("option", ["lm report --output", "lm report --plot", "lm account --plot"])
def test_what_is_ours_is_replaced_and_nothing_else(lm, place, option):
    (call,) = WORKS[option]
    before = snapshot(place)
    output = REPLACED[option]
    Path(output).write_bytes(Path(output).read_bytes() + b"<!-- changed -->")
    assert lm(*call.split(), output).code == 0
    after = snapshot(place)
    assert b"<!-- changed -->" not in Path(output).read_bytes()
    assert {name for name in before if after[name] != before[name]} <= {output}
