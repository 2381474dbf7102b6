"""The run folder: one live run at a time, and never two runs with different settings in one."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rlaif.cli.inputs import writing
from rlaif.core.errors import InvalidInputError, SettingsError

RUN_FILE: Final = "run.json"
LOCK_FILE: Final = ".lock"
_OURS: Final = (
    RUN_FILE,
    "constitution.yaml",
    "labels.jsonl",
    "ledger.sqlite",
    "ledger.sqlite-wal",
    "ledger.sqlite-shm",
    "models",
    "artifacts",
    "kfp",
    "events.jsonl",
    "stages",
    "services",
    "logs",
    "report.html",
    "report.json",
    "summary.md",
)
_OURS_NUMBERED: Final = re.compile(r"metrics(-\d+)?\.jsonl")
_MAX_NAMED: Final = 4


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the kernel lets go of it however we end. InvalidInputError naming the process that holds it."""
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            raise InvalidInputError(
                f"{folder} is in use by another live run (process {holder}): wait for it, stop it, or give "
                "another --out",
                field="--out",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def check_folder(folder: Path, *, settings: Mapping[str, Any], restart: bool) -> bool:
    """Whether the folder holds this run already, to be continued; raises when it holds something else.

    `settings` are the plain values that run.json would hold. Nothing is written.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"--out {folder}: is a file", field="--out")
    if not (folder / RUN_FILE).is_file():
        _check_only_ours(folder)
        return False
    if restart:
        return False
    try:
        known = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["settings"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{folder / RUN_FILE} cannot be read: give another --out, or begin anew with --restart", field="--out"
        ) from error
    changes = list(_differences(known, settings))
    if changes:
        named = ", ".join(changes[:_MAX_NAMED]) + (
            f" and {len(changes) - _MAX_NAMED} more" if len(changes) > _MAX_NAMED else ""
        )
        raise SettingsError(
            f"{folder} holds a run with other settings ({named}): give a new --out, the same settings to continue "
            "it, or --restart to throw it away",
            field="--out",
        )
    return True


def clear(folder: Path) -> None:
    """Remove what an earlier run wrote; other files stay."""
    for path in [path for path in folder.iterdir() if _is_ours(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_ours(name: str) -> bool:
    return name in _OURS or _OURS_NUMBERED.fullmatch(name) is not None


def _check_only_ours(folder: Path) -> None:
    if not folder.is_dir():
        return
    strange = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name) and path.name != LOCK_FILE)
    if strange:
        raise InvalidInputError(
            f"--out {folder}: holds other files ({', '.join(strange[:_MAX_NAMED])}) and no run; give an empty "
            "or new folder",
            field="--out",
        )


def _differences(known: Any, given: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(known, Mapping) and isinstance(given, Mapping):
        for key in sorted({*known, *given}):
            if prefix or key != "out":
                yield from _differences(known.get(key), given.get(key), f"{prefix}.{key}" if prefix else key)
    elif known != given:
        yield f"{prefix} was {_shown(known)}, now {_shown(given)}"


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
