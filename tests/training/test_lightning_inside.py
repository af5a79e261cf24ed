"""Proves each function of lightning_inside and torch_inside against the installed libraries, on a module and a Trainer
that have nothing of ours; and that no other file of lm reaches into a library.

Where one of these fails after an update, the message names the library and the part that has changed: mend the function
there, and nothing else.
"""

import ast
import ctypes
import importlib
import inspect
import os
import shlex
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lm.machine import torch_inside
from lm.training import config_files, lightning_inside

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:LightningCLI's args parameter",
    "ignore:\\s*(By default only one|``ArgumentParser.add_inst|skip_none parameter)",  # of Lightning's own calls
)

LM = ROOT / "lm"
INSIDE = ("lightning_inside.py", "torch_inside.py", "lean_imports.py")  # the last: tests/machine/test_lean_imports.py


def changed(library: str, part: str) -> str:
    return f"{library} {version(library)} has changed: {part}; mend lightning_inside.py or torch_inside.py"


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


# --- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_backward(dtype):
    scores = torch.randn(3, 4, 5, dtype=dtype, requires_grad=True)
    probabilities, d_probabilities = scores.softmax(-1), torch.randn(3, 4, 5, dtype=dtype)
    (expected,) = torch.autograd.grad(probabilities, scores, d_probabilities)
    found = torch_inside.softmax_backward(d_probabilities, probabilities.detach())
    assert torch.equal(found, expected), changed("torch", "torch._softmax_backward_data")


def test_packed_product():
    if not torch_inside.has_packed_product(torch.float32):
        assert not torch.backends.mkldnn.is_available(), changed("torch", "torch.ops.mkldnn._linear_pointwise is gone")
        pytest.skip("this torch has no oneDNN")
    x, weight = torch.randn(5, 1, 48), torch.randn(64, 48)
    product = torch_inside.packed_product(weight)(x)
    torch.testing.assert_close(
        product, x @ weight.T, msg=lambda text: changed("torch", f"mkldnn._linear_pointwise: {text}")
    )


def test_openmp_starts_a_team():
    library = torch_inside.openmp()
    if library is None:
        pytest.skip("torch has no GNU OpenMP here")
    seen = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    library.GOMP_parallel(kind(lambda _: seen.append(library.omp_get_num_threads())), None, 1, 0)
    assert seen == [1]


def test_has_packed_product_asks_the_processor():
    assert isinstance(torch_inside.has_packed_product(torch.bfloat16), bool)
    assert torch_inside.has_packed_product(torch.float32) == torch.backends.mkldnn.is_available()


def test_without_memory():
    with torch_inside.without_memory():
        huge = torch.empty(1 << 50, device="cpu")
        assert huge.device.type == "cpu", changed("torch", "FakeTensorMode")
        assert huge.untyped_storage().nbytes() == 4 << 50, changed("torch", "FakeTensorMode")


def test_storage_id():
    tensor, other = torch.zeros(4), torch.zeros(4)
    ids = [torch_inside.storage_id(x) for x in (tensor, tensor[1:], tensor.view(2, 2), other)]
    assert ids[0] == ids[1] == ids[2] != ids[3], changed("torch", "UntypedStorage._cdata")
    with torch_inside.without_memory():
        fake = torch.empty(4)
        assert torch_inside.storage_id(fake) == torch_inside.storage_id(fake[1:]), changed("torch", "fake storages")


def test_inductors_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = torch_inside.inductor_folder()
    assert str(folder) == cache_dir(), changed("torch", "default_cache_dir")  # where it would write
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch_inside.empty_inductor_folder():
        inside = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert inside != tmp_path, changed("torch", "fresh_cache")
        assert inside.is_dir()
    assert not inside.exists(), changed("torch", "fresh_cache keeps its folder")
    torch_inside.forget_compiled()


def test_inductor_compiles_the_way_back_at_once(monkeypatch):
    """Without a compiler: what is asked for is seen before it is done."""
    from torch._dynamo.backends import registry
    from torch._functorch import config

    asked = []

    def backend(graph, inputs):
        asked.append(config.force_non_lazy_backward_lowering)
        return graph

    message = changed("torch", "_dynamo's lookup_backend, or _functorch.config.force_non_lazy_backward_lowering")
    assert callable(registry.lookup_backend("inductor")), message
    assert not config.force_non_lazy_backward_lowering, message
    monkeypatch.setattr(registry, "lookup_backend", lambda name: backend)
    assert torch_inside.run_inductor(len, []) is len
    assert asked == [True], message
    assert not config.force_non_lazy_backward_lowering


def command_line() -> list[str]:
    from torch._inductor import cpp_builder

    options = cpp_builder.CppTorchOptions()
    builder = cpp_builder.CppBuilder(name="kernel", sources="kernel.cpp", output_dir="/tmp", BuildOption=options)
    return shlex.split(builder.get_command_line())


@pytest.mark.parametrize("contract", ["off", "fast"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_gcc_is_called_without_ipa_cp(compiler, contract, monkeypatch, tmp_path):
    """While Inductor compiles, in the command line and in the key of its cache; what the user set stays."""
    from torch._dynamo.backends import registry
    from torch._inductor import config, cpp_builder

    path = tmp_path / compiler
    path.write_text("#!/bin/sh\necho 12.2.0\n")
    path.chmod(0o755)
    message = changed("torch", "the C++ flags of _inductor.config.cpp, or cpp_builder's get_cpp_compiler, is_gcc")
    asked, keys = [], []

    def backend(graph, inputs):
        asked.append(command_line())
        keys.append(config.get_hash())
        return graph

    monkeypatch.setattr(registry, "lookup_backend", lambda name: backend)
    cpp_builder.is_gcc.cache_clear()
    settings = {"cpp.cxx": (str(path),), "cpp.enable_floating_point_contract_flag": contract}
    try:
        with config.patch(settings):
            assert torch_inside.cpp_compiler() == str(path), message
            torch_inside.run_inductor(len, [])
            backend(len, [])
    finally:
        cpp_builder.is_gcc.cache_clear()
    for line in asked:
        assert line[0] == str(path), message
        assert f"-ffp-contract={contract}" in line, message
    assert ["-fno-ipa-cp" in line for line in asked] == [compiler == "g++", False], message
    assert (keys[0] != keys[1]) == (compiler == "g++"), message


def test_without_a_compiler_or_the_setting_nothing_is_changed(monkeypatch):
    """A run on a GPU needs neither."""
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        before = config.get_hash()
        assert torch_inside.cpp_compiler() == "", changed("torch", "cpp_builder.get_cpp_compiler")
        with torch_inside.gcc_without_ipa_cp():
            assert config.get_hash() == before
    with config.patch({"cpp.enable_floating_point_contract_flag": None}), torch_inside.gcc_without_ipa_cp():
        assert config.cpp.enable_floating_point_contract_flag is None


# --- nothing else ----------------------------------------------------------------------------------------------------

DOCUMENTED = ("_foreach_",)  # torch documents these ("Foreach Operations")
OURS = ("lm", "tokenization")


def files() -> list[Path]:
    return [path for path in sorted(LM.rglob("*.py")) if path.name not in INSIDE]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and not name.startswith(DOCUMENTED)


def private_touches(tree: ast.AST) -> list[str]:
    """What a file takes of a library that lies behind an underscore, in the order of the file: x._y, imports, getattr.

    An attribute is the file's own where the file defines a function of that name.
    """
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    own |= {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in own:
            found.append(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in OURS:
            found += [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            found += [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
    return [name for name in found if is_private(name) and name not in ("_asdict", "_exit", "_replace")]  # documented


def test_no_other_file_reaches_into_a_library():
    found = {path.name: touches for path in files() if (touches := private_touches(ast.parse(path.read_text())))}
    assert found == {}, "give each a function in lightning_inside.py or torch_inside.py, with a test here"


def test_no_other_class_overrides_what_is_private():
    """A method with an underscore in a class of ours must not be one of the library's class that it extends."""
    overridden = []
    for path in files():
        name = ".".join(path.relative_to(LM.parent).with_suffix("").parts).removesuffix(".__init__")
        if path.name == "__main__.py":
            continue
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            foreign = [base for base in kind.__mro__[1:] if not base.__module__.startswith(OURS)]
            if kind.__module__ == name:
                mine = [attribute for attribute in vars(kind) if is_private(attribute)]
                overridden += [f"{name}.{kind.__name__}.{x}" for x in mine if any(x in vars(base) for base in foreign)]
    ignored = ("._abc_impl", "._is_protocol")  # Python's own
    assert [name for name in overridden if not name.endswith(ignored)] == []


TOUCHES = {
    "trainer._logger_connector.x": ["_logger_connector"],
    "self._trainer": ["_trainer"],
    "from torch._inductor import utils": ["_inductor"],
    "from jsonargparse import _loaders_dumpers": ["_loaders_dumpers"],
    "import torch._dynamo": ["_dynamo"],
    "hasattr(torch.ops, '_linear')": ["_linear"],
    "class A:\n    def _own(self): self._own()": [],
    "torch._foreach_mul_(x, 2)": [],
    "from lm.model.fast import _spans": [],
    "x.__dict__": [],
}


@pytest.mark.parametrize("source", TOUCHES)
def test_touches_are_found(source):
    assert private_touches(ast.parse(source)) == TOUCHES[source]


@pytest.mark.parametrize("module", [lightning_inside, torch_inside])
def test_every_function_is_documented_and_tested(module):
    tests = Path(__file__).read_text()
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ != module.__name__:
            continue
        assert inspect.getdoc(function), name
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, name
        assert f"inside.{name}" in tests or name == "silence_harmless_warnings", f"{name} has no test here"
