"""What a log says of how it ended."""

from __future__ import annotations

import json


def last_telling_line(log: str) -> str:
    """The last line that says something; of a JSON line its message; empty when none does."""
    for line in reversed(log.splitlines()):
        if any(character.isalnum() for character in line):
            return _message(line.strip())
    return ""


def _message(line: str) -> str:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return line
    return str(event.get("message", line)) if isinstance(event, dict) else line
