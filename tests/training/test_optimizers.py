"""Proves that embedding, head and gains have learning rates of their own under every optimizer: each walks the path of
that optimizer at its rate, and where that is AdamW, the path of torch's; sharded or not. A setting which would have no
effect is refused."""

import math

import pytest
import torch
from helpers.additions import add_lion
from helpers.registries import label
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lm.optim.muon import uses_muon
from lm.training.module import LanguageModel
from lm.training.optimizers import OPTIMIZERS
from tokenization import InputError

SHAPE = {"vocab_size": 40, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2, "qk_norm": True}
SHAPE |= {"bigram_rows": 9, "embedding_skips": True, "value_embeddings": True, "smear": True}
OWN = {"embedding_rate": 0.3, "head_rate": 2.0, "gain_rate": 0.1}
ADAMW = {"betas": (0.9, 0.95), "weight_decay": 0.1, "eps": 1e-20}  # an eps that is nothing, wherever it is added


def made(optimizer="adamw", **settings) -> LanguageModel:
    torch.manual_seed(0)
    used = {name: value for name, value in ADAMW.items() if name in OPTIMIZERS[optimizer][1]}
    return LanguageModel(**SHAPE, **used, optimizer=optimizer, **settings)


def rate_of(name: str) -> float:
    """Written by hand, from the names of the model's parameters."""
    if name.endswith(("ln1.weight", "ln2.weight", "ln_final.weight", "q_norm.weight", "k_norm.weight")):
        return 0.1
    if name.startswith(("model.smear.", "model.skips.")):
        return 0.1
    if name.startswith(("model.token_embeddings.", "model.bigrams.", "model.value_embeddings.")):
        return 0.3
    return {"model.lm_head.weight": 2.0}.get(name, 1.0)


def set_gradients(task, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in task.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


def walk(task, optimizer, learning_rate, way="one by one"):
    """Makes four steps by gradients that are the same for every task."""
    for step in range(4):
        set_gradients(task, step)
        if way == "at once":
            optimizer.take = torch.tensor(True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("rate", 1.0)
        optimizer.step()
    return dict(task.named_parameters())


SETTING_OF = {0.3: "embedding_rate", 2.0: "head_rate", 0.1: "gain_rate", 1.0: "rate"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", ["one by one", "at once"])
def test_each_part_has_its_rate(optimizer, way):
    ours, usual = made(optimizer=optimizer, **OWN), made(optimizer=optimizer)
    ours_made, usual_made = ours.configure_optimizers(), usual.configure_optimizers()
    assert len(ours_made.state_dict()["param_groups"]) == len(usual_made.state_dict()["param_groups"])  # old runs go on
    moved = walk(ours, ours_made, 0.01, way)
    for rate, setting in SETTING_OF.items():
        whole = made(optimizer=optimizer)
        expected = walk(whole, whole.configure_optimizers(), 0.01 * rate, way)
        for name in (name for name in moved if rate_of(name) == rate):
            words = f"optimizer {optimizer}, {setting} {rate}: {name} moves otherwise than by {rate} times the lr"
            torch.testing.assert_close(moved[name], expected[name], rtol=1e-6, atol=1e-7, msg=words)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "normuon"])
@pytest.mark.parametrize("way", ["one by one", "at once"])
def test_the_rates_of_adamw_are_those_of_torchs(optimizer, way):
    ours, theirs = made(optimizer=optimizer, **OWN), made(optimizer=optimizer)
    named = [(n, w) for n, w in theirs.named_parameters() if optimizer == "adamw" or not uses_muon(n, w)]
    torchs = torch.optim.AdamW([{"params": [w], "rate": rate_of(name)} for name, w in named], **ADAMW)
    moved, expected = walk(ours, ours.configure_optimizers(), 0.01, way), walk(theirs, torchs, 0.01)
    for name, _ in named:
        torch.testing.assert_close(moved[name], expected[name], rtol=1e-4, atol=1e-6, msg=f"{optimizer}: {name}")


def test_sharded_parts_have_their_rates():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        whole, sharded = made(**OWN), made(**OWN)
        for module in (*sharded.model.layers, sharded.model):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        ids = torch.arange(8)[None]
        for task in (whole, sharded):
            optimizer = task.configure_optimizers()
            optimizer.param_groups[0]["lr"] = 0.01
            task.model(ids, targets=ids).backward()
            optimizer.step()
        for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(b.full_tensor(), a)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"embedding_rate": 0.0}, "embedding_rate is 0.0; it must be above 0"),
        ({"gain_rate": math.inf}, "gain_rate is inf"),
        ({"head_rate": 2.0, "tie_embeddings": True}, "head_rate is 2.0, but tie_embeddings makes the head"),
        (
            {"muon_iteration": "polar-express"},
            "muon_iteration is polar-express, which has no effect on optimizer adamw",
        ),
        ({"cautious_decay": True}, "cautious_decay is True, which has no effect on optimizer adamw"),
        ({"optimizer": "muon", "muon_iteration": "svd"}, "muon_iteration is 'svd'; it can be jordan, polar-express"),
    ],
    ids=lambda value: label(value) if isinstance(value, dict) else "",
)
def test_what_has_no_effect_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        made(**wrong)


def test_an_optimizer_that_does_not_know_rates_is_refused(monkeypatch):
    add_lion(monkeypatch)
    monkeypatch.setattr("helpers.additions.Lion.take", None, raising=False)
    made(optimizer="lion")
    with pytest.raises(InputError, match="optimizer lion has one learning rate for all: its class, Lion, has no `rate"):
        made(optimizer="lion", head_rate=2.0)
