"""Checkpoints that are whole or absent: written beside their place, checked by digest, then renamed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_pipelines.training.errors import told_when_full

_MANIFEST = "checkpoint.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. `state` is what the training loop needs beside the engine's own files."""

    step: int
    folder: Path
    state: Mapping[str, Any]


def save_checkpoint(
    root: Path,
    *,
    step: int,
    write: Callable[[Path], None],
    state: Mapping[str, Any],
    identity: str,
    keep: int,
    is_first_process: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> None:
    """Writes the checkpoint of a step and drops all but the newest `keep`.

    Every process calls it and `write`, which fills the folder it is given; process 0 makes it a checkpoint.
    `identity` says of which training it is. DiskFullError when there is no room: the checkpoint before stays.
    """
    partial, folder = root / f".{_name(step)}.partial", root / _name(step)
    if is_first_process:
        with told_when_full(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    barrier()
    try:
        with told_when_full(folder):
            write(partial)
            barrier()
            if is_first_process:
                _seal(partial, step=step, state=state, identity=identity)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
                _fsync(root)
        if is_first_process:
            for old in _newest_first(root)[keep:]:
                shutil.rmtree(old)
    except BaseException:
        if is_first_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    barrier()


def latest_checkpoint(root: Path, *, identity: str) -> Checkpoint | None:
    """The newest whole checkpoint of that training; a damaged one, or one of another training, is passed over."""
    for folder in _newest_first(root):
        try:
            return _open(folder, identity=identity)
        except (OSError, ValueError, KeyError) as error:
            _log.warning("checkpoint %s is passed over: %s", folder, error)
    return None


def drop_checkpoints_after(root: Path, *, step: int) -> None:
    """Removes what a training that starts again from `step` will not go on from."""
    for folder in _newest_first(root):
        if _step_of(folder) > step:
            shutil.rmtree(folder)


def checkpointed_steps(root: Path) -> list[int]:
    """Steps that have a checkpoint, newest first."""
    return [_step_of(folder) for folder in _newest_first(root)]


def _open(folder: Path, *, identity: str) -> Checkpoint:
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    if manifest["identity"] != identity:
        raise ValueError("it is of a training with other settings or inputs")
    for name, digest in manifest["files"].items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} is not what was written")
    return Checkpoint(step=int(manifest["step"]), folder=folder, state=manifest["state"])


def _seal(folder: Path, *, step: int, state: Mapping[str, Any], identity: str) -> None:
    names = sorted(str(path.relative_to(folder)) for path in _files(folder))
    files = {name: _sha256(folder / name) for name in names}
    manifest = {"step": step, "identity": identity, "files": files, "state": state}
    (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for path in _files(folder):
        _fsync(path)
    _fsync(folder)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _newest_first(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"), reverse=True) if root.is_dir() else []


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
