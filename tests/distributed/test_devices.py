"""Proves that two processes train as one that accumulates two batches does: other batches on each, the gradient's norm
and the losses over all of them, one run in one folder, and a resumed run is the uninterrupted one."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.events import read_events
from helpers.faults import Moment, send
from helpers.runs import same

from lm.runs.checkpoint import load_checkpoint
from lm.training.module import LanguageModel
from lm.training.resume import Resume, compare_processes
from tokenization import InputError

STEPS = (
    "--trainer.max_steps=8",
    "--model.warmup_steps=4",
    "--trainer.limit_val_batches=3",
    "--data.batch_size=2",
    "--checkpoints.every_n_steps=3",
    "--model.max_gradient_norm=0.2",
    "--model.warmup_steps=2",
    "--model.min_learning_rate=0.01",  # a constant rate, whatever the last step
    "--model.value_embeddings=true",
    "--model.smear=true",
)
TWO = ("--trainer.devices=2", "--trainer.val_check_interval=4")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two_processes(request, fork_server, fit_arguments):
    def run(folder: Path, *settings: object) -> None:
        sharded = request.param == "fsdp"
        settings = (f"--trainer.strategy={request.param}", f"--checkpoints.sharded={sharded}", *settings)
        log = folder.with_suffix(".log")
        process = fork_server.start(fit_arguments(folder, *STEPS, *TWO, *settings), log)
        assert process.wait() == 0, log.read_text()

    return run


@pytest.fixture(scope="module")
def whole(two_processes, tmp_path_factory) -> Path:
    """Eight steps of two processes that nothing happens to."""
    run = tmp_path_factory.mktemp("two") / "whole"
    two_processes(run)
    return run


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint)["state_dict"]


def test_two_processes_are_one_that_accumulates(lm, fit_arguments, whole, tmp_path):
    accumulating = ("--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8")
    assert lm(*fit_arguments(tmp_path / "one", *STEPS, *accumulating)).code == 0
    two, one = weights(whole / "last.ckpt"), weights(tmp_path / "one/last.ckpt")
    assert two.keys() == one.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    names = {path.name for path in whole.iterdir() if not path.name.startswith("events")}
    assert names - {"shards"} == {"config.yaml", "tokenizer", "last.ckpt", "best.ckpt"}
    assert len(list(whole.glob("shards/step-8-*/*-of-2.pt"))) == (2 if "shards" in names else 0)
    (curves, texts), (expected, expected_texts) = read_events(whole), read_events(tmp_path / "one")
    assert texts["sample/text_summary"][-1] == expected_texts["sample/text_summary"][-1]
    for tag in ("train/loss", "val/loss"):
        steps, losses = zip(*curves[tag], strict=True)
        expected_steps, expected_losses = zip(*expected[tag], strict=True)
        assert steps == expected_steps
        assert losses == pytest.approx(expected_losses, abs=1e-5)
    norms, expected_norms = ([value for _, value in run["train/gradient_norm"]] for run in (curves, expected))
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    assert min(norms) > 0.2  # so that every one was scaled down


# With DDP, tests/reliability/test_processes.py kills one of two processes and goes on.
@pytest.mark.parametrize("two_processes", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"], indirect=True)
def test_a_resumed_run_of_two_processes(two_processes, whole, tmp_path):
    two_processes(tmp_path / "parts", "--trainer.max_steps=4")
    two_processes(tmp_path / "parts", f"--ckpt_path={tmp_path / 'parts/last.ckpt'}")
    expected, resumed = (load_checkpoint(run / "last.ckpt") for run in (whole, tmp_path / "parts"))
    assert expected["global_step"] == resumed["global_step"] == 8
    for key in ("state_dict", "optimizer_states", "callbacks"):
        assert same(expected[key], resumed[key]), key


# --- another number of processes -------------------------------------------------------------------------------------

ONE = ("--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8")
CHANGE = "from here on  processes: {}; the batches of each step stay the same, the numbers up to rounding\n"


def test_one_process_goes_on_as_two(two_processes, whole, lm, fit_arguments, monkeypatch, tmp_path):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        Moment(LanguageModel, "training_step", 9, send(signal.SIGTERM)).arm(patch)  # in the fifth step
        assert lm(*fit_arguments(run, *STEPS, *ONE)).code == 143
    two_processes(run, f"--ckpt_path={run / 'last.ckpt'}")
    assert CHANGE.format("1 -> 2") in run.with_suffix(".log").read_text()
    for name, weight in weights(whole / "last.ckpt").items():
        torch.testing.assert_close(weights(run / "last.ckpt")[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    counters = [load_checkpoint(folder / "last.ckpt")["loops"]["fit_loop"] for folder in (run, whole)]
    assert counters[0]["epoch_loop.batch_progress"] == counters[1]["epoch_loop.batch_progress"]
    (curves, _), (expected, _) = read_events(run), read_events(whole)
    for tag in ("train/loss", "val/loss"):
        assert [step for step, _ in curves[tag]] == [step for step, _ in expected[tag]]
        assert [loss for _, loss in curves[tag]] == pytest.approx([loss for _, loss in expected[tag]], abs=1e-5)


def test_two_processes_go_on_as_one(whole, lm, fit_arguments, tmp_path):
    more = (*STEPS, *ONE, "--trainer.max_steps=12")
    assert lm(*fit_arguments(tmp_path / "one", *more)).code == 0
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    result = lm(*fit_arguments(run, *more, "--ckpt_path=auto"))
    assert (result.code, result.err) == (0, "")
    assert CHANGE.format("2 -> 1") in result.out
    for name, weight in weights(tmp_path / "one/last.ckpt").items():
        torch.testing.assert_close(weights(run / "last.ckpt")[name], weight, rtol=1e-5, atol=1e-6, msg=name)


REFUSED = {
    "accumulating less": (
        (),
        "was trained by 2 processes with 2 batches a step, and 1 with trainer.accumulate_grad_batches 1 would take 1;"
        " set trainer.accumulate_grad_batches to 2, and trainer.val_check_interval to match\n",
    ),
    "accumulating more": (("--trainer.accumulate_grad_batches=4",), "would take 4; set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_steps_of_another_size_are_refused(case, whole, lm, fit_arguments, tmp_path):
    settings, message = REFUSED[case]
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = lm(*fit_arguments(run, *STEPS, "--trainer.max_steps=12", *settings, "--ckpt_path=auto"))
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_number_of_processes_that_cannot_share_the_batches():
    resume = Resume("last.ckpt", 4, accumulated=1, processes=2)
    with pytest.raises(InputError, match=r"by 2 processes .* take a number of processes that divides 2"):
        compare_processes(resume, 1, 3)
    assert compare_processes(Resume("last.ckpt", 4, accumulated=1), 1, 3) == []  # from before it was recorded
