"""JSON that every reader takes: numbers that are not finite, which JSON does not have, are written as null."""

import json
import math
from typing import Any


def to_json(value: Any, **settings: Any) -> str:
    """json.dumps, with null for NaN and the infinities."""
    return json.dumps(_finite(value), allow_nan=False, **settings)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
