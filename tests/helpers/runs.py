"""The tiny model and the short run of many tests, and how two runs are compared."""

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
