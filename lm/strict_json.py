"""Writes JSON that every reader accepts: non-finite numbers, which JSON does not have, become null."""

import json
import math
from typing import Any


def to_json(value: Any, **settings: Any) -> str:
    """Returns json.dumps of the value, with null for NaN and infinities."""
    return json.dumps(_finite(value), allow_nan=False, **settings)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
