"""Proves that whatever `lm` is given wrongly gets one line on stderr and exit code 2, and that no file is written or
changed by it; and that every committed configuration is complete and its model can be built."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


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
    ("--model.num_heads=16", "d_k is 1: rotary embeddings turn pairs"),
    ("--model.num_layers=0", "num_layers is 0"),
    ("--model.vocab_size=-5", "vocab_size is -5"),
    ("--model.context_length=0", "context_length is 0"),
    ("--model.d_ff=-1", "d_ff is -1"),
    ("--model.rope_theta=-1", "theta is -1.0"),
    ("--model.learning_rate=-1", "learning_rate is -1.0"),
    ("--model.learning_rate=.nan", "learning_rate is nan"),
    ("--model.min_learning_rate=-1", "min_learning_rate is -1.0"),
    ("--model.warmup_steps=-1", "warmup_steps is -1"),
    ("--model.weight_decay=-1", "weight_decay -1.0"),
    ("--model.eps=-1", "eps -1.0"),
    ("--model.betas=[0.9,1.5]", "betas (0.9, 1.5) must lie in [0, 1)"),
    ("--model.max_gradient_norm=0", "max_gradient_norm is 0.0"),
    ("--model.vocab_size=319", "has 320 tokens, too many for model.vocab_size 319; set --model.vocab_size 320"),
    ("--model.context_length=100000", "too few for a context_length of 100000"),
    ("--data.batch_size=0", "batch_size 0"),
    ("--data.num_workers=-1", "num_workers -1"),
    ("--data.seed=-1", "seed -1"),
    ("--data.train_path=none.bin", "none.bin: no such token file; make it with `tokenization encode"),
    ("--data.val_path=none.bin", "none.bin: no such token file; make it with `tokenization encode"),
    ("--data.tokenizer=none", "none: no such tokenizer folder; make one with `tokenization train`"),
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
    ("--trainer.precision=7", '"trainer.precision"'),
    ("--trainer.accelerator=quantum", "accelerator='quantum'"),
    ("--trainer.devices=0", "devices"),
    ("-c=nowhere.yaml", "nowhere.yaml"),
    ("-c=train.txt", "config: "),
    ("--ckpt_path=nowhere.ckpt", "nowhere.ckpt: no such checkpoint; train with `lm fit`"),
    ("--ckpt_path=last", "last: no such checkpoint"),
]


@pytest.mark.parametrize(("setting", "message"), WRONG_SETTINGS, ids=[setting for setting, _ in WRONG_SETTINGS])
def test_a_wrong_setting(refused, fit_arguments, setting, message):
    line = refused(*fit_arguments("runs/new"), *setting.split("=", 1) if setting[1] == "c" else [setting])
    assert line.startswith("lm fit: ")
    assert message in line
