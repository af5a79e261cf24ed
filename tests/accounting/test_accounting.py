"""Proves the accounting against the handout's numbers, torch's FLOP counter, what autograd really keeps, and runs."""

import itertools
import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import Namespace
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lm.accounting import costs
from lm.accounting.activations import Arrangement, arrange, kept_bytes, make_model
from lm.accounting.costs import (
    PARTS,
    adamw_flops,
    forward_flops,
    handout_activations,
    largest_batch,
    preset,
    state_bytes,
)
from lm.accounting.estimate import not_counted
from lm.experiments.probe import predict, validations_and_saves
from lm.experiments.shares import shares
from lm.machine import resources
from lm.model.fast import speed_up
from lm.model.transformer import TransformerLM
from lm.optim.adamw import AdamW, adamw_update
from lm.optim.muon import Muon

# Presets and editions: parameters, forward FLOPs, and the shares of feed-forward, projections, scores and head in
# percent; those of the handout's analysis (transformer_accounting).
PUBLISHED = [
    ("gpt2-xl", 2025, 2_127_057_600, 4.513e12, (66.9, 22.3, 7.1, 3.6)),
    ("gpt2-xl", 2026, 1_640_452_800, 3.517e12, (57.5, 28.6, 9.2, 4.7)),
    ("gpt2-xl-16k", 2025, 2_127_057_600, 1.495e14, (32.3, 10.8, 55.2, 1.8)),
    ("gpt2-xl-16k", 2026, 1_640_452_800, 1.336e14, (24.2, 12.1, 61.7, 2.0)),
    ("tinystories", 2026, 22_696_448, 9.534e9, None),
]


@pytest.mark.parametrize(("name", "edition", "parameters", "flops", "percent"), PUBLISHED)
def test_published_numbers(name, edition, parameters, flops, percent):
    model = make_model(preset(name, edition))
    forward = forward_flops(model)
    total = sum(forward.values())
    assert sum(costs.parameters_by_part(model).values()) == parameters == model.num_parameters()
    assert total == pytest.approx(flops, rel=2e-4)
    if percent:
        parts = ("feed-forward", "projections", "scores", "head")
        assert [round(100 * forward[part] / total, 1) for part in parts] == list(percent)
    vocab, length, d_model, layers, d_ff = (
        preset(name, edition)[key] for key in ("vocab_size", "context_length", "d_model", "num_layers", "d_ff")
    )
    block = 8 * length * d_model**2 + 4 * length**2 * d_model + 6 * length * d_model * d_ff
    assert total == layers * block + 2 * length * d_model * vocab


def test_the_convention_without_gains_and_head():
    """As the first notes on this model counted."""
    model, long = (make_model(preset(name, 2025)) for name in ("gpt2-xl", "gpt2-xl-16k"))
    counts = costs.parameters_by_part(model)
    assert (counts["norms"], model.num_parameters() - counts["norms"]) == (155_200, 2_126_902_400)
    for other, head, rest in ((model, 1.647e11, 4.349e12), (long, 2.635e12, 1.469e14)):
        flops = forward_flops(other)
        assert flops["head"] == pytest.approx(head, rel=3e-4)
        assert sum(flops.values()) - flops["head"] == pytest.approx(rest, rel=3e-4)


def test_tinystories_without_embeddings():
    counts = costs.parameters_by_part(make_model(preset("tinystories")))
    total = sum(counts.values())
    assert total - counts["embeddings"] == 17_576_448
    assert total - counts["embeddings"] - counts["head"] == 12_456_448
    assert costs.training_flops_per_token(make_model(preset("tinystories"))) == pytest.approx(1.117e8, rel=1e-3)
    silu = make_model({**preset("tinystories"), "feed_forward": "silu", "d_ff": 2048})
    assert silu.num_parameters() == 22_827_520


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_the_optimizers_keep(optimizer):
    """Counted in their state after a step."""
    model = TransformerLM(50, 8, 16, 2, num_heads=2)
    chosen = AdamW(model.parameters(), lr=0.1) if optimizer == "adamw" else Muon(model.named_parameters(), lr=0.1)
    model(torch.arange(8)).sum().backward()
    chosen.step()
    kept = [value for state in chosen.state.values() for value in state.values() if torch.is_tensor(value)]
    numbers = sum(value.numel() for value in kept if value.ndim)
    assert state_bytes(model, optimizer)["optimizer state"] == 4 * numbers


def test_memory_as_the_handout_counts():
    """4 B [L (16 T d + 2 h T^2) + T d + 2 T V] and 16 P bytes in 2025; and the batch that fits."""
    model = make_model(preset("gpt2-xl", 2025))
    length, d_model, heads, layers, vocab = 1024, 1600, 25, 48, 50257
    per_text = 4 * sum(handout_activations(model, 2025).values())
    block = 16 * length * d_model + 2 * heads * length**2
    assert per_text == 4 * (layers * block + length * d_model + 2 * length * vocab)
    fixed = sum(state_bytes(model).values())
    assert (per_text / 1e9, fixed / 1e9) == (pytest.approx(15.518, abs=1e-3), pytest.approx(34.03, abs=5e-3))
    assert [largest_batch(memory, fixed, per_text) for memory in (80e9, 80 * 2**30)] == [2, 3]
    assert largest_batch(fixed / 2, fixed, per_text) == 0
    newer = make_model(preset("gpt2-xl", 2026))
    block = 8 * length * d_model + 2 * heads * length**2 + 4 * length * 4288  # norms 2, attention 5, W2 1
    expected = 4 * (layers * block + length * d_model + 2 * length * vocab)
    assert 4 * sum(handout_activations(newer, 2026).values()) == expected


def test_days_as_the_handout_asks():
    """400,000 steps of 1,024 texts at an MFU of a half."""
    tokens = 4e5 * 1024 * 1024
    old, new = (make_model(preset("gpt2-xl", edition)) for edition in (2025, 2026))
    assert costs.training_seconds(old, tokens, 19.5e12, 0.5) == pytest.approx(5.69e8, rel=1e-3)
    assert costs.training_seconds(old, tokens, 19.5e12, 0.5) / 86400 == pytest.approx(6.58e3, rel=1e-3)
    assert costs.training_seconds(new, tokens, 495e12, 0.5) / 3600 == pytest.approx(4.85e3, rel=1e-3)


class Counting:
    """A number that counts what is computed with it."""

    done = 0

    def __init__(self, value: float):
        self.value = value

    def _operate(self, function, other):
        Counting.done += 1
        return Counting(function(self.value, getattr(other, "value", other)))

    def __add__(self, other):
        return self._operate(lambda a, b: a + b, other)

    def __sub__(self, other):
        return self._operate(lambda a, b: a - b, other)

    def __mul__(self, other):
        return self._operate(lambda a, b: a * b, other)

    def __truediv__(self, other):
        return self._operate(lambda a, b: a / b, other)

    def sqrt(self):
        return self._operate(lambda a, _: math.sqrt(a), 0.0)


def test_adamw_flops_by_counting():
    """The handout's formulas on one parameter, each operation counted; and the result is that of our optimizer."""
    weight, gradient, m, v = (Counting(value) for value in (0.5, 0.3, 0.1, 0.2))
    lr, beta1, beta2, eps, decay, t = 1e-2, 0.9, 0.95, 1e-8, 0.1, 3
    a_t, shrink = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t), lr * decay
    tensors = [torch.tensor([x.value], dtype=torch.float64) for x in (weight, gradient, m, v)]
    m = m * beta1 + gradient * (1 - beta1)
    v = v * beta2 + gradient * gradient * (1 - beta2)
    weight = weight - weight * shrink
    weight = weight - m * a_t / (v.sqrt() + eps)
    assert Counting.done == adamw_flops(1) == 14
    adamw_update(*tensors, t, lr, (beta1, beta2), eps, decay)
    assert weight.value == pytest.approx(tensors[0].item(), rel=1e-12)


SMALL = {"vocab_size": 100, "context_length": 24, "d_model": 32, "num_layers": 3, "num_heads": 4}


@pytest.mark.parametrize("feed_forward", ["swiglu", "silu"])
def test_flops_are_those_that_torch_counts(feed_forward):
    model = make_model({**SMALL, "feed_forward": feed_forward}).to_empty(device="cpu")
    tokens = torch.zeros(2, 25, dtype=torch.int64)
    with FlopCounterMode(display=False) as forward:
        loss = model(tokens[:, :-1], targets=tokens[:, 1:])
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    expected = 2 * sum(forward_flops(model).values())
    assert forward.get_total_flops() == expected
    assert backward.get_total_flops() == 2 * expected
    assert costs.training_flops_per_token(model) * 2 * 24 == 3 * expected


class ProductsOfTorch(TorchDispatchMode):
    """Counts the matrix products that torch computes, by (rows, inner, columns)."""

    def __init__(self):
        super().__init__()
        self.times: Counter = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            left, right = arguments
            self.times[(*left.shape[-2:], right.shape[-1])] += math.prod(left.shape[:-2])
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("feed_forward", ["swiglu", "silu"])
def test_products_are_those_that_torch_computes(feed_forward):
    model = make_model({**SMALL, "feed_forward": feed_forward}).to_empty(device="cpu")
    with torch.no_grad(), ProductsOfTorch() as computed:
        model(torch.zeros(1, 24, dtype=torch.int64))
    counted: Counter = Counter()
    for product, times in costs.matrix_products(model).items():
        counted[product.rows, product.inner, product.columns] += times
    assert counted == computed.times


@pytest.mark.parametrize("norm_position", ["pre", "post", "none"])
@pytest.mark.parametrize("feed_forward", ["swiglu", "silu"])
def test_parameters_by_part_of_a_model_with_weights(norm_position, feed_forward):
    from lm.model.transformer import TransformerLM

    settings = {**SMALL, "norm_position": norm_position, "feed_forward": feed_forward, "vocab_multiple": 64}
    counts = costs.parameters_by_part(make_model(settings))
    d_ff = 64 if feed_forward == "swiglu" else 128
    norms = {"pre": 7, "post": 6, "none": 0}[norm_position] * 32
    products = 3 if feed_forward == "swiglu" else 2
    expected = (128 * 32, norms, 3 * 4 * 32 * 32, 0, 3 * products * 32 * d_ff, 128 * 32)
    assert tuple(counts.values()) == expected
    assert sum(expected) == sum(weight.numel() for weight in TransformerLM(**settings).parameters())
    assert tuple(counts) == PARTS


# --- what is really kept ---------------------------------------------------------------------------------------------


def really_kept(settings: dict, batch_size: int, how: Arrangement) -> int:
    """Bytes of what autograd saves of a real forward pass, parameters and tables excepted, each storage once."""
    model = make_model(settings).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.normal_(tensor, std=0.1)
    if how.fast:
        speed_up(model, how.attention)
    if how.compiled:  # what is kept is decided before code is generated, for which no compiler is needed
        torch._dynamo.reset()
        model.compile(backend="aot_eager_decomp_partition")
    known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor):
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    tokens = torch.randint(settings["vocab_size"], (batch_size, settings["context_length"] + 1))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=how.half),
    ):
        loss = model(tokens[:, :-1], targets=tokens[:, 1:])
    loss.backward()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in known)


VARIANTS = [{}, {"feed_forward": "silu"}, {"norm_position": "post"}, {"norm_position": "none"}]
VARIANTS += [{"position_encoding": "none", "vocab_multiple": 64}]
WAYS = [("plain", False), ("plain", True), ("blocks", True), ("sdpa", True)]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_what_is_kept_is_what_autograd_saves(changes, half):
    settings = {**SMALL, "context_length": 160, **changes}
    for attention, fast in WAYS:
        how = Arrangement(attention, fast, half)
        assert sum(kept_bytes(settings, 2, how).values()) == really_kept(settings, 2, how), how


@pytest.mark.parametrize(
    ("changes", "attention", "half"),
    [({}, "blocks", True), ({"norm_position": "post", "feed_forward": "silu"}, "sdpa", False)],
)
def test_what_is_kept_when_compiled(changes, attention, half):
    settings = {**SMALL, "context_length": 160, "num_layers": 2, **changes}
    how = Arrangement(attention, True, half, compiled=True)
    assert sum(kept_bytes(settings, 2, how).values()) == pytest.approx(really_kept(settings, 2, how), rel=0.01)


def test_recomputing_keeps_one_block_and_what_each_begins_with():
    whole, less = (Arrangement("blocks", True, recompute=recompute) for recompute in (False, True))
    one, three = ({**SMALL, "num_layers": layers} for layers in (1, 3))
    assert kept_bytes(one, 2, less) == kept_bytes(one, 2, whole)
    more = sum(kept_bytes(three, 2, less).values()) - sum(kept_bytes(one, 2, less).values())
    assert more == 2 * 4 * 2 * 24 * 32
    assert sum(kept_bytes(three, 2, less).values()) < sum(kept_bytes(three, 2, whole).values())


def test_arrangement_is_the_one_that_fit_chooses():
    settings = {**SMALL, "fast": True, "attention": "auto", "compile": "auto", "recompute_activations": False}
    assert arrange(settings, "bf16-mixed", 1e4) == Arrangement("blocks", True, True, False)
    assert arrange(settings, "32-true", 1e12) == Arrangement("blocks", True, False, True)
    assert arrange({**settings, "context_length": 2048}, "32-true", 10).attention == "sdpa"
    assert arrange({**settings, "fast": False}, "32-true", 1e12) == Arrangement()


def test_shares_move_to_the_scores_with_the_context():
    settings = preset("gpt2-small")
    short, long = (shares({**settings, "context_length": length}) for length in (128, 16384))
    assert sum(short.values()) == pytest.approx(1)
    assert long["scores"] > 0.5 > 0.1 > short["scores"]
    flops = forward_flops(make_model(settings))
    assert shares(settings) == pytest.approx({part: count / sum(flops.values()) for part, count in flops.items()})


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_on_a_preset(lm):
    result = lm("account", "gpt2-xl", "--edition", 2025, "--device", "A100 fp32", "--tokens", 4e5 * 1024 * 1024)
    assert (result.code, result.err) == (0, "")
    for words in ("2,127,057,600", "2,126,902,400", "4.513e+12", "4.349e+12", "66.9%", "69.4%", "6,584 days"):
        assert words in result.out
    assert "parameters                         8.508     7.924" in result.out
    assert "(1,024 x 1,600) (1,600 x 6,400)" not in result.out
    listed = lm("account", "gpt2-xl", "--edition", 2025, "--products").out
    assert "(1,024 x 1,600) (1,600 x 6,400)      48   1.007e+12  22.3%" in listed
    figures = json.loads(lm("account", "gpt2-xl", "--edition", 2025, "--json").out)
    assert figures["largest_batch"]["handout"] == 2
    assert figures["settings"]["d_ff"] == 6400
    assert sum(figures["training_flops"].values()) == 3 * sum(figures["forward_flops"].values())
    products = {product["name"]: product for product in figures["matrix_products"]}
    assert products["queries by keys"]["times"] == 48 * 25
    assert sum(product["flops"] for product in products.values()) == sum(figures["forward_flops"].values())
    more = json.loads(lm("account", "gpt2-xl", "--edition=2025", "--json", "--memory=80GiB").out)
    assert more["largest_batch"]["handout"] == 3


def test_the_command_on_a_configuration(lm, fit_arguments, tmp_path):
    _, *arguments = fit_arguments(tmp_path / "run", "--model.num_layers=3")
    result = lm("account", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    figures = json.loads(result.out)
    assert sum(figures["parameters"].values()) == 2 * 320 * 16 + 3 * (4 * 16 * 16 + 3 * 16 * 64) + 7 * 16
    assert (figures["batch_size"], figures["arrangement"]) == (8, "float32, attention blocks, fast")
    assert list(tmp_path.iterdir()) == []


def test_what_the_figures_leave_out_is_said(lm):
    settings = ("--trainer.devices=2", "--trainer.precision=64", "--model.optimizer=muon")
    result = lm("account", "gpt2-small", *settings)
    assert (result.code, result.err) == (0, "")
    assert (
        "not counted: trainer.devices 2, trainer.precision 64; the figures are for one process on a CPU" in result.out
    )
    assert "AdamW" not in result.out
    assert json.loads(lm("account", "gpt2-small", *settings, "--json").out)["adamw_flops"] is None
    assert "not counted" not in lm("account", "gpt2-small", "--trainer.precision=32").out
    counted = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "bf16-mixed"}
    assert not_counted(Namespace(**counted)) == []
    others = {"accelerator": "gpu", "num_nodes": 2, "strategy": "fsdp", "precision": "bf16-true"}
    for name, value in others.items():
        assert not_counted(Namespace(**counted | {name: value})) == [f"trainer.{name} {value}"]


def test_a_plot(lm, tmp_path):
    assert lm("account", "gpt2-small", "--plot", tmp_path / "deep/shares.png").code == 0
    assert (tmp_path / "deep/shares.png").read_bytes().startswith(b"\x89PNG")
    wrong = lm("account", "gpt2-small", "--plot", tmp_path / "shares.nothing")
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)


WRONG = [
    ([], "name what to account for"),
    (["gpt3"], "gpt3: no such preset"),
    (["gpt2-xl", "-c", "configs/debug.yaml"], "name what to account for"),
    (["-c", "configs/none.yaml"], "none.yaml"),
    (["gpt2-xl", "--model.num_heads=7"], "d_model 1600 cannot be divided evenly among num_heads 7"),
    (["gpt2-xl", "--model.num_layers=0"], "num_layers is 0"),
    (["gpt2-xl", "--model.num_layers=1000000000"], "num_layers is 1000000000; it can be at most 4,096"),
    (["gpt2-xl", f"--model.d_model={1 << 60}"], "it can be at most 268,435,456"),
    (["gpt2-xl", "--model.depth=3"], "--model.depth"),
    (["gpt2-xl", "--model.num_heads=x"], "Got value: x"),
    (["gpt2-xl", "--memory=much"], "--memory much"),
    (["gpt2-xl", "--memory=0GB"], "--memory 0GB"),
    (["gpt2-xl", "--memory=1.2.3GB"], "--memory 1.2.3GB"),
    (["gpt2-xl", "--device=Z80"], "--device Z80: no such device"),
    (["gpt2-xl", "--device=-1"], "--device -1"),
    (["gpt2-xl", "--mfu=0"], "--mfu 0.0"),
    (["gpt2-xl", "--mfu=1.1"], "--mfu 1.1"),
    (["gpt2-xl", "--tokens=-3"], "--tokens -3.0"),
    (["gpt2-xl", "--tokens=nan"], "--tokens nan"),
    (["gpt2-xl", "--tokens=1e9"], "--tokens 1e+09: is for the time on a device"),
    (["gpt2-xl", "--mfu=0.4"], "--mfu 0.4: is for the time on a device"),
    (["gpt2-xl", "--edition=2024"], "argument --edition"),
    (["gpt2-xl", "--probe"], "--probe: the preset gpt2-xl has no data"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_bad_input(lm, arguments, message):
    result = lm("account", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("lm account: ")
    assert message in result.err
    assert len(result.err.splitlines()) == 1


# --- the probe -------------------------------------------------------------------------------------------------------


def run_settings(steps: int, interval: int, every: int, kept: int | None = None, accumulate: int = 1, limit=None):
    """The part of a configuration that says how long a run is."""
    trainer = SimpleNamespace(
        max_steps=steps, val_check_interval=interval, accumulate_grad_batches=accumulate, limit_val_batches=limit
    )
    checkpoints = SimpleNamespace(every_n_steps=every, keep_every_n_steps=kept)
    sizes = {"data": SimpleNamespace(batch_size=4), "model": SimpleNamespace(context_length=8)}
    return SimpleNamespace(trainer=trainer, checkpoints=checkpoints, **sizes)


def test_validations_and_saves():
    """The run of test_fit.py: validated at 4, 8, 12 and 14, saved at 3, 4, 6, 8, 9, 12 and 14."""
    assert validations_and_saves(run_settings(14, 4, 3)) == (4, 7 + 4)
    assert validations_and_saves(run_settings(14, 8, 3, accumulate=2)) == (4, 7 + 4)
    for steps, interval, every, kept in itertools.product((1, 7, 12), (1, 4), (3, 100), (None, 2)):
        if interval > steps:
            continue
        validated = [step for step in range(1, steps + 1) if step % interval == 0 or step == steps]
        saves = 0
        for step in range(1, steps + 1):
            at_validation = step in validated
            keeps = kept is not None and step % kept == 0
            if at_validation or step % every == 0 or keeps:
                saves += 1 + at_validation + keeps  # last.ckpt, best.ckpt, step-N.ckpt
        assert validations_and_saves(run_settings(steps, interval, every, kept)) == (len(validated), saves)


def test_a_prediction_by_hand():
    seen = {"begun": 14.0, "first_step": 20.0, "steps": [1.0, 3.0], "batches": [0.5], "samples": [7.0]}
    seen |= {"saves": [0.25, 0.75], "over": 100.0}
    found = predict(seen, 10, run_settings(14, 4, 3, accumulate=2, limit=3), started=10.0, ended=101.0)
    validations, saves = validations_and_saves(run_settings(14, 4, 3, accumulate=2))
    assert found["start_seconds"] == 10
    assert found["training_seconds"] == 13 * 2
    assert found["validation_seconds"] == validations * 3 * 0.5
    assert found["saving_seconds"] == validations * 7 + saves * 0.5 + 1
    assert found["seconds"] == sum(found[key] for key in found if key.endswith("_seconds") and "tokens" not in key)
    assert found["tokens_per_second"] == 4 * 8 * 2 / 2
    for limit, batches in ((None, 10), (0.25, 2), (99, 10), (1, 1), (1.0, 10), (3.0, 3), (0, 0)):
        settings = run_settings(14, 4, 3, limit=limit)
        assert predict(seen, 10, settings, 10.0, 101.0)["validation_seconds"] == 4 * batches * 0.5


SHARDED = ("--trainer.strategy=fsdp", "--checkpoints.sharded=true")


@pytest.mark.parametrize("more", [(), pytest.param(SHARDED, marks=pytest.mark.slow)], ids=["one file", "sharded"])
def test_a_probe(more, lm, fit_arguments, tmp_path):
    """Of a run that another `lm fit` then does; nothing is left of it."""
    _, *arguments = fit_arguments(tmp_path / "run", "--trainer.max_steps=12", "--samples.max_new_tokens=0", *more)
    result = lm("account", *arguments, "--probe", "--json")
    assert (result.code, result.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    predicted = json.loads(result.out)["prediction"]
    assert lm("fit", *arguments).code == 0
    newest = [tmp_path / "run/last.ckpt", *(tmp_path / "run").glob("shards/step-12-*/*.pt")]
    size = sum(path.stat().st_size for path in newest)
    assert predicted["checkpoint_bytes"] == pytest.approx(size, rel=0.01)
    assert predicted["peak_bytes"] > 1e8
    assert predicted["steps_probed"] == 9  # not the first two, nor the one after a save
    assert predicted["processor_seconds"] > 0
    assert predicted["seconds"] > predicted["start_seconds"] > predicted["training_seconds"] > 0


@pytest.mark.slow
def test_a_probe_says_what_fit_would_refuse(lm, fit_arguments, tmp_path):
    _, *arguments = fit_arguments(tmp_path / "run", f"--data.train_path={tmp_path / 'none.bin'}")
    for more, message in (("--trainer.devices=2", "trainer.devices is 2"), ("--trainer.max_steps=60", "none.bin")):
        wrong = lm("account", *arguments, "--probe", more)
        assert (wrong.code, wrong.out, len(wrong.err.splitlines())) == (2, "", 1)
        assert message in wrong.err


def test_fit_says_what_it_expects_and_warns(lm, fit_arguments, tmp_path, monkeypatch):
    arguments = fit_arguments(tmp_path / "one", "--trainer.max_steps=1", "--samples.max_new_tokens=0")
    result = lm(*arguments)
    assert (result.code, result.err) == (0, "")
    assert "GB of memory at its peak" in result.out
    monkeypatch.setattr(
        "lm.training.checks.available_memory", lambda: 1_000_000
    )  # enough for the model, and not for the run
    monkeypatch.setattr("lm.training.checks.held_memory", lambda: 0)
    arguments = fit_arguments(tmp_path / "two", "--trainer.max_steps=1", "--samples.max_new_tokens=0")
    result = lm(*arguments)
    assert result.code == 0
    assert result.err.startswith("lm fit: ")
    assert "may be killed; lower data.batch_size" in result.err
    assert len(result.err.splitlines()) == 1


def test_available_memory(tmp_path):
    whole = resources.available_memory(tmp_path)
    for name, text in (("max", "1000000"), ("current", "600000"), ("stat", "anon 5\ninactive_file 100000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert resources.available_memory(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert resources.available_memory(tmp_path) == pytest.approx(whole, rel=0.2)
    assert 0 < resources.held_memory() <= resources.peak_memory()
