"""This machine's pip configuration, as builds get it: one file, and the folders that it names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

PASSED_ON = (
    "cert",
    "default-timeout",
    "extra-index-url",
    "find-links",
    "index-url",
    "no-index",
    "timeout",
    "trusted-host",
)
LISTS = ("extra-index-url", "find-links", "trusted-host")


def find(folder: Path) -> tuple[Path, list[Path]]:
    """A pip.conf written to `folder`, and the folders of packages and certificates that must be there beside it."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    values: dict[str, str] = {}
    for line in listed.splitlines():
        # global.find-links='…' from files, then :env:.find-links='…', which wins over them.
        name, _, text = line.partition("=")
        key = name.rpartition(".")[2]
        if key in PASSED_ON:
            values[key] = ast.literal_eval(text)
    path = folder / "pip.conf"
    lines = [f"{key} = {' '.join(value.split())}" for key, value in sorted(values.items())]
    path.write_text("\n".join(["[global]", *lines]) + "\n")
    path.chmod(0o600)
    return path, _folders(values)


def _folders(values: dict[str, str]) -> list[Path]:
    found: set[Path] = set()
    for key, value in values.items():
        for word in value.split():
            place = Path(unquote(urlsplit(word).path)) if word.startswith("file:") else Path(word)
            if not place.is_absolute() or not place.exists():
                continue
            # An index lists files that lie beside it; a certificate is one of a folder.
            found.add(place if key == "find-links" and place.is_dir() else place.parent)
    return sorted(found)
