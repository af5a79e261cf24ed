"""Proves that SIGTERM and Ctrl-C end a run with 143 and 130 from its first line on, before anything is trained: said in
a line, with nothing lost, whether the run is new or goes on."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers.faults import Moment, send
from helpers.processes import start
from helpers.runs import SETTINGS, STEPS

from lm.data.datamodule import TokenDataModule
from lm.machine.signals import Signals
from lm.monitoring.throughput import Throughput
from lm.runs.checkpoint import load_checkpoint
from lm.runs.folder import LOCK
from lm.training import command_line, fast_path
from lm.training.module import LanguageModel
from lm.training.plugins import SaveConfig
from tokenization.systems import SIGUSR1

MOMENTS = {
    "while settings are read": (command_line, "check_config"),
    "while data is verified": (TokenDataModule, "setup"),
    "while the model is arranged": (fast_path, "choose_attention"),
    "while the optimizer is made": (LanguageModel, "configure_optimizers"),
    "while the peak is measured": (Throughput, "on_train_start"),
    "when config.yaml has been written": (SaveConfig, "on_train_start"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_before_training_a_signal_ends_at_once(
    moment, signum, lm, fit_arguments, stopped_run, monkeypatch, capfd, tmp_path
):
    owner, name = MOMENTS[moment]
    run = Path(shutil.copytree(stopped_run, tmp_path / "run")) if signum == signal.SIGTERM else tmp_path / "run"
    before = {path.name: path.read_bytes() for path in run.glob("*.ckpt")}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    arguments = fit_arguments(run, *SETTINGS, "--ckpt_path=auto")
    with monkeypatch.context() as patch:
        Moment(owner, name, 1, send(signum), after=True).arm(patch)
        result = lm(*arguments)
    assert result.code == 128 + signum
    assert capfd.readouterr().err == f"\nlm fit: {signal.Signals(signum).name}; ended, nothing is lost\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not (run / LOCK).exists()
    assert {path.name: path.read_bytes() for path in run.glob("*.ckpt")} == before


def test_a_signal_that_something_swallows_still_ends_the_run(lm, fit_arguments, monkeypatch, tmp_path):
    """As an import or a destructor may, which exceptions do not leave."""

    def swallow() -> None:
        with contextlib.suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)

    Moment(LanguageModel, "configure_optimizers", 1, swallow).arm(monkeypatch)
    assert lm(*fit_arguments(tmp_path / "run", *SETTINGS)).code == 143
    assert not list((tmp_path / "run").glob("*.ckpt"))


IMPORTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))
        if name in ("transformers", "torchmetrics.functional", "matplotlib"):
            print(name, "is not needed")  # nor is a second and a half; see lm/machine/lean_imports.py
sys.meta_path.insert(0, Finder())
from lm.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("name", "signum"), [("numpy", signal.SIGTERM), ("lightning.pytorch.cli", signal.SIGINT)])
def test_during_imports(name, signum, fit_arguments, tmp_path):
    process = start(fit_arguments(tmp_path / "run"), ("-c", IMPORTING, name, int(signum)))
    written = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert written == ("", f"\nlm fit: {signal.Signals(signum).name}; ended, nothing is lost\n")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_is_ignored_where_the_process_was_started_so(lm, fit_arguments, monkeypatch, capfd, tmp_path):
    """As a script's `lm fit &` is, within the reach of a Ctrl-C that is meant for another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Moment(TokenDataModule, "setup", 1, send(signal.SIGINT)).arm(monkeypatch)
        Moment(LanguageModel, "training_step", 3, send(signal.SIGINT)).arm(monkeypatch)
        result = lm(*fit_arguments(tmp_path / "run", *SETTINGS))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == 0
    assert f"ended at step {STEPS} of {STEPS}" in result.out
    assert "SIGINT" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_at_every_moment_of_a_real_run(signum, fit_arguments, whole_run, tmp_path):
    """Processes are signalled ever later, and go on, until one ends well; then together they are one whole run."""
    run = tmp_path / "run"
    for trial in range(30):
        process = start(fit_arguments(run, *SETTINGS, "--ckpt_path=auto"))
        time.sleep(0.1 * 1.3**trial)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
        if f"ended at step {STEPS} of {STEPS}" in out or "nothing is left to do" in out:
            break  # the signal may have come while the interpreter itself was ending
        if not out and "lm fit" not in err and "saving" not in err:
            continue  # or while it was beginning
        assert process.returncode == 128 + signum, err
        assert "Traceback" not in err
        assert "nothing is lost" in err or "resumes from step" in out
    else:
        raise AssertionError("no process has come to the end")
    a, b = (load_checkpoint(folder / "last.ckpt") for folder in (run, whole_run))
    assert a["global_step"] == b["global_step"]
    assert all(a["state_dict"][name].equal(b["state_dict"][name]) for name in b["state_dict"])


@pytest.mark.parametrize("step", [0, 6], ids=["while the data is verified", "while it trains"])
def test_slurms_warning_is_a_sigterm(step, lm, fit_arguments, monkeypatch, capfd, tmp_path):
    """srun --signal=USR1@90; Lightning would save in the middle of a step."""
    owner, name = (LanguageModel, "training_step") if step else (TokenDataModule, "setup")
    Moment(owner, name, max(step, 1), send(signal.SIGUSR1)).arm(monkeypatch)
    run = tmp_path / "run"
    assert lm(*fit_arguments(run, *SETTINGS)).code == 143
    assert capfd.readouterr().err.startswith(
        "\nSIGUSR1: saving after this step" if step else "\nlm fit: SIGUSR1; ended"
    )
    assert [path.name for path in run.glob("last.ckpt")] == (["last.ckpt"] if step else [])
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    if step:
        assert load_checkpoint(run / "last.ckpt")["global_step"] == step


@pytest.mark.parametrize(
    ("signum", "words"), [(signal.SIGINT, "a second Ctrl-C"), (signal.SIGTERM, "Ctrl-C now"), (SIGUSR1, "Ctrl-C now")]
)
def test_it_is_said_which_ctrl_c_quits_without_saving(signum, words, monkeypatch, capfd):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    signals = Signals(quiet=False)
    signals(signum, None)
    assert capfd.readouterr().err.endswith(f": saving after this step; {words} quits without saving\n")
    signals(signal.SIGINT, None)
    assert ended == [130]
