"""The tiny model and the short run of many tests, and how two runs are compared."""

from pathlib import Path

from helpers import ROOT

DEBUG = ROOT / "configs" / "debug.yaml"
TINY: dict[str, object] = {"model.vocab_size": 320, "model.context_length": 16, "model.d_model": 16}
TINY |= {"model.num_heads": 2}
STEPS, INTERVAL = 14, 4
SETTINGS = [f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={INTERVAL}", "--checkpoints.every_n_steps=3"]
LONGER = [
    "--trainer.max_steps=40",
    "--trainer.val_check_interval=10",
    "--checkpoints.every_n_steps=2",
    "--checkpoints.keep_every_n_steps=15",
    "--samples.max_new_tokens=5",
]
ENDLESS = ["--trainer.max_steps=100000", "--trainer.val_check_interval=100000", "--checkpoints.every_n_steps=20"]
TIMED = ("train/tokens_per_second", "train/mfu", "train/peak_memory_gb")  # the curves that a clock decides


def same(a, b) -> bool:
    """Compares two values of any kind, tensors bit for bit."""
    import torch  # here, so that tests without a model start without it

    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_same_run(run: Path, other: Path) -> None:
    """Weights, optimizer and counters of every checkpoint, all curves and all texts: bit for bit."""
    from helpers.events import read_events  # here, like torch above
    from lm.runs.checkpoint import load_checkpoint

    names = {path.name for path in other.glob("*.ckpt")}
    assert {path.name for path in run.glob("*.ckpt")} == names
    for name in names:
        a, b = load_checkpoint(run / name), load_checkpoint(other / name)
        assert a.keys() == b.keys(), name
        assert [key for key in a if not same(a[key], b[key])] == [], name
    (scalars, texts), (expected, expected_texts) = read_events(run), read_events(other)
    for curves in (scalars, expected):
        assert all(curves.pop(tag) for tag in TIMED)
    assert dict(scalars) == dict(expected)
    assert texts == expected_texts


def go_on(run: Path, *settings: object) -> list[object]:
    """The arguments that resume a run from its own config.yaml and last.ckpt, in its own folder."""
    arguments = ["fit", "-c", run / "config.yaml", "--ckpt_path", run / "last.ckpt"]
    return [*arguments, "--trainer.default_root_dir", run, *settings]
