"""Proves that a model that starts with bigrams predicts what plain counting predicts, as far as its rank goes, and that
a run counts its text once: not when it goes on, nor on weights that it is given."""

import itertools
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import same
from lightning import Trainer

from lm.data.datamodule import TokenDataModule
from lm.model.bigram_start import STRENGTH, start_with_bigrams
from lm.model.initialization import start_small
from lm.model.transformer import NORM_POSITIONS, TransformerLM
from lm.runs.checkpoint import load_checkpoint
from lm.training.first_weights import begin_with_bigrams
from lm.training.module import LanguageModel
from tokenization import InputError, TokenFile

SHAPE = {"vocab_size": 30, "context_length": 8, "num_layers": 2, "num_heads": 2}


def text(size: int) -> torch.Tensor:
    """A walk on which each token has its own successors; token 29 never occurs."""
    generator, tokens = torch.Generator().manual_seed(0), [0]
    for _ in range(size):
        tokens.append((3 * tokens[-1] + int(torch.randint(5, (), generator=generator) ** 2)) % 29)
    return torch.tensor(tokens)


def started(tokens: torch.Tensor, covered: float, d_model: int, **settings) -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(**SHAPE, d_model=d_model, **settings)
    start_small(model, zero_outputs=True, head_factor=1.0)
    start_with_bigrams(model, tokens, covered)
    return model


def counted(tokens: list[int]) -> torch.Tensor:
    """The table P(j | i), by counting alone."""
    frequencies = [(tokens.count(j) + 1) / (len(tokens) + 30) for j in range(30)]
    pairs = list(itertools.pairwise(tokens))
    rows = []
    for i in range(30):
        together = [pairs.count((i, j)) for j in range(30)]
        rows.append(
            [(c + STRENGTH * p) / (sum(together) + STRENGTH) for c, p in zip(together, frequencies, strict=True)]
        )
    return torch.tensor(rows)


@pytest.mark.parametrize("norm_position", NORM_POSITIONS)
def test_with_rank_enough_it_is_the_table(norm_position):
    tokens = text(3000)
    model = started(tokens, 1.0, 64, norm_position=norm_position, vocab_multiple=32)
    chances = model(torch.arange(30)[:, None])[:, 0].softmax(-1)
    torch.testing.assert_close(chances, counted(tokens.tolist()), rtol=1e-3, atol=1e-5)


def test_with_less_it_is_between_the_unigrams_and_the_table():
    tokens = text(3000)
    model = started(tokens, 0.97, 16)
    loss = model(tokens[None, :8], targets=tokens[None, 1:9])
    assert loss.isfinite()
    losses = torch.nn.functional.cross_entropy(model(tokens[:-1, None])[:, 0], tokens[1:]).item()
    table = torch.nn.functional.cross_entropy(counted(tokens.tolist()).log()[tokens[:-1]], tokens[1:]).item()
    unigrams = torch.nn.functional.cross_entropy(
        (torch.bincount(tokens, minlength=30) + 1.0).log().expand(3000, 30), tokens[1:]
    ).item()
    assert table < losses < (table + unigrams) / 2
    lengths = model.token_embeddings.weight.square().mean(dim=1)
    torch.testing.assert_close(lengths, torch.ones(30))  # which no norm changes


def test_it_is_the_same_each_time_and_leaves_all_else():
    torch.manual_seed(0)
    drawn, state = TransformerLM(**SHAPE, d_model=16), torch.get_rng_state()
    one, other = started(text(200), 0.97, 16), started(text(200), 0.97, 16)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b, before in zip(one.named_parameters(), other.parameters(), drawn.parameters(), strict=True):
        assert torch.equal(a, b)
        begins = name.startswith(("token_embeddings", "lm_head")) or name.endswith(("output_proj.weight", "w2.weight"))
        assert torch.equal(a, before) != begins


def test_hardly_any_text():
    model = started(torch.tensor([3, 4]), 0.97, 16)
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert model(torch.tensor([[3]])).argmax() == 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"zero_init": False}, "set zero_init"),
        ({"head_init": 0.5}, "leave head_init out"),
        ({"tie_embeddings": True}, "needs a head of its own"),
        ({"d_model": 2, "num_heads": 1}, "needs a d_model of at least 3, not 2"),
    ],
)
def test_what_cannot_start_so_is_refused(wrong, words):
    with pytest.raises(ValueError, match=f"bigram_init is True, .*{words}"):
        LanguageModel(**SHAPE | {"d_model": 16, "zero_init": True} | wrong, bigram_init=True)


def test_a_run_counts_its_text_once(lm, fit_arguments, token_data, tmp_path):
    start = ("--model.zero_init=true", "--model.bigram_init=true", "--trainer.val_check_interval=2")
    run, first = tmp_path / "run", "starts with the bigrams of "
    done = lm(*fit_arguments(run, "--trainer.max_steps=4", "--checkpoints.keep_every_n_steps=2", *start))
    assert done.code == 0, done.err
    assert f"{first}{len(TokenFile.open(token_data / 'train.bin')):,} training tokens" in done.out
    resumed = shutil.copytree(run, tmp_path / "resumed")
    (resumed / "last.ckpt").unlink()
    where = (f"--ckpt_path={resumed / 'step-2.ckpt'}", f"--trainer.default_root_dir={resumed}")
    done = lm("fit", "-c", run / "config.yaml", *where)
    assert (done.code, first in done.out) == (0, False), done.err
    a, b = (load_checkpoint(folder / "last.ckpt") for folder in (run, resumed))
    assert all(same(a[key], b[key]) for key in ("state_dict", "optimizer_states"))
    still = ("--model.learning_rate=0", "--model.min_learning_rate=0", "--trainer.max_steps=1")
    done = lm(*fit_arguments(tmp_path / "given", *start[:2], *still, f"--init_from={run / 'last.ckpt'}"))
    assert (done.code, first in done.out) == (0, False), done.err
    assert same(load_checkpoint(tmp_path / "given" / "last.ckpt")["state_dict"], a["state_dict"])
    sharded = lm(*fit_arguments(tmp_path / "fsdp", *start[:2], "--trainer.strategy=fsdp", "--trainer.max_steps=1"))
    assert sharded.code == 2
    assert "model.bigram_init makes whole weights, which trainer.strategy fsdp has cut" in sharded.err


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_model_that_has_been_validated_still_starts_with_bigrams(token_data, capsys):
    """Once: not when it is trained further, nor on weights from a checkpoint."""
    paths = (str(token_data / name) for name in ("train.bin", "valid.bin", "tok"))
    data, shape = TokenDataModule(*paths, 8, 320, batch_size=4), SHAPE | {"vocab_size": 320, "d_model": 16}
    model = LanguageModel(**shape, zero_init=True, bigram_init=True, learning_rate=0, min_learning_rate=0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    for what, said in (("validate", False), ("fit", True), ("fit", False)):
        trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=1, enable_model_summary=False, **quiet)
        getattr(trainer, what)(model, datamodule=data)
        assert ("starts with the bigrams of " in capsys.readouterr().out) == said, what
    task = SimpleNamespace(model=TransformerLM(**shape), data=data, device_mesh=None, global_rank=1)
    start_small(task.model, zero_outputs=True, head_factor=1.0)
    begin_with_bigrams(task)
    assert torch.equal(model.model.lm_head.weight, task.model.lm_head.weight)
    assert LanguageModel(**shape).starts_anew
    model.on_load_checkpoint({})
    assert not model.starts_anew


def test_loaders_without_a_token_file_are_refused():
    with pytest.raises(InputError, match=r"model\.bigram_init counts a token file"):
        begin_with_bigrams(SimpleNamespace(data=None))
