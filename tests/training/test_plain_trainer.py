"""Proves that LanguageModel is an ordinary LightningModule: any Trainer trains it on any loader of (inputs, targets),
without `lm fit`, token files or a tokenizer; and that it loads from every checkpoint of ours."""

import math

import pytest
import torch
from helpers import FIXTURES
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lm.model.layers import Linear
from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import load_model
from lm.training import fast_path
from lm.training.module import LanguageModel
from tokenization import InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:Be aware that when using `ckpt_path`, callbacks",
)

SHAPE = {"vocab_size": 50, "context_length": 16, "d_model": 16, "num_layers": 1, "num_heads": 2}
OLD = FIXTURES / "old_run" / "run" / "last.ckpt"


def loader(rows: int = 64, batch_size: int = 8) -> DataLoader:
    """Each token is followed by the next greater one."""
    inputs = (torch.arange(16) + torch.arange(rows)[:, None]) % 50
    return DataLoader(TensorDataset(inputs, (inputs + 1) % 50), batch_size=batch_size)


def trainer(**settings) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", **quiet | {"enable_model_summary": False} | settings)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(precision, optimizer):
    torch.manual_seed(0)
    model = LanguageModel(**SHAPE, learning_rate=0.02, warmup_steps=2, max_steps=40, optimizer=optimizer)
    fitted = trainer(max_steps=40, precision=precision, log_every_n_steps=10)
    fitted.fit(model, loader())
    assert fitted.global_step == 40
    assert fitted.callback_metrics["train/loss"] < math.log(50) / 2
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_its_validation_is_the_mean_over_all_tokens():
    """The last batch is smaller, and counts by its tokens; bits per byte need a text, and there is none."""
    torch.manual_seed(0)
    model, fitted = LanguageModel(**SHAPE), trainer(max_steps=4, num_sanity_val_steps=2)
    fitted.fit(model, loader(), loader(rows=11, batch_size=4))
    inputs, targets = loader(rows=11).dataset.tensors
    with torch.no_grad():
        expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    validated = trainer()
    (metrics,) = validated.validate(model, loader(rows=11, batch_size=4), verbose=False)
    by_hand = {"val/loss": expected, "val/perplexity": math.exp(expected)}
    new = sorted(metrics.keys() - by_hand.keys())
    assert not new, f"a validation reports {', '.join(new)}: compute it over all tokens in by_hand, in this test"
    assert metrics == pytest.approx(by_hand, rel=1e-5)


class Doubled(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_has_been_validated_is_arranged_anew_for_training(monkeypatch):
    compiled = []
    monkeypatch.setattr(TransformerLM, "compile", lambda self, backend: compiled.append(backend))
    monkeypatch.setattr(fast_path, "why_not_compiled", lambda device: "")
    model = LanguageModel(**SHAPE, compile=True)
    for what, times in (("validate", 0), ("fit", 1), ("validate", 1), ("fit", 1)):
        getattr(trainer(max_steps=1), what)(model, loader())
        assert (len(compiled), model.arrangement.endswith("compiled")) == (times, times == 1)
    other = LanguageModel(**SHAPE, compile=False)
    trainer().validate(other, loader(), verbose=False)
    other.model.layers[0].ffn.w1.__class__ = Doubled
    with pytest.raises(InputError, match="the fast path does not support Doubled"):
        trainer(max_steps=1).fit(other, loader())


def test_what_has_been_validated_in_shards_is_trained_in_them():
    model = LanguageModel(**SHAPE, compile=False)
    for what in ("validate", "fit"):
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend="gloo")
        getattr(trainer(max_steps=1, strategy=strategy, devices=1), what)(model, loader())
    assert all(isinstance(weight, DTensor) for weight in model.parameters())


def test_a_validation_that_fails_leaves_no_average_behind():
    """Training goes on with its own weights, whatever the trainer does next."""
    torch.manual_seed(0)
    model = LanguageModel(**SHAPE, ema_decay=0.9, learning_rate=0.01, warmup_steps=1)
    trainer(max_steps=4).fit(model, loader())
    weights = [weight.detach().clone() for weight in model.parameters()]
    averages = [average.clone() for average in model.average.others]
    too_long = DataLoader([(IDS.repeat(1, 3),) * 2], batch_size=None)
    for _ in range(2):
        with pytest.raises(InputError, match="longer than the model's context_length"):
            trainer().validate(model, too_long)
    seen = []
    model.model.ln_final.register_forward_hook(lambda norm, *_: seen.append(norm.weight.detach().clone()))
    trainer().validate(model, loader(rows=8), verbose=False)
    assert torch.equal(seen[-1], dict(zip(model.average.weights, averages, strict=True))[model.model.ln_final.weight])
    with pytest.raises(InputError, match="longer than the model's context_length"):
        trainer().validate(model, too_long)
    trainer(max_steps=0).fit(model, loader())
    assert all(map(torch.equal, model.parameters(), weights))


def test_lightnings_own_checkpoint_and_logger(tmp_path):
    """By epochs; the model that comes back is the one that was trained, and trains on."""
    torch.manual_seed(0)
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True)
    model = LanguageModel(**SHAPE)
    settings = {"logger": True, "enable_checkpointing": True, "default_root_dir": tmp_path, "log_every_n_steps": 5}
    trainer(max_epochs=2, callbacks=[keep], **settings).fit(model, loader(), loader(rows=8))
    (tmp_path / "kept" / "epoch=1-step=16.ckpt").stat()
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "kept" / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    further = trainer(max_epochs=3)
    further.fit(loaded, loader(), ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert further.global_step == 24


def test_it_loads_from_an_old_checkpoint_and_trains_on():
    loaded, ours = LanguageModel.load_from_checkpoint(OLD), load_model(OLD)
    assert (loaded.hparams["max_steps"], loaded.hparams["d_ff"]) == (30, 32)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), ours.parameters(), strict=True))
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens), ours(tokens))
    fitted = trainer(max_steps=2)
    fitted.fit(loaded, loader())
    assert fitted.global_step == 2


@torch.no_grad()
def test_it_loads_from_an_imported_checkpoint(lm, tmp_path):
    assert lm("export", OLD.parent, "--format", "hf", "--output", tmp_path / "hf").code == 0
    assert lm("import", tmp_path / "hf", "--output", tmp_path / "again").code == 0
    (path,) = (tmp_path / "again").glob("*.ckpt")
    loaded, tokens = LanguageModel.load_from_checkpoint(path), torch.arange(16)[None]
    torch.testing.assert_close(loaded(tokens), load_model(OLD)(tokens), rtol=1e-4, atol=1e-4)


IDS = torch.zeros(2, 8, dtype=torch.int64)
WRONG = {
    "no pair": (IDS, "a batch is a Tensor; it must be a pair of tensors, (inputs, targets)"),
    "a dictionary": ({"input_ids": IDS}, "a batch is a dict; it must be a pair of tensors"),
    "three": ((IDS, IDS, IDS), "a batch is a list of Tensor, Tensor, Tensor; it must be"),
    "numbers": ((IDS.float(), IDS), "the inputs of a batch are torch.float32; they must be token ids, torch.int64"),
    "short numbers": ((IDS, IDS.int()), "the targets of a batch are torch.int32; they must be"),
    "one dimension": ((IDS[0], IDS[0]), "the inputs of a batch are (8,), its targets (8,); both must be (batch, seq)"),
    "shapes": ((IDS, IDS[:, 1:]), "the inputs of a batch are (2, 8), its targets (2, 7); both must be (batch, seq)"),
    "nothing": ((IDS[:0], IDS[:0]), "the inputs of a batch are (0, 8), its targets (0, 8); both must be"),
    "too long": ((IDS.repeat(1, 3),) * 2, "are (2, 24), longer than the model's context_length 16"),
    "unknown": ((IDS + 50, IDS), "the inputs of a batch hold the token id 50; those of a model with vocab_size 50 are"),
    "ignored": ((IDS, IDS - 100), "the targets of a batch hold the token id -100; those of a model with"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_wrong_batch_is_refused_in_one_line(what, stage):
    batch, words = WRONG[what]
    with pytest.raises(InputError) as refused:
        getattr(trainer(max_steps=1), stage)(LanguageModel(**SHAPE), DataLoader([batch], batch_size=None))
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
