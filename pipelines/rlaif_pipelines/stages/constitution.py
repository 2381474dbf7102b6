"""The constitution a run names: a YAML file, or one that is shipped."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rlaif.core.constitution import Constitution, parse_constitution
from rlaif.core.errors import InvalidInputError


def load_constitution(source: str) -> Constitution:
    """The constitution in that file, or the shipped one of that name; InvalidInputError says what is wrong."""
    path, shipped = Path(source), resources.files("rlaif.constitutions")
    try:
        if path.is_file():
            return parse_constitution(path.read_text(encoding="utf-8"), source=source)
        text = shipped.joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        names = sorted(each.name.removesuffix(".yaml") for each in shipped.iterdir() if each.name.endswith(".yaml"))
        raise InvalidInputError(
            f"constitution {source!r} is neither a file nor a shipped constitution; shipped are {', '.join(names)}",
            field="constitution",
        ) from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"constitution {source} is not UTF-8", field="constitution") from None
    return parse_constitution(text, source=source)
