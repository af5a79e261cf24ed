"""Proves that the windows of a mixture are those that its definition gives, in the shares of the weights; that one
source alone is no mixture; that a run resumes with the same windows, and logs what it has drawn; and that wrong sources
are refused in one line."""

import shutil
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.events import read_events
from helpers.runs import same

from lm.data.datamodule import TokenDataModule
from lm.data.mixture import Mixture, Source, read_sources
from lm.data.windows import MixedWindows, random_starts
from lm.runs.checkpoint import load_checkpoint
from tokenization import InputError, TokenFile, Tokenizer
from tokenization.tokens.token_file import TokenFileWriter
from tokenization.tokens.token_index import write_index

SIZES = {"a": 300, "b": 40, "c": 1000}


def write(path: Path, token_ids: np.ndarray, tokenizer_sha256: str = "") -> TokenFile:
    with TokenFileWriter(path, 320, tokenizer_sha256) as writer:
        writer.write(token_ids)
        writer.num_bytes = len(token_ids)
    return TokenFile.open(path)


@pytest.fixture
def files(tmp_path) -> dict[str, TokenFile]:
    """a.bin, b.bin and c.bin, by their letters."""
    rng = np.random.default_rng(0)
    return {name: write(tmp_path / f"{name}.bin", rng.integers(0, 320, size)) for name, size in SIZES.items()}


def mixture(files: dict[str, TokenFile], **weights: float) -> Mixture:
    return Mixture([Source(f"{name}.bin", weight) for name, weight in weights.items()], [files[n] for n in weights])


# --- what a setting means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("a.bin", {"a.bin": 1.0}),
        ("a.bin:0.7,b.tokens:0.3", {"a.bin": 0.7, "b.tokens": 0.3}),
        (" a.bin:7 , b.tokens/:3e0 ", {"a.bin": 7.0, "b.tokens/": 3.0}),
        ("a.bin:2", {"a.bin": 2.0}),
        (r"C:\data\x.bin", {r"C:\data\x.bin": 1.0}),
        (r"C:\x.bin:0.5,D:/y.bin:1", {r"C:\x.bin": 0.5, "D:/y.bin": 1.0}),
        ("data/a,b.bin", {"data/a,b.bin": 1.0}),
        ("run:b.bin", {"run:b.bin": 1.0}),
        ("a:1:2,b:0x:4", {"a:1": 2.0, "b:0x": 4.0}),
        ([{"path": "a,b:3.bin", "weight": 2}, {"path": r"C:\x", "weight": 0.5}], {"a,b:3.bin": 2.0, r"C:\x": 0.5}),
        ([{"path": "a.bin", "weight": 1}], {"a.bin": 1.0}),
    ],
)
def test_a_setting_names_sources(setting, expected):
    assert {source.path: source.weight for source in read_sources(setting)} == expected


def test_a_file_of_that_name_is_one_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.bin:1,b:2").touch()
    assert read_sources("a.bin:1,b:2") == [Source("a.bin:1,b:2", 1.0)]


def test_files_without_weights_are_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_sources("a.bin,b.bin") == [Source("a.bin,b.bin", 1.0)]
    for name in ("a.bin", "b.bin"):
        Path(name).touch()
    with pytest.raises(InputError, match=r"data\.train_path: 'a\.bin' has no weight"):
        read_sources("a.bin,b.bin")
    Path("a.bin,b.bin").touch()
    assert read_sources("a.bin,b.bin") == [Source("a.bin,b.bin", 1.0)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("a.bin:0,b.bin:1", "the weight of a.bin is 0; it must be a finite number above 0"),
        ("a.bin:-1,b.bin:1", "the weight of a.bin is -1; it must be"),
        ("a.bin:nan,b.bin:1", "the weight of a.bin is nan; it must be"),
        ("a.bin:1,b.bin:inf", "the weight of b.bin is inf; it must be"),
        ("a.bin:1e999,b.bin:1", "the weight of a.bin is inf; it must be"),
        ("a.bin:nan", "the weight of a.bin is nan; it must be"),
        ("a.bin:1,b.bin", "'b.bin' has no weight; write PATH:WEIGHT"),
        ("a.bin:1,b.bin:much", "'b.bin:much' has no weight"),
        ("a.bin:1,b.bin:1_0", "'b.bin:1_0' has no weight"),
        ("a.bin:1,b.bin:٢", "'b.bin:٢' has no weight"),
        ("a.bin:1,,b.bin:1", "'' has no weight"),
        ("a.bin:1,", "'' has no weight"),
        (r"C:\x.bin,D:\y.bin:1", r"'C:\\x.bin' has no weight"),
        ("a.bin:1,:2", "the source of weight 2 has no path"),
        (",".join(f"{n}.bin:1" for n in range(101)), "has 101 sources; name 1 to 100"),
        ([], "has 0 sources"),
        ([{"path": "a.bin"}], "{'path': 'a.bin'} is not a source; write {path: stories.bin, weight: 0.7}"),
        ([{"path": "a.bin", "weight": 1, "seed": 2}], "is not a source"),
        ([{"path": 3, "weight": 1}], "is not a source"),
        ([7], "7 is not a source"),
        ([{"path": "a.bin", "weight": "0.7"}], "the weight of a.bin is '0.7'; it must be a number"),
        ([{"path": "a.bin", "weight": True}], "the weight of a.bin is True"),
        ([{"path": "a.bin", "weight": float("nan")}], "the weight of a.bin is nan"),
        ([{"path": " ", "weight": 1}], "has no path"),
    ],
)
def test_wrong_sources_are_refused(setting, message):
    with pytest.raises(InputError) as error:
        read_sources(setting)
    assert str(error.value).startswith("data.train_path: ")
    assert message in str(error.value)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_every_window_is_the_one_that_the_definition_gives(files):
    """By whole numbers, and slices of what NumPy reads from the files."""
    weights = {"a": 0.2, "b": 0.1, "c": 0.4}
    mixed = mixture(files, **weights)
    order = sorted(weights, key=lambda name: files[name].description.data_sha256)
    total = sum(map(Fraction, ("0.2", "0.1", "0.4")))
    edges, below = [], Fraction(0)
    for name in order:
        below += Fraction(str(weights[name])) / total
        edges.append(int(below * 2**64))
    arrays = {name: np.fromfile(files[name].path, "<u2").tolist() for name in order}
    windows, used = MixedWindows(mixed, 7, 5, seed=3, num_batches=40, first_batch=9), set()
    for index in range(40):
        words = [int(w) for w in np.random.SeedSequence((3, 9 + index)).generate_state(10, np.uint64)]
        inputs, targets = windows[index]
        assert inputs.dtype == targets.dtype == torch.int64
        for row in range(5):
            name = next(name for name, edge in zip(order, edges, strict=True) if words[5 + row] < edge)
            start = words[row] % (SIZES[name] - 7)
            used.add(name)
            assert inputs[row].tolist() == arrays[name][start : start + 7]
            assert targets[row].tolist() == arrays[name][start + 1 : start + 8]
    assert used == set(weights)


def test_the_draws_are_the_same_for_ever(files):
    """Frozen: were they to change, no run could be repeated. The places' words are those of a single source."""
    mixed = mixture(files, a=1, b=1)
    sources, words = mixed.draw(1337, 123_456_789, 8)
    assert (words % np.uint64(10**12)).tolist()[:4] == random_starts(1337, 123_456_789, 4, 10**12).tolist()
    assert sources.tolist() == [0, 0, 0, 0, 1, 0, 1, 0]


def test_the_shares_are_those_of_the_weights(files):
    weights = {"a": 0.2, "b": 0.1, "c": 0.4}
    mixed = mixture(files, **weights)
    found = dict(zip(mixed.names, mixed.count(0, range(400), 50).tolist(), strict=True))
    expected = {f"{name}.bin": 20_000 * weight / 0.7 for name, weight in weights.items()}
    assert sum(found.values()) == 20_000
    assert sum((found[name] - expected[name]) ** 2 / expected[name] for name in found) < 13.8  # once in 1,000


def test_neither_order_nor_scale_matters(files):
    ones = [mixture(files, a=0.7, b=0.3), mixture(files, b=0.3, a=0.7), mixture(files, a=7, b=3)]
    assert len({one.digest for one in ones}) == 1
    for index in range(20):
        drawn = [MixedWindows(one, 7, 4, 0, 20)[index] for one in ones]
        assert all(same(batch, drawn[0]) for batch in drawn)
    assert mixture(files, a=0.6, b=0.4).digest != ones[0].digest


@pytest.mark.parametrize("weight", [1e-300, 1e-19, 1e300])
def test_weights_of_any_size(files, weight):
    mixed = mixture(files, a=1, b=weight)
    counts = dict(zip(mixed.names, mixed.count(0, range(9), 50).tolist(), strict=True))
    assert counts == {"a.bin": 450 * (weight < 1), "b.bin": 450 * (weight > 1)}


def test_a_set_is_a_source_as_one_file_is(files, tmp_path):
    for number, part in enumerate(np.split(files["a"].tokens, [1, 90, 91])):
        write(tmp_path / "a.tokens" / f"{number}.bin", part)
    write_index(tmp_path / "a.tokens")
    many = mixture(files | {"a": TokenFile.open(tmp_path / "a.tokens")}, a=0.5, c=0.5)
    for index in range(20):
        assert same(
            MixedWindows(many, 50, 4, 0, 20)[index], MixedWindows(mixture(files, a=0.5, c=0.5), 50, 4, 0, 20)[index]
        )


def test_the_same_tokens_twice_are_refused(files, tmp_path):
    shutil.copy(files["a"].path, tmp_path / "copy.bin")
    shutil.copy(f"{files['a'].path}.json", tmp_path / "copy.bin.json")
    with pytest.raises(InputError, match=r"data\.train_path: .*\.bin and .*\.bin hold the same tokens; name them once"):
        mixture(files | {"copy": TokenFile.open(tmp_path / "copy.bin")}, a=1, b=1, copy=1)


def test_sources_of_one_name_are_told_apart(files):
    sources = [Source(f"{name}/x.bin", 1) for name in "ab"]
    assert sorted(Mixture(sources, [files["a"], files["b"]]).names) == ["a/x.bin", "b/x.bin"]


# --- the data module -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(token_data, tmp_path_factory) -> Path:
    """tok/, train.bin, valid.bin, and other.bin: a second source."""
    folder = Path(shutil.copytree(token_data, tmp_path_factory.mktemp("mixture") / "data"))
    tokenizer = Tokenizer.load(folder / "tok")
    (folder / "other.txt").write_text("Lily found the cat in the park. " * 200)
    tokenizer.encode_files([folder / "other.txt"], folder / "other.bin", num_processes=1)
    return folder


def module(data: Path, train_path, **changes) -> TokenDataModule:
    settings = {"val_path": str(data / "valid.bin"), "tokenizer": str(data / "tok"), "context_length": 16}
    made = TokenDataModule(train_path, **settings | {"vocab_size": 320, "batch_size": 4} | changes)
    made.setup("fit")
    trainer = {"accumulate_grad_batches": 1, "world_size": 1, "global_rank": 0, "max_steps": 10, "global_step": 0}
    trainer |= {"local_rank": 0, "strategy": SimpleNamespace(root_device=torch.device("cpu"))}
    made.trainer = SimpleNamespace(**trainer)  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("form", ["{}:0.3", "list"])
def test_one_source_alone_is_no_mixture(data, form):
    path = str(data / "train.bin")
    one = module(data, path)
    alone = module(data, [{"path": path, "weight": 0.3}] if form == "list" else form.format(path))
    assert same(list(one.train_dataloader()), list(alone.train_dataloader()))
    assert one.state_dict() == alone.state_dict()
    assert alone.source_figures() == {}


@pytest.mark.parametrize(
    ("train_path", "message"),
    [
        ("{data}/train.bin:1,{data}/none.bin:1", r"none\.bin: no such token file"),
        ("{data}/train.bin:1,{data}/train.bin:2", "hold the same tokens"),
        ("{data}/train.bin:1,{data}/foreign.bin:1", r"foreign\.bin: was encoded by another tokenizer, not"),
        ("{data}/train.bin:1,{data}/adopted.bin:1", r"adopted\.bin: was adopted without a tokenizer"),
        ("{data}/train.bin:1,{data}/short.bin:1", r"short\.bin: holds 5 tokens, too few for a context_length of 16"),
    ],
)
def test_sources_that_do_not_fit_are_refused(data, train_path, message):
    digest = Tokenizer.load(data / "tok").digest
    for name, size, tokenizer in (("foreign", 50, "x"), ("adopted", 50, ""), ("short", 5, digest)):
        write(data / f"{name}.bin", np.arange(size), tokenizer)
    with pytest.raises(InputError, match=message) as error:
        module(data, train_path.format(data=data))
    assert "\n" not in str(error.value)


def test_the_baselines_count_the_beginning_of_each_source_by_its_share(data):
    made = module(data, f"{data}/train.bin:3,{data}/other.bin:1")
    arrays = {name: np.fromfile(data / name, "<u2") for name in ("train.bin", "other.bin")}
    parts = {"train.bin": arrays["train.bin"][:75], "other.bin": arrays["other.bin"][:25]}
    assert made.first_train_tokens(100).tolist() == [token for name in made.mixture.names for token in parts[name]]
    assert made.num_train_tokens == sum(map(len, arrays.values()))
    made.trainer.world_size = 2
    assert made.passes_after(10) == 10 * 2 * 4 * 16 / made.num_train_tokens


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_was_drawn_is_counted_across_resumes(data, accumulate):
    setting = f"{data}/train.bin:0.7,{data}/other.bin:0.3"
    made = module(data, setting)
    made.trainer.accumulate_grad_batches = accumulate
    drawn = made.mixture.count(0, range(9 * accumulate), 4)
    sizes = [len(file) for file in made.mixture.files]
    made.train_dataloader()
    for step in (2, 3, 7):
        made.trainer.global_step = step
        made.source_figures()
    resumed = module(data, setting)
    resumed.trainer.accumulate_grad_batches, resumed.trainer.global_step = accumulate, 7
    resumed.load_state_dict(made.state_dict())
    resumed.train_dataloader()
    resumed.trainer.global_step = 9
    expected = {
        name: (count / drawn.sum(), count * 16 / size)
        for name, count, size in zip(made.mixture.names, drawn.tolist(), sizes, strict=True)
    }
    assert resumed.source_figures() == expected
    assert drawn.sum() == 9 * accumulate * 4


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(data) -> list[dict]:
    return [{"path": str(data / "train.bin"), "weight": 0.75}, {"path": str(data / "other.bin"), "weight": 0.25}]


def arguments(fit_arguments, folder: Path, sources, *more) -> list[object]:
    """`lm fit`, with the sources in a configuration, and what else is given."""
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({"data": {"train_path": sources}}))
    words = [word for word in fit_arguments(folder, *more) if not str(word).startswith("--data.train_path")]
    return [*words, "-c", config]


@pytest.fixture(scope="module")
def mixed_run(lm, fit_arguments, sources, tmp_path_factory) -> Path:
    """A run of 6 steps of a mixture, validated at 3 and 6."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    result = lm(*arguments(fit_arguments, run, sources, "--trainer.max_steps=6", "--trainer.val_check_interval=3"))
    assert (result.code, result.err) == (0, "")
    (run / "out").write_text(result.out)
    return run


def test_a_run_says_what_it_draws(mixed_run, data, sources):
    out = (mixed_run / "out").read_text()
    assert "bits per byte by counting alone: unigram" in out
    mixed = module(data, sources).mixture
    for share, path in (("75.0%", "train.bin"), ("25.0%", "other.bin")):
        tokens = len(TokenFile.open(data / path))
        assert f"training on {path}: {share} of the windows; {tokens:,} tokens" in out
    batch_size = yaml.safe_load((mixed_run / "config.yaml").read_text())["data"]["batch_size"]
    for step in (3, 6):
        counts = mixed.count(0, range(step), batch_size)
        words = [
            f"{name} {count / counts.sum():.1%}, {count * 16 / len(file):.3g} passes"
            for name, file, count in zip(mixed.names, mixed.files, counts.tolist(), strict=True)
        ]
        assert f"step {step}: drawn from {'; '.join(words)}\n" in out
    curves, _ = read_events(mixed_run)
    for number, name in enumerate(mixed.names):
        shares = [mixed.count(0, range(step), batch_size) for step in range(1, 7)]
        expected = [count[number] / count.sum() for count in shares]
        assert [value for _, value in curves[f"data/share/{name}"]] == pytest.approx(expected)
        assert [step for step, _ in curves[f"data/passes/{name}"]] == [1, 2, 3, 4, 5, 6]


def test_a_run_resumes_exactly(mixed_run, lm, fit_arguments, sources, tmp_path):
    short, run = ("--trainer.max_steps=6", "--trainer.val_check_interval=3"), tmp_path / "run"
    first = [*arguments(fit_arguments, run, sources, *short), "--checkpoints.keep_every_n_steps=2"]
    assert lm(*first).code == 0
    (run / "last.ckpt").unlink()
    (run / "best.ckpt").unlink()
    result = lm("fit", "-c", run / "config.yaml", f"--ckpt_path={run / 'step-2.ckpt'}")
    assert (result.code, result.err) == (0, "")
    assert "from here on" not in result.out
    ends = [load_checkpoint(folder / "last.ckpt") for folder in (run, mixed_run)]
    assert all(same(ends[0][key], ends[1][key]) for key in ("state_dict", "optimizer_states", "TokenDataModule"))


@pytest.mark.parametrize(
    ("train_path", "code", "message"),
    [
        ("{data}/train.bin:0.5,{data}/other.bin:0.5", 0, "  from here on  share of {data}/other.bin: 0.25 -> 0.5"),
        ("{data}/other.bin:1,{data}/train.bin:3", 0, "  from here on  data.train_path: "),
        ("{data}/train.bin", 2, "train.bin: is not the data that the checkpoint was trained with"),
        ("{data}/train.bin:1,{data}/valid.bin:1", 2, "valid.bin: is not the data that the checkpoint was trained with"),
        ("{data}/train.bin:0.5,{data}/other.bin:0", 2, "the weight of {data}/other.bin is 0"),
    ],
)
def test_another_mixture_is_announced_or_refused(mixed_run, lm, data, tmp_path, train_path, code, message):
    run = Path(shutil.copytree(mixed_run, tmp_path / "run"))
    more = ["--trainer.max_steps=8", f"--data.train_path={train_path.format(data=data)}"]
    more += [f"--trainer.default_root_dir={run}", f"--ckpt_path={run / 'last.ckpt'}"]
    before = (run / "last.ckpt").read_bytes()
    result = lm("fit", "-c", run / "config.yaml", *more)
    assert result.code == code
    assert message.format(data=data) in (result.err if code else result.out)
    if code:
        assert len(result.err.splitlines()) == 1
        assert (run / "last.ckpt").read_bytes() == before
        if "is not the data" in message:
            allowed = lm("fit", "-c", run / "config.yaml", *more, "--allow_changed_data=true")
            assert allowed.code == 0
            assert "  from here on  " in allowed.out
            assert ": digest " in allowed.out
    else:
        assert ("share of" in result.out) is ("share of" in message)
