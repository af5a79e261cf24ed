"""Proves that a training batch follows from (seed, index) alone, for ever, and every window can be drawn; that
validation reads each token once; and that data which does not fit the model or its tokenizer is refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from lm.data.datamodule import TokenDataModule
from lm.data.loaders import InOrder
from lm.data.windows import RandomWindows, SequentialWindows, random_starts
from tokenization import InputError, TokenFile, Tokenizer
from tokenization.tokens.token_file import TokenFileWriter
from tokenization.tokens.token_index import write_index

TOKENS = (np.arange(100, dtype=np.uint16) * 7 + 3) % 101  # every token differs from its neighbours


def random_windows(**changes) -> RandomWindows:
    return RandomWindows(
        **{"tokens": TOKENS, "context_length": 8, "batch_size": 4, "seed": 1, "num_batches": 10} | changes
    )


def assert_same(batch, other) -> None:
    assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_a_batch_is_windows_and_the_same_shifted_by_one():
    dataset = random_windows()
    assert len(dataset) == 10
    starts = random_starts(1, 3, 4, 92)
    inputs, targets = dataset[3]
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert inputs.tolist() == [TOKENS[start : start + 8].tolist() for start in starts]
    assert targets.tolist() == [TOKENS[start + 1 : start + 9].tolist() for start in starts]


def test_a_batch_is_a_function_of_seed_and_index():
    batches = [random_windows()[index] for index in range(10)]
    dataset = random_windows()
    for index in (7, 2, 9, 2, 0):  # in any order, as often as one likes, whatever else draws random numbers
        np.random.seed(index)
        torch.manual_seed(index)
        assert_same(dataset[index], batches[index])
        assert_same(random_windows(first_batch=index)[0], batches[index])
        assert_same(random_windows(num_batches=1000)[index], batches[index])
    assert len({inputs.numpy().tobytes() for inputs, _ in batches}) == 10
    assert not torch.equal(random_windows(seed=2)[0][0], batches[0][0])
    assert not torch.equal(random_windows(seed=0)[1][0], random_windows(seed=1)[0][0])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 0, 4, 1000), [774, 177, 17, 916]),
        ((0, 1, 4, 1000), [556, 690, 209, 139]),
        ((1337, 123_456_789, 4, 10**12), [455_928_575_704, 488_922_740_919, 547_878_486_867, 381_637_892_244]),
    ],
)
def test_the_places_are_the_same_for_ever(arguments, expected):
    """Frozen: were they to change, no run could be repeated."""
    assert random_starts(*arguments).tolist() == expected


def test_every_start_can_be_drawn_equally_often():
    starts = np.concatenate([random_starts(5, index, 50, 92) for index in range(400)])
    counts = np.bincount(starts, minlength=92)
    assert len(counts) == 92
    chi_squared = ((counts - 20000 / 92) ** 2 / (20000 / 92)).sum()
    assert 50 < chi_squared < 145  # 91 degrees of freedom: outside once in 1,000


@pytest.mark.parametrize("length", [9, 10])
def test_the_shortest_texts(length):
    dataset = random_windows(tokens=TOKENS[:length], num_batches=50)
    drawn = {tuple(row) for index in range(50) for row in torch.cat(dataset[index], dim=1).tolist()}
    windows = (TOKENS[start : start + 9] for start in range(length - 8))
    assert drawn == {(*window[:-1].tolist(), *window[1:].tolist()) for window in windows}


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_ids_are_read_without_a_sign(dtype):
    tokens = np.full(20, 65_535, dtype)
    assert random_windows(tokens=tokens)[0][0].unique().tolist() == [65_535]
    assert SequentialWindows(tokens, 8, 2)[0][1].unique().tolist() == [65_535]


@pytest.mark.parametrize("length", [9, 17, 40, 41, 42, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_validation_reads_every_token_once(length, batch_size):
    dataset = SequentialWindows(TOKENS[:length], 8, batch_size)
    batches = [dataset[index] for index in range(len(dataset))]
    assert all(len(inputs) == batch_size for inputs, _ in batches[:-1])
    whole = (length - 1) // 8 * 8  # what is left is too short for a window
    assert torch.cat([inputs for inputs, _ in batches]).flatten().tolist() == TOKENS[:whole].tolist()
    assert torch.cat([targets for _, targets in batches]).flatten().tolist() == TOKENS[1 : whole + 1].tolist()


# --- the data module -------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(token_data) -> dict:
    return {
        "train_path": str(token_data / "train.bin"),
        "val_path": str(token_data / "valid.bin"),
        "tokenizer": str(token_data / "tok"),
        "context_length": 16,
        "vocab_size": 320,
        "batch_size": 4,
    }


def attach(data: TokenDataModule, **changes) -> TokenDataModule:
    trainer = {"accumulate_grad_batches": 1, "world_size": 1, "global_rank": 0, "max_steps": 10, "global_step": 0}
    trainer |= {"local_rank": 0, "limit_val_batches": 1.0, "strategy": SimpleNamespace(root_device=torch.device("cpu"))}
    data.trainer = SimpleNamespace(**trainer | changes)  # type: ignore[assignment]
    return data


def batches(data: TokenDataModule) -> list[bytes]:
    return [torch.cat(batch).numpy().tobytes() for batch in data.train_dataloader()]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_loader_goes_on_with_the_same_batches(settings, accumulate):
    data = TokenDataModule(**settings)
    data.setup("fit")
    whole = batches(attach(data, accumulate_grad_batches=accumulate))
    assert len(whole) == len(set(whole)) == 10 * accumulate
    resumed = batches(attach(data, accumulate_grad_batches=accumulate, global_step=4))
    assert resumed[: 6 * accumulate] == whole[4 * accumulate :]


def test_devices_share_the_batches_of_a_step(settings):
    data = TokenDataModule(**settings)
    data.setup("fit")
    whole = batches(attach(data, max_steps=20))
    ranks = [batches(attach(data, world_size=2, global_rank=rank)) for rank in range(2)]
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 14), (0.5, 7), (0.08, 1), (5, 5), (1, 1), (100, 14)])
@pytest.mark.parametrize("devices", [1, 2, 3, 5, 40])
def test_devices_share_the_windows_of_a_validation(settings, limit, expected, devices):
    """Each reads as many batches; without those beyond the number that counts, they are the file's first, once each."""
    data = TokenDataModule(**settings)
    data.setup("validate")
    windows = SequentialWindows(data.files["validate"].tokens, 16, 4)
    assert len(windows) == 14
    ranks = []
    for rank in range(devices):
        attach(data, world_size=devices, global_rank=rank, limit_val_batches=limit)
        for _ in range(2):  # Lightning may ask for it again
            loader = data.val_dataloader()
        assert len(loader) <= data.trainer.limit_val_batches  # or Lightning would cut it
        assert isinstance(data.trainer.limit_val_batches, int)
        assert data.num_val_batches == expected
        ranks.append(list(loader))
    assert {len(batches) for batches in ranks} == {-(-expected // devices)}
    read = [batch for turn in zip(*ranks, strict=True) for batch in turn][:expected]
    for number, batch in enumerate(read):
        assert_same(batch, windows[number])


def test_a_share_of_the_validation_that_is_no_batch_is_refused(settings):
    data = TokenDataModule(**settings)
    data.setup("validate")
    with pytest.raises(
        InputError, match=r"limit_val_batches 0.01 is less than one of 14 batches; 1 takes one, 1.0 all"
    ):
        attach(data, limit_val_batches=0.01).val_dataloader()


def test_validation_needs_no_training_file(settings):
    data = TokenDataModule(**settings | {"train_path": "nowhere.bin"})
    data.setup("validate")
    assert list(data.files) == ["validate"]
    loader = attach(data).val_dataloader()
    tokens = TokenFile.open(settings["val_path"]).tokens
    assert sum(inputs.numel() for inputs, _ in loader) == (len(tokens) - 1) // 16 * 16


def test_other_numbers_are_refused(settings):
    for wrong in ({"batch_size": 0}, {"num_workers": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
            TokenDataModule(**settings | wrong)


def test_files_that_do_not_fit_are_refused(settings, token_data, tmp_path, small):
    small.save(tmp_path / "other")
    small.encode_files([token_data / "valid.txt"], tmp_path / "other.bin", num_processes=1)
    tokenizer = Tokenizer.load(token_data / "tok")
    (tmp_path / "short.txt").write_text("Tom saw the cat. " * 4)
    short = len(tokenizer.encode_files([tmp_path / "short.txt"], tmp_path / "short.bin", num_processes=1))
    for name in ("odd", "changed", "cut"):
        for suffix in ("", ".json"):
            shutil.copy(token_data / f"train.bin{suffix}", tmp_path / f"{name}.bin{suffix}")
    content = (tmp_path / "odd.bin").read_bytes()
    (tmp_path / "odd.bin").write_bytes(content[:-1])
    (tmp_path / "cut.bin").write_bytes(content[:-2])
    (tmp_path / "changed.bin").write_bytes(content[:-2] + b"\0\0")
    cases = [
        (
            {"train_path": str(tmp_path / "none.bin")},
            r"none.bin: no such token file; make it with `tokenization encode",
        ),
        ({"train_path": str(tmp_path / "odd.bin")}, r"odd.bin: \d+ bytes are not a whole number of uint16 ids"),
        ({"train_path": str(tmp_path / "cut.bin")}, r"cut.bin: holds \d+ tokens, but cut.bin.json says"),
        ({"train_path": str(tmp_path / "changed.bin")}, r"changed.bin: has changed since it was made"),
        ({"val_path": str(tmp_path / "other.bin")}, r"other.bin: was encoded by another tokenizer, not .*tok; encode"),
        ({"tokenizer": str(tmp_path / "other")}, r"train.bin: was encoded by another tokenizer, not .*other; encode"),
        ({"tokenizer": str(tmp_path / "none")}, r"none: no such tokenizer folder; make it with"),
        (
            {"val_path": str(tmp_path / "short.bin"), "context_length": short},
            rf"short.bin: holds {short} tokens, too few",
        ),
        ({"vocab_size": 319}, r"tok: has 320 tokens, too many for model.vocab_size 319"),
    ]
    for wrong, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            TokenDataModule(**settings | wrong).setup("fit")
        assert "\n" not in str(caught.value)
    TokenDataModule(**settings | {"val_path": str(tmp_path / "short.bin"), "context_length": short - 1}).setup("fit")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_pinned(settings, device):
    data = attach(TokenDataModule(**settings), strategy=SimpleNamespace(root_device=torch.device(device)))
    data.setup("fit")
    assert data.train_dataloader().pin_memory is data.val_dataloader().pin_memory is (device == "cuda")


@pytest.mark.parametrize("devices", [1, 2, 3, 7])
def test_devices_take_turns_as_torchs_sampler_lets_them(devices):
    for batches in (1, 2, 5, 7, 20):
        for rank in range(devices):
            settings = {"num_replicas": devices, "rank": rank, "shuffle": False}
            ours, theirs = InOrder(range(batches), **settings), DistributedSampler(range(batches), **settings)
            assert list(ours) == list(theirs)
            assert len(ours) == len(theirs)


def test_a_run_of_any_length_takes_no_memory():
    assert next(iter(InOrder(range(1 << 60), num_replicas=2, rank=1, shuffle=False))) == 1


# --- token sets ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token_sets(token_data, tmp_path_factory) -> Path:
    """train.tokens and valid.tokens: the same tokens as in train.bin and valid.bin, in shards of uneven size."""
    folder = tmp_path_factory.mktemp("sets")
    for name, cuts in (("train", (1, 2, 40, 41, 1000, 3000)), ("valid", (17, 400))):
        file = TokenFile.open(token_data / f"{name}.bin")
        for number, part in enumerate(np.split(file.tokens, cuts)):
            about = file.description
            path = folder / f"{name}.tokens" / f"{number}.bin"
            with TokenFileWriter(path, about.vocab_size, about.tokenizer_sha256) as writer:
                writer.write(part)
                writer.num_bytes = len(part)
        write_index(folder / f"{name}.tokens")
    return folder


def test_a_set_gives_the_batches_of_one_file(settings, token_sets):
    one = TokenDataModule(**settings)
    many = TokenDataModule(
        **settings | {"train_path": f"{token_sets}/train.tokens/", "val_path": str(token_sets / "valid.tokens")}
    )
    for data in (one, many):
        data.setup("fit")
        attach(data, max_steps=300)
    assert batches(one) == batches(many)
    for batch, other in zip(one.val_dataloader(), many.val_dataloader(), strict=True):
        assert_same(batch, other)
    assert one.state_dict() == many.state_dict()


def test_the_windows_of_a_set_are_slices_of_all_its_tokens(token_data, token_sets):
    whole = np.concatenate([np.fromfile(path, "<u2") for path in sorted((token_sets / "train.tokens").glob("*.bin"))])
    assert whole.tobytes() == (token_data / "train.bin").read_bytes()
    tokens = TokenFile.open(token_sets / "train.tokens").tokens
    dataset = random_windows(tokens=tokens, context_length=900, num_batches=30)
    for index in range(30):
        inputs, targets = dataset[index]
        for row, start in enumerate(random_starts(1, index, 4, len(whole) - 900)):
            assert inputs[row].tolist() == whole[start : start + 900].tolist()
            assert targets[row].tolist() == whole[start + 1 : start + 901].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_ends_a_run_where_it_is_first_read(settings, token_sets, tmp_path, workers):
    """Where other processes load batches, before any of them is started: they could not tell."""
    folder = Path(shutil.copytree(token_sets / "train.tokens", tmp_path / "train.tokens"))
    content = (folder / "5.bin").read_bytes()
    (folder / "5.bin").write_bytes(content[:-2] + b"\0\0")
    data = TokenDataModule(**settings | {"train_path": str(folder), "num_workers": workers})

    def read() -> None:
        data.setup("fit")
        assert not workers
        batches(attach(data, max_steps=100))

    with pytest.raises(InputError, match=r"train\.tokens/5\.bin: has changed since it was made"):
        read()


@pytest.mark.parametrize(("part", "shard"), [("train", "6.bin"), ("valid", "2.bin")])
def test_a_damaged_shard_that_is_read_first_leaves_no_folder(lm, fit_arguments, token_sets, tmp_path, part, shard):
    folder = Path(shutil.copytree(token_sets / f"{part}.tokens", tmp_path / f"{part}.tokens"))
    content = (folder / shard).read_bytes()
    (folder / shard).write_bytes(content[:-2] + b"\0\0")
    path = f"--data.{part.removesuffix('id')}_path={folder}"
    result = lm(*fit_arguments(tmp_path / "run", path, "--data.num_workers=0"))
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"lm fit: {folder}/{shard}: has changed since it was made")
    assert not (tmp_path / "run").exists()


def test_processes_that_train_together_find_a_damaged_shard_before_they_start(lm, fit_arguments, token_sets, tmp_path):
    folder = Path(shutil.copytree(token_sets / "train.tokens", tmp_path / "train.tokens"))
    content = (folder / "6.bin").read_bytes()
    (folder / "6.bin").write_bytes(content[:-2] + b"\0\0")
    result = lm(*fit_arguments(tmp_path / "run", f"--data.train_path={folder}", "--trainer.devices=2"))
    assert result.code == 2
    assert result.err.startswith(f"lm fit: {folder}/6.bin: has changed since it was made")
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
