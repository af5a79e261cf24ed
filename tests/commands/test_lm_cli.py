"""Proves that whatever `lm` is given wrongly gets one line on stderr and exit code 2, and that no file is written or
changed by it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from lm.__main__ import COMMANDS

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, token_data) -> Path:
    """The working folder, with token_data's files in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(token_data, tmp_path, dirs_exist_ok=True)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(lm, work):
    """refused(*arguments) -> the one line that `lm` answers; asserts that it is one, and that no file changed."""

    def run(*arguments) -> str:
        before = contents(work)
        result = lm(*arguments)
        assert result.code == 2, result.err
        assert result.out == ""
        assert len(result.err.splitlines()) == 1, result.err
        assert len(result.err) < 600  # a line that one can read
        assert contents(work) == before
        return result.err

    return run


WRONG_SETTINGS = [
    ("--model.d_modle=8", "unrecognized arguments: --model.d_modle=8"),
    ("--trainer.max_step=8", "unrecognized arguments: --trainer.max_step=8"),
    ("--data.val_pth=x", "unrecognized arguments: --data.val_pth=x"),
    ("--model.d_model=x", "\"model.d_model\": Expected a <class 'int'>. Got value: x"),
    ("--model.norm_position=mid", "Expected a typing.Literal['pre', 'post', 'none']. Got value: mid"),
    ("--model.position_encoding=sine", "Got value: sine"),
    ("--model.feed_forward=relu", "Got value: relu"),
    ("--model.num_heads=7", "d_model 16 cannot be divided evenly among num_heads 7"),
    ("--model.num_heads=0", "num_heads is 0"),
    ("--model.num_heads=16", "d_k is 1: rotary embeddings rotate pairs"),
    ("--model.num_layers=0", "num_layers is 0"),
    ("--model.vocab_size=-5", "vocab_size is -5"),
    ("--model.context_length=0", "context_length is 0"),
    ("--model.d_ff=-1", "d_ff is -1"),
    ("--model.rope_theta=-1", "theta is -1.0"),
    ("--model.rope_theta=.inf", "theta is inf"),
    ("--model.num_layers=1000000000", "num_layers is 1000000000; it can be at most 4,096"),
    ("--model.d_model=1000000", "GB are available; make it smaller"),
    ("--model.learning_rate=-1", "above model.learning_rate -1.0"),
    ("--model.learning_rate=.nan", "learning_rate is nan"),
    ("--model.min_learning_rate=-1", "min_learning_rate is -1.0"),
    ("--model.warmup_steps=-1", "warmup_steps is -1"),
    ("--model.weight_decay=-1", "weight_decay -1.0"),
    ("--model.eps=-1", "eps is -1.0"),
    ("--model.betas=[0.9,1.5]", "betas are (0.9, 1.5); each must be at least 0 and below 1"),
    ("--model.max_gradient_norm=0", "max_gradient_norm is 0.0"),
    ("--model.vocab_size=319", "has 320 tokens, too many for model.vocab_size 319; set --model.vocab_size 320"),
    ("--model.context_length=100000", "too few for a context_length of 100000"),
    ("--data.batch_size=0", "batch_size 0"),
    ("--data.num_workers=-1", "num_workers -1"),
    ("--data.seed=-1", "seed -1"),
    (f"--data.seed={10**300}", "must be below 2^62; it has"),
    (f"--trainer.max_steps={1 << 62}", "must be below 2^62; it has"),
    ("--data.train_path=none.bin", "none.bin: no such token file; make it with `tokenization encode"),
    ("--data.val_path=none.bin", "none.bin: no such token file; make it with `tokenization encode"),
    ("--trainer.gradient_clip_val=0.5", "has no effect; model.max_gradient_norm"),
    ("--data.tokenizer=none", "none: no such tokenizer folder; make it with `tokenization train"),
    ("--checkpoints.every_n_steps=0", "checkpoints.every_n_steps is 0"),
    ("--samples.temperature=-1", "temperature -1.0"),
    ("--trainer.max_steps=0", "trainer.max_steps is 0"),
    ("--trainer.max_steps=-1", "trainer.max_steps is -1"),
    ("--trainer.val_check_interval=0", "trainer.val_check_interval is 0; it must be a whole number, at least 1"),
    ("--trainer.val_check_interval=0.5", "trainer.val_check_interval is 0.5"),
    ("--trainer.log_every_n_steps=0", "trainer.log_every_n_steps is 0"),
    ("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches is 0"),
    (
        "--trainer.accumulate_grad_batches=3",
        "trainer.val_check_interval 20 counts batches, and must be a multiple of trainer.accumulate_grad_batches 3",
    ),
    ("--model.warmup_steps=61", "model.warmup_steps 61 is more than trainer.max_steps 60"),
    ("--model.min_learning_rate=0.02", "model.min_learning_rate 0.02 is above model.learning_rate 0.01"),
    ("--model.max_skipped_steps=0", "max_skipped_steps is 0"),
    ("--model.muon_rate=0.5", "muon_rate is 0.5, which has no effect on optimizer adamw"),
    ("--data.batch_size=100000", "fewer than data.batch_size 100000; use more text or smaller batches"),
    ("--checkpoints.keep_every_n_steps=0", "checkpoints.keep_every_n_steps is 0"),
    ("--trainer.precision=7", '"trainer.precision"'),
    ("--trainer.accelerator=quantum", "accelerator='quantum'"),
    ("--trainer.devices=0", "devices"),
    ("-c=nowhere.yaml", "nowhere.yaml: no such file; -c names a configuration"),
    ("-c=train.txt", "is not a configuration"),
    ("--ckpt_path=nowhere.ckpt", "nowhere.ckpt: no such checkpoint; train with `lm fit`"),
    ("--ckpt_path=last", "runs/new/last.ckpt: no such checkpoint"),
    ("--ckpt_path=best", "runs/new/best.ckpt: no such checkpoint"),
    ("--model.d_modle=8", "; did you mean model.d_model?"),
    ("--max_stpes=8", "; did you mean trainer.max_steps?"),
    ("--trainer.default_root_dir=", "trainer.default_root_dir is empty; name the folder of the run"),
    ("--trainer.default_root_dir=null", "trainer.default_root_dir is empty"),
    ("--trainer.default_root_dir=s3://bucket/run", "s3://bucket/run; a run needs a local folder"),
    (
        "--trainer.max_epochs=0",
        "trainer.max_epochs is 0: a run counts steps and has no epochs; trainer.max_steps is its",
    ),
    ("--trainer.max_epochs=3", "trainer.max_epochs is 3: a run counts steps"),
    ("--trainer.min_epochs=1", "trainer.min_epochs is 1: a run counts steps"),
    ("--trainer.check_val_every_n_epoch=1", "trainer.val_check_interval says when to validate; leave it out"),
    ("--trainer.limit_train_batches=0", "trainer.limit_train_batches is 0: a run draws from the whole token file"),
    ("--trainer.limit_train_batches=1", "trainer.limit_train_batches is 1: a run draws from the whole token file"),
    ("--trainer.limit_train_batches=0.5", "trainer.limit_train_batches is 0.5: a run draws from the whole token file"),
    (
        "--trainer.overfit_batches=2",
        "trainer.overfit_batches is 2: a run draws no batch twice; give it a small token file",
    ),
    ("--trainer.overfit_batches=0.5", "trainer.overfit_batches is 0.5: a run draws no batch twice"),
    ("--trainer.limit_val_batches=0", "trainer.limit_val_batches is 0; a validation takes at least 1 batch"),
    ("--trainer.limit_val_batches=-1", "trainer.limit_val_batches is -1; a validation takes at least 1 batch"),
    ("--trainer.enable_checkpointing=false", "trainer.enable_checkpointing is False: a run is its checkpoints"),
    ("--trainer.barebones=true", "trainer.barebones is True: a run logs its progress and saves checkpoints"),
    ("--trainer.max_time=00:00:00:00", "trainer.max_time is 00:00:00:00, too short for any step"),
    ("--trainer.max_time=1h", "max_time"),
    ("--data.train_path=", "data.train_path"),
    ("--data.val_path=", "data.val_path"),
    ("--data.tokenizer=", "data.tokenizer"),
    ("--ckpt_path=", "ckpt_path is empty"),
    ("--init_from=", "init_from is empty"),
    ("-c=", "-c names no file; give a configuration: -c configs/demo.yaml"),
    ("-c=empty.yaml", "empty.yaml: holds no settings"),
    ("-c=twice.yaml", "twice.yaml: max_steps is set twice, on lines 2 and 3; keep one"),
    ("-c=latin.yaml", "latin.yaml: is not UTF-8 at byte 2"),
    ("-c=misspelt.yaml", "did you mean trainer.max_steps?"),
    ("--trainer=latin.yaml", "latin.yaml"),
    ("--trainer.logger=lightning.pytorch.loggers.WandbLogger", "wandb"),
]
FILES = {
    "empty.yaml": b"",
    "twice.yaml": b"trainer:\n  max_steps: 5\n  max_steps: 6\n",
    "latin.yaml": "# \xfc\n".encode("latin-1"),
    "misspelt.yaml": b"trainer:\n  max_step: 5\n",
}


@pytest.mark.parametrize(("setting", "message"), WRONG_SETTINGS, ids=[setting for setting, _ in WRONG_SETTINGS])
def test_a_wrong_setting(refused, fit_arguments, work, setting, message):
    for name, content in FILES.items():
        (work / name).write_bytes(content)
    line = refused(*fit_arguments("runs/new"), *setting.split("=", 1) if setting[1] == "c" else [setting])
    assert line.startswith("lm fit: ")
    assert message in line


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(refused, fit_arguments, monkeypatch):
    """Its positions count, too: 16 MB of tables, three times as much while they are computed."""
    monkeypatch.setattr("lm.training.checks.available_memory", lambda: 40_000_000)
    wide = ("--model.context_length=500000", "--model.vocab_size=320")
    assert "500,000 positions, needs 0.05 GB, and 0.04 GB are available" in refused(*fit_arguments("runs/new", *wide))


def test_settings_count_more_than_files_wherever_they_stand(lm, fit_arguments):
    command, _, debug, *flags = fit_arguments("runs/new", "--model.learning_rate=0.125")
    Path("more.yaml").write_text("model: {learning_rate: 0.5}\ntrainer: {max_steps: 010}\n")
    first = lm(command, "-c", debug, "-c", "more.yaml", *flags, "--print_config")
    later = lm(command, *flags, "--config", debug, "--config=more.yaml", "--print_config")
    assert (later.code, later.err) == (0, "")
    assert later.out == first.out
    config = yaml.safe_load(later.out)
    assert config["model"]["learning_rate"] == 0.125
    assert config["trainer"]["max_steps"] == 10


def test_variables_that_have_no_effect_are_named(lm, fit_arguments, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "7")
    result = lm(*fit_arguments("runs/new", "--trainer.max_steps=2", "--samples.max_new_tokens=0"))
    assert result.code == 0
    assert result.err == (
        "lm: PL_TRAINER_MAX_STEPS in the environment has no effect; -c and the command line set everything\n"
    )
    assert "ended at step 2 of 2" in result.out


@pytest.mark.parametrize("folder", ["train.txt", "train.txt/run"])
def test_a_folder_that_cannot_be_made(lm, fit_arguments, work, folder):
    before = contents(work)
    result = lm(*fit_arguments(folder))
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "train.txt" in result.err
    assert contents(work) == before


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "lm frobnicate: no such command; there are init, fit, validate, account, "),
        (["fitt"], "lm fitt: no such command; there are init, fit, "),
        (["fit"], "lm fit: give a configuration: `lm fit -c configs/demo.yaml`"),
        (["validate", "tok"], "lm validate: tok: is a folder without a checkpoint"),
        (["generate", "--tempertaure=1", "tok"], "lm generate: unrecognized arguments: --tempertaure=1; did you mean"),
        (["fit", "-c", "train.bin"], "lm fit: "),
        (["validate"], "lm validate: "),
        (["generate", "none.ckpt"], "lm generate: none.ckpt: no such checkpoint; train with `lm fit`"),
        (["generate", "tok"], "lm generate: tok: is a folder without a checkpoint"),
        *(
            ([*command, ""], f"lm {command[0]}: argument {name}: is empty; name a folder or a checkpoint")
            for command, name in (
                (["generate"], "run"),
                (["verify", "tok"], "CKPT"),
                (["report"], "RUN"),
                (["import", "--output=new"], "folder"),
            )
        ),
        (["verify"], "lm verify: the following arguments are required: CKPT"),
        (["verify", "tok"], "lm verify: tok: is a folder without a checkpoint"),
        (["verify", "train.txt"], "lm verify: train.txt: is not a checkpoint of `lm fit`"),
        (["generate", "train.txt"], "lm generate: train.txt: is not a checkpoint of `lm fit`"),
    ],
    ids=" ".join,
)
def test_a_wrong_command(refused, arguments, message):
    assert refused(*arguments).startswith(message)


def test_help(lm, work):
    before = contents(work)
    for arguments in ([], ["--help"], ["-h"]):
        result = lm(*arguments)
        assert (result.code, result.err) == (0 if arguments else 2, "")
        assert result.out.startswith("usage: lm {" + ",".join(COMMANDS) + "}")
    for command in COMMANDS:
        result = lm(command, "--help")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"usage: lm {command} ")
        assert f"\n  lm {command} " in result.out  # an example, on a line of its own
    assert contents(work) == before


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_short_help_shows_options_that_exist_and_names_the_long_one(lm, command):
    from lm.training.short_help import USUAL

    short, everything = (lm(command, option).out for option in ("--help", "--help-all"))
    offered = set(re.findall(r"^  (?:-\w(?: \w+)?, )?--([\w.-]+)", everything, flags=re.MULTILINE))
    shown = re.findall(r"^  --([\w.-]+)", short, flags=re.MULTILINE)
    assert shown == [name for names in USUAL[command].values() for name in names]
    assert set(shown) <= offered
    assert len(set(shown)) == len(shown) < len(offered) / 2
    assert len(short.splitlines()) < 100
    assert max(map(len, short.splitlines())) <= 120
    last = short.splitlines()[-1]
    assert f"`lm {command} --help-all`" in last
    assert "--print_config" in last
    assert "help" not in yaml.safe_load(lm(command, "-c", ROOT / "configs/debug.yaml", "--print_config").out)


@pytest.mark.parametrize(
    ("line", "forked"),
    [
        ("fit -c {config} --data.train_path none.bin", False),
        ("fit -c {config} --model.d_modle 8", True),
        ("generate none.ckpt", False),
    ],
)
def test_a_real_process_writes_one_line_and_no_traceback(work, line, forked, fork_server):
    """stderr as a user sees it, logging and warnings among it; and imports, where it is not forked after them."""
    before = contents(work)
    arguments = line.format(config=ROOT / "configs" / "debug.yaml").split()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [fork_server.python if forked else sys.executable, "-m", "lm", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 2
    assert process.stdout == ""
    assert len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith(f"lm {arguments[0]}: ")
    assert contents(work) == before


# --- the configurations ----------------------------------------------------------------------------------------------


def test_print_config_writes_the_whole_configuration_and_no_file(lm, fit_arguments, work):
    before = contents(work)
    result = lm(*fit_arguments("runs/new", "--model.learning_rate=0.125"), "--print_config")
    assert (result.code, result.err) == (0, "")
    config = yaml.safe_load(result.out)
    assert config["model"]["learning_rate"] == 0.125
    assert config["model"]["norm_position"] == "pre"  # what nobody has set is there, too
    assert config["trainer"]["default_root_dir"] == "runs/new"
    assert contents(work) == before
    Path("printed.yaml").write_text(result.out)
    assert yaml.safe_load(lm("fit", "-c", "printed.yaml", "--print_config").out) == config


def test_missing_data_is_one_line_that_says_what_makes_it(refused):
    for path in CONFIGS:
        line = refused("fit", "-c", path, "--trainer.accelerator=cpu", "--trainer.default_root_dir=runs/new")
        assert "no such tokenizer folder; make it with `tokenization train TEXT --vocab-size N --output" in line
