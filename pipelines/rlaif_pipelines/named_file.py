"""A file that a user named by an option, read without trusting its size."""

from __future__ import annotations

from pathlib import Path

from rlaif.core.errors import InvalidInputError


def read_text(path: Path, *, option: str, most_bytes: int) -> str:
    """The file's text; InvalidInputError says why there is none: also of a device or pipe that never ends."""
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise InvalidInputError(f"{option} {path}: cannot be read ({error.strerror})", field=option) from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{option} {path}: is not UTF-8 text", field=option) from None
    if len(data) > most_bytes:
        raise InvalidInputError(f"{option} {path}: is longer than {most_bytes:,} bytes", field=option)
    return text
