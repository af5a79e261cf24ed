"""Proves that the contracts hold off what they are for. Three additions are right in the plain model and unknown to the
rest: the product refuses each by name wherever it would be ignored; and where somebody only declares that a part
supports it, or that an optimizer skips a step or uses a setting, the contract of that part fails; and so does that of
a fourth, an export that ignores its dtype. A fifth, a metric, needs no more than its entry."""

import pytest
import torch
from helpers.additions import Lion, add_accuracy, add_alibi, add_grouped_queries, add_lion, add_npz
from helpers.contracts import (
    Broken,
    cached_is_plain,
    counted_is_measured,
    exported_in_the_dtype,
    exported_is_the_model,
    fast_is_plain,
    kept_is_measured,
    loaded_is_saved,
    make,
    one_row_is_plain,
    tokens,
    ways,
)
from helpers.models import LLAMA, SHAPE, save_run
from helpers.optimizer_contracts import bad_steps_are_skipped, counted_is_kept, each_setting_counts
from helpers.registries import EXAMPLES, WIDE, all_values, combinations, few
from lightning import Trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lm.accounting import costs
from lm.accounting.activations import Arrangement
from lm.accounting.costs import forward_flops, parameters_by_part, state_bytes
from lm.commands.export import FORMATS
from lm.generation import decoding, one_row
from lm.generation.decoding import CachedReader
from lm.generation.one_row import can_read_one_row
from lm.generation.program import obstacle
from lm.interchange import llama
from lm.interchange.llama import llama_settings
from lm.model import fast
from lm.model.fast import speed_up
from lm.model.layers import SwiGLU
from lm.model.transformer import TransformerLM
from lm.training.module import LanguageModel
from lm.training.optimizers import OPTIMIZERS
from tokenization import InputError, TokenFile

PARTS = (fast.SUPPORT, decoding.SUPPORT, one_row.SUPPORT, costs.SUPPORT, llama.SUPPORT)
ADDITIONS = {"bigram_rows": None, "embedding_skips": False, "value_embeddings": False, "smear": False}
PLAIN = combinations()[0] | ADDITIONS  # what every part supports
ALIBI, GROUPED = PLAIN | {"position_encoding": "alibi"}, PLAIN | {"num_kv_heads": 1}
REFUSING = {
    "the fast path": lambda model: speed_up(model, "blocks"),
    "generation with a cache": lambda model: CachedReader(model, 1, torch.float32),
    "the accounting of parameters": parameters_by_part,
    "the accounting": forward_flops,
    "export as a Llama": llama_settings,
}


@pytest.fixture
def alibi(monkeypatch):
    add_alibi(monkeypatch)
    return ALIBI


@pytest.fixture
def grouped(monkeypatch):
    add_grouped_queries(monkeypatch)
    return GROUPED


def declare(monkeypatch, name, *values):
    """Claims that every part supports a setting."""
    for part in PARTS:
        monkeypatch.setitem(part.options, name, (*part.options.get(name, ()), *values))


def new_folder(folder, name):
    (folder / name).mkdir()
    return folder / name


# --- what the product does -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", REFUSING)
def test_a_new_position_encoding_is_refused(part, alibi):
    model = make(alibi)
    ids = tokens(alibi)[:, :-1]
    assert (model(ids) - make(PLAIN | {"position_encoding": "none"})(ids)).abs().max() > 0.01  # it does something
    with pytest.raises(InputError, match=f"^{part}.* does not support position_encoding alibi, only rope"):
        REFUSING[part](model)


@pytest.mark.parametrize("part", REFUSING)
def test_a_new_setting_is_refused(part, grouped):
    assert make(grouped).num_parameters() < make(PLAIN).num_parameters()
    with pytest.raises(InputError, match=f"^{part}.* does not support num_kv_heads 1, only None"):
        REFUSING[part](make(grouped))
    REFUSING[part](make(PLAIN))  # which is as it was


def test_the_kernel_for_one_row_leaves_them_to_torch(alibi, grouped):
    for settings in (alibi, grouped):
        assert not can_read_one_row(make(settings | WIDE), torch.float32)
    assert can_read_one_row(make(PLAIN | WIDE), torch.float32) == (not obstacle())


@pytest.mark.parametrize("part", REFUSING)
def test_a_module_of_ones_own_is_refused(part):
    class Gated(SwiGLU):
        def forward(self, x):
            return 2 * super().forward(x)

    model = make(PLAIN)
    model.layers[1].ffn.__class__ = Gated
    with pytest.raises(InputError, match=f"^{part}.* does not support Gated, the model's layers.1.ffn"):
        REFUSING[part](model)


def test_no_command_computes_another_model(alibi, lm, token_data, tmp_path):
    save_run(tmp_path / "run", token_data, position_encoding="alibi")
    for arguments in (["generate"], ["test", token_data / "valid.bin"], ["export", "--output", tmp_path / "new"]):
        done = lm(arguments[0], tmp_path / "run", *arguments[1:])
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert "does not support position_encoding alibi" in done.err
    assert not (tmp_path / "new").exists()


def test_a_new_optimizer_is_refused(monkeypatch):
    add_lion(monkeypatch)
    with pytest.raises(InputError, match="optimizer lion would train on numbers that are not finite: its class, Lion"):
        LanguageModel(**PLAIN, optimizer="lion")
    with pytest.raises(InputError, match="does not know what optimizer lion keeps, only adamw or muon"):
        state_bytes(make(PLAIN), "lion")


def test_a_new_metric_is_measured_everywhere(monkeypatch, lm, token_data, tmp_path):
    """Over all tokens, though the last batch is smaller."""
    add_accuracy(monkeypatch)
    model = save_run(tmp_path / "run", token_data)
    lines = lm("test", tmp_path / "run", token_data / "valid.bin").out.splitlines()
    ids = torch.from_numpy(TokenFile.open(token_data / "valid.bin").tokens.astype("int64"))
    pieces = [ids[start : start + 33] for start in range(0, len(ids) - 1, 32)]
    right = [model(piece[:-1]).argmax(dim=-1) == piece[1:] for piece in pieces]
    assert f"accuracy       {torch.cat(right).float().mean().item():.4f}" in lines
    task, whole = LanguageModel(**PLAIN), torch.arange(11 * 7).view(11, 7) % PLAIN["vocab_size"]
    batches = [(rows[:, :-1], rows[:, 1:]) for rows in whole.split(4)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", **quiet)
    (found,) = trainer.validate(task, DataLoader(batches, batch_size=None), verbose=False)
    expected = (task.model(whole[:, :-1]).argmax(dim=-1) == whole[:, 1:]).float().mean().item()
    assert found["val/accuracy"] == pytest.approx(expected)


# --- what the contracts do -------------------------------------------------------------------------------------------


def test_registries_grow_by_themselves(monkeypatch):
    add_alibi(monkeypatch)
    assert any(settings["position_encoding"] == "alibi" for settings in few())
    add_grouped_queries(monkeypatch)
    with pytest.raises(LookupError, match="no example value for the new setting num_kv_heads"):
        combinations()
    monkeypatch.setitem(EXAMPLES, "num_kv_heads", (None, 1))
    assert all_values()["num_kv_heads"] == (None, 1)
    assert {settings["num_kv_heads"] for settings in few()} == {None, 1}


def test_contracts_fail_where_a_part_refuses(alibi):
    for check, arguments in {
        fast_is_plain: [ways()],
        cached_is_plain: [],
        counted_is_measured: [],
        kept_is_measured: [Arrangement()],
    }.items():
        with pytest.raises(Broken, match="does not support position_encoding alibi"):
            check(alibi, *arguments)


def test_a_plain_model_that_fails_is_blamed_itself(monkeypatch):
    """And not whatever is compared with it."""
    monkeypatch.setattr(TransformerLM, "forward", lambda *_, **__: 1 / 0)
    for check, arguments in {fast_is_plain: [ways()], cached_is_plain: []}.items():
        with pytest.raises(Broken, match=r"^lm/model/transformer\.py: .* division by zero"):
            check(PLAIN, *arguments)


def test_an_export_may_refuse_by_name(alibi, grouped, small, tmp_path):
    for settings in (alibi, grouped):
        exported_is_the_model(settings, "hf", small, tmp_path)


def test_alibi_that_is_only_declared(alibi, monkeypatch, small, tmp_path):
    declare(monkeypatch, "position_encoding", "alibi")
    for way in ways():
        if way["attention"] != "plain":
            with pytest.raises(Broken, match=r"^lm/model/fast\.py: .*not close"):
                fast_is_plain(alibi, [way])
    with pytest.raises(Broken, match=r"^lm/generation/decoding\.py: .*not close"):
        cached_is_plain(alibi)
    if not obstacle():
        with pytest.raises(Broken, match=r"^lm/generation/one_row\.py: .*not close"):
            one_row_is_plain(alibi)
    for form in ("hf", "gguf"):
        with pytest.raises(Broken, match=r"^lm/interchange/: .*not close"):
            exported_is_the_model(alibi, form, small, new_folder(tmp_path, form))


def test_grouped_queries_that_are_only_declared(grouped, monkeypatch, small, tmp_path):
    declare(monkeypatch, "num_kv_heads", None, 1)
    fast_is_plain(grouped, ways())  # which needs no more
    with pytest.raises(Broken, match=r"^lm/generation/decoding\.py: .*unflatten"):
        cached_is_plain(grouped)
    if not obstacle():
        with pytest.raises(Broken, match=r"^lm/generation/one_row\.py: "):
            one_row_is_plain(grouped)
    with pytest.raises(Broken, match=r"^lm/accounting/costs\.py: .* forward, .* counted"):
        counted_is_measured(grouped)
    with pytest.raises(Broken, match=r"^lm/runs/checkpoint\.py: .*num_kv_heads"):
        loaded_is_saved(grouped, tmp_path)
    for form in ("hf", "gguf"):
        with pytest.raises(Broken, match=r"(?s)^lm/interchange/: .*(mismatch|shape)"):
            exported_is_the_model(grouped, form, small, new_folder(tmp_path, form))


def test_lion_that_only_seems_to_skip_and_to_use_each_setting(monkeypatch):
    class Careless(Lion):
        take = None

    add_lion(monkeypatch, Careless)
    with pytest.raises(Broken, match=r"^the optimizer: .*lion has changed weights or state, on_a_gpu True"):
        bad_steps_are_skipped(PLAIN, "lion", float("nan"))
    with pytest.raises(Broken, match=r"^lm/accounting/costs\.py: .*does not know what optimizer lion keeps"):
        counted_is_kept(PLAIN, "lion")
    each_setting_counts(PLAIN, "lion", "betas", (0.5, 0.6))
    with pytest.raises(
        Broken, match=r"^lm/training/optimizers\.py: .*eps 0\.5 changes no step of lion; leave it out of"
    ):
        each_setting_counts(PLAIN, "lion", "eps", 0.5)
    make, of_adamw = OPTIMIZERS["lion"]
    monkeypatch.setitem(OPTIMIZERS, "lion", (make, set(of_adamw) - {"eps"}))
    each_setting_counts(PLAIN, "lion", "eps", 0.5)


def test_a_new_format_needs_a_reader(monkeypatch, small, tmp_path):
    monkeypatch.setitem(FORMATS, "onnx", FORMATS["hf"])
    with pytest.raises(Broken, match=r"^lm/interchange/: .*no way to read the new format onnx"):
        exported_is_the_model(PLAIN, "onnx", small, tmp_path)


def test_an_export_that_ignores_its_dtype(monkeypatch, small, tmp_path):
    add_npz(monkeypatch)
    exported_in_the_dtype(LLAMA | SHAPE, "npz", "fp32", small, tmp_path)
    with pytest.raises(Broken, match=r"(?s)^lm/interchange/, FORMATS in .*export\.py: .*npz in fp16: .*not close"):
        exported_in_the_dtype(LLAMA | SHAPE, "npz", "fp16", small, tmp_path)


def test_a_sharded_model_is_known():
    """fully_shard puts classes of its own in the place of ours."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, mesh = make(PLAIN), init_device_mesh("cpu", (1,))
        for module in (*model.layers, model):
            fully_shard(module, mesh=mesh)
        assert forward_flops(model) == forward_flops(make(PLAIN))
    finally:
        torch.distributed.destroy_process_group()
