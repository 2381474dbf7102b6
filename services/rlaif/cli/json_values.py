"""What JSON has no form for, as commands print it."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any


def json_value(value: Any) -> Any:
    """For `json.dumps(…, default=json_value)`: enums by their value, times in ISO 8601; TypeError for the rest."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} has no JSON form")
