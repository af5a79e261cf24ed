"""The settings that a checkpoint records, to be compared with those of a run that resumes, or of another process."""

import json
from typing import Any

from jsonargparse import Namespace

PLACES = {"config", "ckpt_path", "init_from", "allow_changed_data", "trainer.default_root_dir"}  # not of the training


def settings_of(config: Namespace) -> dict[str, Any]:
    """Returns the settings that a checkpoint records, by dotted name, in JSON's types."""
    settings: dict[str, Any] = {}
    for name, value in vars(config).items():
        group = vars(value) if isinstance(value, Namespace) else {}
        settings |= {f"{name}.{inner}": group[inner] for inner in group} or {name: value}
    settings = {name: value for name, value in settings.items() if name not in PLACES}
    plain = json.dumps(settings, default=lambda value: vars(value) if isinstance(value, Namespace) else str(value))
    recorded: dict[str, Any] = json.loads(plain)
    return recorded
