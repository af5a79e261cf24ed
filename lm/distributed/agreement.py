"""Lists what must be the same for all processes of a run, and the remedy where it is not.

Each process fills a dictionary with what it sees; hosts.py compares them. Paths may differ, as long as the digests of
what lies there do not.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lm.data.datamodule import TokenDataModule
from lm.runs.folder import LOCK
from lm.runs.manifest import read_digest, read_manifest
from lm.runs.recorded_settings import settings_of
from tokenization import InputError
from tokenization.version import own_version

PATHS = ("data.train_path", "data.val_path", "data.tokenizer")  # may differ; their digests may not
CHECKPOINT = "the checkpoint to begin with"
VERSIONS = ("torch", "lightning")
REMEDIES = {CHECKPOINT: "all hosts need the run's folder, so put it on a disk that they share"}
REMEDIES |= dict.fromkeys((*VERSIONS, "this package"), "install the same version on all hosts")
REMEDIES |= dict.fromkeys(PATHS, "copy the same files to all hosts")


def seen_in_training(settings: Namespace, checkpoint: str | None, data: TokenDataModule) -> dict[str, Any]:
    """Returns what every process of a run must find the same, by name.

    checkpoint: the file that the run begins with, if any.
    """
    state = data.state_dict()
    digests = {path: state[f"{path.partition('.')[2].removesuffix('_path')}_sha256"] for path in PATHS}
    return _seen(settings, checkpoint, digests)


def seen_in_validation(settings: Namespace, data: TokenDataModule) -> dict[str, Any]:
    """Returns what every process of `lm validate` must find the same, by name."""
    digests = {PATHS[1]: data.files["validate"].description.data_sha256, PATHS[2]: data.tokenizer.digest}
    return _seen(settings, settings.ckpt_path, digests)


def _seen(settings: Namespace, checkpoint: str | None, digests: dict[str, str]) -> dict[str, Any]:
    seen = {name: version(name) for name in VERSIONS} | {"this package": own_version()}
    seen |= {name: value for name, value in settings_of(settings).items() if name not in PATHS}
    seen[CHECKPOINT] = "none"
    if checkpoint is not None:
        step = read_manifest(checkpoint)["step"]
        seen[CHECKPOINT] = f"{checkpoint}, step {step:,}, digest {read_digest(checkpoint)[:12]}"
    return seen | {path: f"of digest {digest[:12]}" for path, digest in digests.items()}


def check_shared(settings: Namespace) -> None:
    """Raises InputError where sharded checkpoints would go into a folder that is not the first process's.

    The first process has locked it by now.
    """
    folder = Path(settings.trainer.default_root_dir)
    if settings.checkpoints.sharded and not settings.trainer.fast_dev_run and not (folder / LOCK).exists():
        raise InputError(
            f"{folder}: is not the folder that the first process has locked, and each process is to write its shards"
            " there; put it on a disk that all hosts share, or set checkpoints.sharded to false"
        )
