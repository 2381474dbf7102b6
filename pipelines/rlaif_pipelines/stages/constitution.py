"""The constitution a run names: a YAML file, or one that is shipped."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rlaif.core.constitution import Constitution, parse_constitution
from rlaif.core.errors import InvalidInputError


def load_constitution(source: str) -> Constitution:
    """The constitution in that file, or the shipped one of that name; InvalidInputError says what is wrong."""
    path = Path(source)
    try:
        if path.is_file():
            return parse_constitution(path.read_text(encoding="utf-8"), source=source)
        text = resources.files("rlaif.constitutions").joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidInputError(
            f"constitution {source!r} is neither a file nor a shipped constitution", field="constitution"
        ) from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"constitution {source} is not UTF-8", field="constitution") from None
    return parse_constitution(text, source=source)
