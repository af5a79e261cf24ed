"""Proves each function of lightning_inside against the installed Lightning, on a module and a Trainer that have nothing
of ours.

Where one of these fails after an update, the message names the library and the part that has changed: mend the
function there, and nothing else.
"""

import inspect
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.libraries import changed
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.tensorflow_stub.io.gfile import GFile
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lm.training import config_files, lightning_inside

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:LightningCLI's args parameter",
    "ignore:\\s*(By default only one|``ArgumentParser.add_inst|skip_none parameter)",  # of Lightning's own calls
)


class Line(LightningModule):
    """Fits one number; logs the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("validation", self.layer(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(batches: int) -> DataLoader:
    return DataLoader([torch.ones(2, 1)] * batches, batch_size=None)


QUIET = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False, "logger": False}


def train(*callbacks: Callback, steps: int = 4, **settings: Any) -> Trainer:
    settings = QUIET | {"num_sanity_val_steps": 0, "max_epochs": -1, "check_val_every_n_epoch": None} | settings
    trainer = Trainer(accelerator="cpu", max_steps=steps, callbacks=list(callbacks), **settings)
    trainer.fit(Line(), loader(100), loader(2))
    return trainer


class Drawn(Logger):
    """Notes at which steps a loss is drawn."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.steps += [step] if "loss" in metrics else []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class At(Callback):
    """Calls a function with the trainer in a hook, and keeps what it returns."""

    def __init__(self, hook: str, function) -> None:
        self.seen: list[Any] = []
        setattr(self, hook, lambda trainer, *_: self.seen.append(function(trainer)))


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_parse_ckpt_path", "_set_seed", "instantiate_classes", "_run_subcommand"])
def test_a_step_that_is_left_out_is_one_of_lightnings(name):
    """Were it renamed, Lightning would begin the run by itself."""
    part = f"LightningCLI.{name} is gone"
    assert callable(getattr(LightningCLI, name, None)), changed("lightning", part)
    assert f"self.{name}(" in inspect.getsource(LightningCLI.__init__), changed("lightning", f"{part} from __init__")


class LineCLI(lightning_inside.CommandLine):
    @staticmethod
    def subcommands():
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"}}


@pytest.fixture(scope="module")
def line_cli():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    cli = LineCLI(Line, args=["fit", "--trainer.max_steps", "3"], seed_everything_default=7)
    assert torch.equal(torch.get_rng_state(), before), changed("lightning", "LightningCLI seeds elsewhere")
    return cli


def test_the_command_line_only_reads(line_cli):
    assert not hasattr(line_cli, "trainer"), changed("lightning", "LightningCLI makes a trainer elsewhere")
    assert line_cli.settings.trainer.max_steps == 3
    assert line_cli.settings.seed_everything == 7


def test_options(line_cli):
    options, part = line_cli.options("fit"), "argparse's Action.help, default or metavar"
    assert options["trainer.devices"].default == "auto", changed("jsonargparse", part)
    assert options["trainer.devices"].help.startswith("The devices to use."), changed("jsonargparse", part)
    assert options["trainer.enable_progress_bar"].choices == "{true,false,null}", changed("jsonargparse", part)
    assert options["trainer.devices"].choices is None
    assert not {"help", "trainer.devices+", "trainer.accelerator.help"} & options.keys()


def test_a_description_is_replaced():
    parser = ArgumentParser()
    parser.add_argument("--a", type=int, help="theirs")
    lightning_inside.describe_option(parser, "a", "ours")
    assert "  --a A       ours (type: int" in parser.format_help(), changed("jsonargparse", "_option_string_actions")


def test_the_help_is_replaced(line_cli, capsys):
    with pytest.raises(SystemExit, match="0"), line_cli.another_help("fit", "short\n"):
        line_cli.parser.parse_args(["fit", "--help"])
    assert capsys.readouterr().out == "short\n", changed("jsonargparse", "_subcommand_parsers or print_help")


def test_option_names(line_cli):
    names = line_cli.option_names("fit")
    part = "LightningCLI._subcommand_parsers, or argparse's _option_string_actions"
    assert {"trainer.max_steps", "seed_everything", "config"} <= set(names), changed("lightning", part)


def test_a_description_keeps_its_lines():
    parser = ArgumentParser(
        formatter_class=lightning_inside.HelpFormatter, description="Trains.\n\n  lm fit      one\n  lm fit -c   two"
    )
    part = "argparse's HelpFormatter._fill_text"
    assert "\n\n  lm fit      one\n  lm fit -c   two\n" in parser.format_help(), changed("jsonargparse", part)


def test_classes_are_made(line_cli):
    made = line_cli.make_classes()
    assert isinstance(made.model, Line), changed("jsonargparse", "ArgumentParser.instantiate makes no classes")
    assert isinstance(line_cli.instantiate_trainer(**QUIET), Trainer), changed("lightning", "config_init")


def test_yaml_is_read_strictly(tmp_path):
    lightning_inside.read_settings_strictly()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--a", type=str | int)
    (tmp_path / "c.yaml").write_text("a: 010\n")
    part = "set_loader, or _loaders_dumpers.yaml_default_loader"
    assert parser.parse_args([f"--config={tmp_path / 'c.yaml'}"]).a == 10, changed("jsonargparse", part)
    number = ArgumentParser(exit_on_error=False)
    number.add_argument("--b", type=int | str)
    assert number.parse_args(["--b=1:30"]).b == "1:30", changed("jsonargparse", part)  # YAML 1.1 reads 90
    assert config_files.load("a: 010\n") == {"a": 10}


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("0.5", 0.5)])
def test_one_batch_is_not_all_batches(text, value):
    lightning_inside.tell_one_batch_from_all()
    arguments = ["fit", f"--trainer.limit_val_batches={text}", f"--trainer.limit_train_batches={text}"]
    trainer = LineCLI(Line, args=arguments).settings.trainer
    for found in (trainer.limit_val_batches, trainer.limit_train_batches):
        message = changed("lightning", "the annotations of Trainer.__init__ are not what the parser reads")
        assert (found, type(found)) == (value, type(value)), message


def test_the_harmless_warnings_are_still_given():
    """One that no library gives any more hides something else some day."""
    import lightning.fabric
    import lightning.pytorch

    sources = "".join(
        path.read_text(encoding="utf-8")
        for library in (lightning.pytorch, lightning.fabric)
        for path in Path(library.__file__).parent.rglob("*.py")
    )
    parts = {
        "LightningCLI's args parameter": "LightningCLI's args parameter",
        "You're resuming from a checkpoint that ended before": "You're resuming from a checkpoint that ended before",
        "The '.*_dataloader' does not have many workers": "does not have many workers",
        ".*isinstance\\(treespec, LeafSpec\\)": "LeafSpec",
        "The number of training batches .* is smaller than the logging interval": "smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty": "exists and is not empty",
        "Be aware that when using `ckpt_path`, callbacks": "Be aware that when using `ckpt_path`",
    }
    assert set(parts) == set(lightning_inside.HARMLESS_WARNINGS)
    for part in parts.values():
        assert part in sources, changed("lightning", f"it no longer warns {part!r}")


# --- the Trainer's loops ---------------------------------------------------------------------------------------------


def test_has_trainer():
    module = Line()
    assert not lightning_inside.has_trainer(module), changed("lightning", "LightningModule._trainer")
    module.trainer = Trainer(accelerator="cpu", **QUIET)
    assert lightning_inside.has_trainer(module), changed("lightning", "LightningModule._trainer")


def test_is_mid_step():
    """Asked where a batch begins: of two batches a step, the second is within it."""
    middle = At("on_train_batch_start", lightning_inside.is_mid_step)
    train(middle, steps=2, accumulate_grad_batches=2)
    assert middle.seen == [False, True, False, True], changed("lightning", "fit_loop.batch_idx")


def test_has_begun_a_step():
    """Asked where a batch ends, and in the validation after it: of two batches a step, the first begins it."""
    begun = At("on_train_batch_end", lightning_inside.has_begun_a_step)
    validated = At("on_validation_end", lightning_inside.has_begun_a_step)
    train(begun, validated, steps=2, accumulate_grad_batches=2, val_check_interval=1)
    assert begun.seen == validated.seen == [True, False, True, False], changed("lightning", "fit_loop.batch_idx")


def test_is_validation_due():
    due = At("on_train_batch_end", lightning_inside.is_validation_due)
    validated = At("on_validation_start", lambda trainer: trainer.global_step)
    train(due, validated, steps=6, val_check_interval=2)
    message = changed("lightning", "fit_loop.total_batch_idx or trainer.val_check_batch")
    assert [step for step, is_due in enumerate(due.seen, start=1) if is_due] == validated.seen == [2, 4, 6], message


def test_validate_now():
    """Before the first step, all of it; and the training after it is as without."""
    order: list[str] = []
    notes = [
        At("on_validation_batch_end", lambda trainer: order.append("validated")),
        At("on_train_batch_end", lambda trainer: order.append("trained")),
        At("on_train_start", lightning_inside.validate_now),
    ]
    validated = train(*notes, steps=2, val_check_interval=50)
    assert order == ["validated", "validated", "trained", "trained"], changed("lightning", "the validation loop")
    assert validated.global_step == 2
    assert "validation" in validated.callback_metrics, changed("lightning", "the validation loop logs nothing")


def test_set_max_steps():
    trainer = train(At("on_train_start", lambda trainer: lightning_inside.set_max_steps(trainer, 3)), steps=5)
    assert (trainer.global_step, trainer.max_steps) == (3, 3), changed("lightning", "epoch_loop.max_steps")


def test_what_the_loops_count():
    trainer = train(steps=3, accumulate_grad_batches=2, val_check_interval=50)
    message = changed("lightning", "what the loops count, epoch_loop.batch_progress.total.ready")
    checkpoint = {"loops": {"fit_loop": lightning_inside.loop_counters(trainer)}}
    assert lightning_inside.batches_trained(checkpoint) == 6, message
    assert lightning_inside.batches_trained(lightning_inside.whole_checkpoint(trainer)) == 6, message
    lightning_inside.add_batches_trained(checkpoint["loops"]["fit_loop"], -3)
    fewer = train(steps=3, val_check_interval=50)  # the same steps of one batch each
    assert {"fit_loop": lightning_inside.loop_counters(fewer)} == checkpoint["loops"], message


def test_whole_checkpoint(tmp_path):
    """The same as trainer.save_checkpoint writes."""
    trainer = train(steps=3)
    ours = lightning_inside.whole_checkpoint(trainer)
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    theirs = torch.load(tmp_path / "theirs.ckpt", weights_only=True)
    assert ours.keys() == theirs.keys(), changed("lightning", "_checkpoint_connector.dump_checkpoint")
    assert ours["global_step"] == theirs["global_step"] == 3
    assert all(torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])


# --- logging ---------------------------------------------------------------------------------------------------------


def test_draws_this_step():
    drawn = At("on_train_batch_end", lightning_inside.draws_this_step)
    logger = Drawn()
    train(drawn, steps=6, logger=logger, log_every_n_steps=3)
    message = changed("lightning", "_logger_connector.should_update_logs")
    assert drawn.seen == [False, False, True, False, False, True], message
    assert logger.steps == [2, 5], message


def test_draw_step_now():
    """The figures of a step in which a callback fails are drawn all the same."""

    class Failing(Callback):
        def on_train_batch_end(self, trainer, *_):
            lightning_inside.draw_step_now(trainer)
            raise RuntimeError("a callback")

    logger = Drawn()
    with pytest.raises(RuntimeError, match="a callback"):
        train(Failing(), logger=logger, log_every_n_steps=1)
    assert len(logger.steps) == 1, changed("lightning", "_logger_connector.update_train_step_metrics")


def test_set_drawn_steps():
    set_steps = At("on_train_batch_start", lambda trainer: lightning_inside.set_drawn_steps(trainer, 10))
    logger = Drawn()
    train(set_steps, steps=1, logger=logger, log_every_n_steps=1)
    message = changed("lightning", "epoch_loop._batches_that_stepped")
    assert logger.steps == [10], message


def test_the_hook_that_logs():
    seen = At("on_train_batch_end", lambda trainer: lightning_inside.current_hook(trainer.lightning_module))
    trainer = train(seen, steps=1)
    message = changed("lightning", "LightningModule._current_fx_name")
    assert seen.seen == ["on_train_batch_end"], message
    assert lightning_inside.current_hook(trainer.lightning_module) is None, message


def test_logging_in_another_hook():
    """Where a module's hook logs as training_step, the figure is training_step's: once, and under its name."""

    class Late(Line):
        def training_step(self, batch, batch_idx):
            self.log("figure", 1.0)
            return self.layer(batch).square().mean()

        def on_train_batch_end(self, *_):
            with lightning_inside.logging_in(self, "training_step"):
                self.log("figure", 2.0)
            assert lightning_inside.current_hook(self) == "on_train_batch_end"
            self.results = list(self.trainer.fit_loop.epoch_loop._results)

    module = Late()
    trainer = Trainer(accelerator="cpu", max_steps=1, **QUIET)
    trainer.fit(module, loader(1))
    assert module.results == ["training_step.figure"], changed("lightning", "LightningModule._current_fx_name")
    assert trainer.callback_metrics["figure"] == 2


def test_event_files(tmp_path):
    """Named by the stamp; what is in them has the time of the clock."""
    logger = TensorBoardLogger(tmp_path, name="", version="")
    assert not lightning_inside.has_event_file(logger), changed("lightning", "TensorBoardLogger._experiment")
    with lightning_inside.stamped_event_file(4_000_000_000):
        logger.experiment.add_scalar("x", 1.0, 1)
    assert lightning_inside.has_event_file(logger), changed("lightning", "TensorBoardLogger._experiment")
    logger.experiment.flush()
    (path,) = tmp_path.glob("events*")
    message = changed("tensorboard", "event_file_writer takes the time for its file's name elsewhere")
    assert path.name.startswith("events.out.tfevents.4000000000."), message
    assert all(abs(event.wall_time - time.time()) < 100 for event in EventFileLoader(str(path)).Load()), message


def test_whole_records(tmp_path, monkeypatch):
    write, full = GFile.write, []

    def write_half(self, content):
        write(self, content[: len(content) // 2] if full else content)
        if full:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(GFile, "write", write_half)
    writer = SummaryWriter(tmp_path)
    records = lightning_inside.WholeRecords(writer)
    message = changed("tensorboard", "EventFileWriter._async_writer, its _writer and its _worker, or _file_name")
    for step in range(1, 5):
        full[:] = [True] if step in (2, 3) else []
        writer.add_scalar("x", float(step), step)
        writer.flush()
        assert (records.failure is not None) == (step > 1), message
    writer.close()
    (path,) = tmp_path.glob("events*")
    steps = [event.step for event in EventFileLoader(str(path)).Load() if event.summary.value]
    assert steps == [1, 4], message


def test_write_summary(tmp_path):
    writer = SummaryWriter(tmp_path)
    summaries = hparams({"rate": 0.5}, {"loss": 0})
    for summary in summaries:
        lightning_inside.write_summary(writer, summary)
    writer.close()
    (path,) = tmp_path.glob("events*")
    tags = [value.tag for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    assert len(tags) == len(summaries), changed("torch", "SummaryWriter._get_file_writer")
    assert all(tag.startswith("_hparams_/") for tag in tags)


def test_shard_over_all():
    strategy = ModelParallelStrategy(tensor_parallel_size=1)
    strategy.parallel_devices = [torch.device("cpu")] * 3
    strategy.num_nodes = 2
    message = changed("lightning", "ModelParallelStrategy._data_parallel_size")
    assert strategy._data_parallel_size == "auto", message
    lightning_inside.shard_over_all(strategy)
    assert strategy._data_parallel_size == 6
    assert "self._data_parallel_size, self._tensor_parallel_size" in inspect.getsource(strategy.setup_environment), (
        message
    )
