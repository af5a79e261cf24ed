"""Proves that a run's folder is all that generation, validation and Python need."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from helpers.runs import STEPS, go_on, same
from lightning import Trainer
from torch.utils.data import DataLoader

from lm.data.datamodule import TokenDataModule
from lm.runs.checkpoint import load_checkpoint, load_model, load_tokenizer
from lm.training.module import LanguageModel
from tokenization import InputError

# --- the folder alone ------------------------------------------------------------------------------------------------


def test_generate_needs_the_folder_alone(lm, copy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for unused in ("config.yaml", "last.ckpt"):
        (copy / unused).unlink()
    for events in copy.glob("events*"):
        events.unlink()
    arguments = ("generate", "elsewhere/best.ckpt", "--prompt", "The cat", "--max-new-tokens", 9, "--top-k", 7)
    first, again, other = (lm(*arguments, "--seed", seed) for seed in (1, 1, 2))
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("The cat")
    assert first.out.endswith("\n")
    assert again.out == first.out != other.out
    assert len(load_tokenizer("elsewhere/best.ckpt").encode(first.out[:-1])) > len("The cat") // 4
    assert lm("generate", "elsewhere/best.ckpt", "--prompt", "", "--max-new-tokens", 3).code == 0
    greedy = {lm(*arguments, "--temperature", 0, "--seed", seed).out for seed in (1, 2)}
    assert len(greedy) == 1


def test_a_text_beyond_the_context_slides_and_says_so_once_and_last(lm, whole_run):
    result = lm("generate", whole_run / "best.ckpt", "--prompt", "The cat saw a red ball. " * 9, "--max-new-tokens", 5)
    assert result.code == 0
    assert result.out.startswith("The cat saw a red ball. " * 9)
    assert re.fullmatch(
        r"\[the prompt has \d+ tokens, and the model sees 16 at once: only its last 8 were read\]\n", result.err
    )
    arguments = ["generate", whole_run / "best.ckpt", "--temperature", 0, "--prompt", "The cat"]
    length = len(load_tokenizer(whole_run / "best.ckpt").encode("The cat"))
    assert lm(*arguments, "--max-new-tokens", 17 - length).err == ""  # the last one is drawn from a full context
    one_more = lm(*arguments, "--max-new-tokens", 18 - length).err
    assert (
        one_more
        == "[the text has 18 tokens, and the model sees 16 at once: the end was written from the last 8 to 16]\n"
    )


def test_generation_is_the_models(lm, whole_run):
    """Greedy, against the argmax of the model on the whole text, which still fits the context."""
    model, tokenizer = load_model(whole_run / "last.ckpt"), load_tokenizer(whole_run / "last.ckpt")
    token_ids = tokenizer.encode("The cat saw")
    for _ in range(6):
        token_ids.append(int(model(torch.tensor(token_ids))[-1].argmax()))
    result = lm(
        "generate", whole_run / "last.ckpt", "--prompt", "The cat saw", "--max-new-tokens", 6, "--temperature", 0
    )
    assert result.out == tokenizer.decode(token_ids).partition("<|endoftext|>")[0] + "\n"


def test_several_prompts_write_what_each_writes_alone(lm, whole_run):
    prompts, settings = ("The cat", "Tom saw a red", ""), ("--max-new-tokens", 30, "--temperature", 1)
    result = lm(
        "generate", whole_run / "best.ckpt", *settings, "--seed", 4, *(f"--prompt={prompt}" for prompt in prompts)
    )
    assert (result.code, len(result.err.splitlines())) == (0, 1)  # that 30 tokens slide
    expected = ""
    for number, prompt in enumerate(prompts):
        alone = lm("generate", whole_run / "best.ckpt", *settings, "--seed", 4 + number, "--prompt", prompt)
        expected += f"[{number + 1} of 3, seed {4 + number}]\n{alone.out}\n"
    assert result.out == expected


def test_generation_in_bfloat16(lm, whole_run):
    arguments = (
        "generate",
        whole_run / "best.ckpt",
        "--prompt",
        "The cat saw",
        "--max-new-tokens",
        40,
        "--temperature",
        1,
    )
    exact, named, rounded = (lm(*arguments, *more) for more in ((), ("--precision=fp32",), ("--precision", "bf16")))
    assert exact.out == named.out
    assert rounded.code == 0
    assert rounded.out.startswith("The cat saw")
    assert rounded.out == lm(*arguments, "--precision", "bf16").out


def test_a_reader_that_leaves_ends_the_text_quietly(whole_run):
    arguments = [sys.executable, "-m", "lm", "generate", str(whole_run / "best.ckpt"), "--max-new-tokens", "9"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert process.returncode == 141
    assert len(errors.splitlines()) <= 1  # that the text is longer than the context


WRONG_WISHES = [
    (["--temperature=-1"], "temperature -1.0"),
    (["--temperature=nan"], "temperature nan"),
    (["--top-k=0"], "top_k 0"),
    (["--top-p=-0.1"], "top_p -0.1"),
    (["--top-p=1.5"], "top_p 1.5"),
    (["--max-new-tokens=0"], "--max-new-tokens 0"),
    (["--seed=-1"], "--seed -1"),
    ([f"--seed={1 << 64}"], f"--seed {1 << 64}"),
    (["--prompt=\udcff"], "--prompt: is not UTF-8"),
    (["--prompt=a", "--prompt=\udcff"], "--prompt: is not UTF-8"),
    (["--precision=fp8"], "argument --precision: invalid choice: 'fp8'"),
]


@pytest.mark.parametrize(("wish", "message"), WRONG_WISHES, ids=[ascii(wish[0]) for wish, _ in WRONG_WISHES])
def test_a_wish_that_makes_no_sense(lm, whole_run, wish, message):
    result = lm("generate", whole_run / "best.ckpt", *wish)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"lm generate: {message}")
    assert len(result.err.splitlines()) == 1


def test_a_damaged_run(lm, copy):
    """A checkpoint cut short, one of other bytes, a folder without its tokenizer; whichever command reads them."""
    content = (copy / "best.ckpt").read_bytes()
    (copy / "cut.ckpt").write_bytes(content[: len(content) // 2])
    (copy / "random.ckpt").write_bytes(b"\x80\x02" + bytes(range(256)))
    torch.save({"weights": torch.zeros(3)}, copy / "other.ckpt")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for name in ("cut", "random", "other", "none"):
        path = copy / f"{name}.ckpt"
        for arguments in (
            ["generate", path],
            go_on(copy, "--ckpt_path", path, "--trainer.max_steps=20"),
            ["validate", "-c", copy / "config.yaml", "--ckpt_path", path],
        ):
            result = lm(*arguments)
            assert (result.code, result.out) == (2, "")
            assert len(result.err.splitlines()) == 1
            assert str(path) in result.err
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    shutil.rmtree(copy / "tokenizer")
    result = lm("generate", copy / "best.ckpt")
    assert (result.code, result.out) == (2, "")
    assert f"{copy / 'tokenizer/merges.txt'}: is missing, and {copy / 'best.ckpt'} needs it; copy it from" in result.err


def test_validate_wants_a_checkpoint(lm, copy):
    result = lm("validate", "-c", copy / "config.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err == "lm validate: which checkpoint? --ckpt_path checkpoints/RUN/best.ckpt names one\n"


def test_validate_needs_the_model_alone(lm, copy):
    """Not the settings of training, which another configuration may lack."""
    others = ("--model.optimizer=muon", "--model.zero_init=true", "--model.weight_decay=0.5")
    result = lm("validate", "-c", copy / "config.yaml", "--ckpt_path", copy / "best.ckpt", *others)
    assert (result.code, result.err) == (0, "")
    result = lm("validate", "-c", copy / "config.yaml", "--ckpt_path", copy / "best.ckpt", "--model.num_layers=3")
    assert result.code == 2
    assert "not 3" in result.err


def test_validate_takes_a_folder(lm, copy):
    named = lm("validate", "-c", copy / "config.yaml", "--ckpt_path", copy / "best.ckpt")
    assert named.code == 0
    for whole_run in (copy, copy / "best.ckpt"):
        result = lm("validate", whole_run)
        assert (result.code, result.out, result.err) == (0, named.out, named.err)
    (copy / "best.ckpt").unlink()
    assert lm("validate", copy, "--trainer.limit_val_batches=1").code == 0  # last.ckpt stands in, as in generate


# --- in Python -------------------------------------------------------------------------------------------------------


def quiet(**settings: object) -> Trainer:
    silent = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **silent, **settings)


def test_lightning_loads_a_checkpoint(whole_run):
    loaded, ours = LanguageModel.load_from_checkpoint(whole_run / "best.ckpt"), load_model(whole_run / "best.ckpt")
    assert loaded.hparams["max_steps"] == STEPS
    assert same(loaded.model.state_dict(), ours.state_dict())


def test_a_trainer_of_ones_own_trains_the_same(whole_run, token_data):
    torch.manual_seed(0)
    shape = {"vocab_size": 320, "context_length": 16, "d_model": 16, "num_layers": 2, "num_heads": 2}
    rate = {"learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_steps": 5, "max_steps": STEPS}
    paths = [str(token_data / name) for name in ("train.bin", "valid.bin", "tok")]
    model, data = LanguageModel(**shape, **rate), TokenDataModule(*paths, 16, 320, batch_size=8)
    quiet(max_steps=STEPS).fit(model, datamodule=data)
    assert same(dict(model.state_dict()), load_checkpoint(whole_run / "last.ckpt")["state_dict"])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_what_is_no_batch_and_a_run_without_a_length_are_refused(token_data):
    model = LanguageModel(vocab_size=320, context_length=16, d_model=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="a batch is a Tensor; it must be a pair of tensors"):
        quiet(max_steps=2).fit(model, DataLoader([torch.zeros(2, 16, dtype=torch.long)] * 4))
    data = TokenDataModule(*(str(token_data / name) for name in ("train.bin", "valid.bin", "tok")), 16, 320)
    with pytest.raises(InputError, match="max_steps is -1; it must be at least 1"):
        quiet(max_epochs=1).fit(model, datamodule=data)
