"""What users hand in, checked before anything is started or written: one sentence names what is wrong and where."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rlaif.cli.exits import DiskFullError, disk_full_error
from rlaif.core.constitution import Constitution, parse_constitution
from rlaif.core.errors import InvalidInputError, NotFoundError
from rlaif.runtime.store import is_remote, list_model_files

PLAYGROUND: Final = "playground"
"""The built-in models, prompts and constitution."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_NEEDED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Model:
    """A model the user named: a folder, a URI of object storage or a hub id; `local` if it needs no hub."""

    uri: str
    local: bool


@dataclass(frozen=True)
class ConstitutionChoice:
    """A constitution the user named; `source` is the file, or the name of a shipped one."""

    source: str
    constitution: Constitution


def find_model(value: str, *, option: str, playground: Path) -> Model:
    """The model behind an option: the shipped one, a complete folder, one of object storage, or a hub id."""
    if value == PLAYGROUND:
        return _check_model_folder(playground, option=option)
    if is_remote(value):
        return _check_remote_model(value, option=option)
    folder = Path(value).expanduser()
    if folder.exists():
        return _check_model_folder(folder, option=option)
    if _looks_like_path(value) or not _HUB_ID.fullmatch(value):
        raise InvalidInputError(
            f"{option} {value}: there is no such folder; give a model folder or a Hugging Face id", field=option
        )
    return Model(uri=value, local=False)


def find_constitution(value: str, *, option: str = "--constitution") -> ConstitutionChoice:
    """The constitution behind an option: a YAML file, or a shipped one by name."""
    path = Path(value).expanduser()
    if _looks_like_path(value) or path.suffix in (".yaml", ".yml") or path.is_file():
        return ConstitutionChoice(str(path.resolve()), parse_constitution(read_text_file(path, option), source=value))
    shipped = shipped_constitutions()
    if value not in shipped:
        raise InvalidInputError(
            f"{option} {value}: there is no such file and no shipped constitution of that name; shipped are "
            f"{', '.join(sorted(shipped)) or 'none'}",
            field=option,
        )
    return ConstitutionChoice(value, parse_constitution(shipped[value].read_text(encoding="utf-8"), source=value))


def check_space(folder: Path, *, needed_bytes: int = _NEEDED_BYTES) -> None:
    """DiskFullError if the disk that would hold `folder` has less than a run needs."""
    parent = next(place for place in (folder, *folder.parents) if place.is_dir())
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise DiskFullError(
            f"the disk is full: {parent} has {free_bytes / 1e6:.0f} MB free and a run needs "
            f"{needed_bytes / 1e6:.0f} MB; free some space or choose another --out"
        )


def _check_model_folder(folder: Path, *, option: str) -> Model:
    if not folder.is_dir():
        raise InvalidInputError(f"{option} {folder}: is a file, not a model folder", field=option)
    _check_model_files([path.name for path in folder.iterdir() if path.is_file()], place=str(folder), option=option)
    return Model(uri=str(folder.resolve()), local=True)


def _check_remote_model(uri: str, *, option: str) -> Model:
    try:
        names = list_model_files(uri)
    except (InvalidInputError, NotFoundError) as error:
        raise InvalidInputError(f"{option} {error.message}", field=option) from error
    _check_model_files(names, place=uri, option=option)
    return Model(uri=uri.rstrip("/"), local=True)


def _check_model_files(names: Sequence[str], *, place: str, option: str) -> None:
    problems = []
    if "config.json" not in names:
        problems.append("no config.json")
    if not any(name in names for name in _TOKENIZER_FILES):
        problems.append("no tokenizer (tokenizer.json)")
    if not any(name.endswith(".safetensors") for name in names):
        problems.append("no weights (*.safetensors)")
    if problems:
        raise InvalidInputError(
            f"{option} {place}: has {' and '.join(problems)}; save model and tokenizer there with save_pretrained",
            field=option,
        )


def read_text_file(path: Path, option: str) -> str:
    """The text of a file that the user named; InvalidInputError says what is wrong with it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InvalidInputError(f"{option} {path}: there is no such file", field=option) from error
    except OSError as error:
        raise InvalidInputError(f"{option} {path}: cannot be read ({error.strerror})", field=option) from error
    if not data.strip():
        raise InvalidInputError(f"{option} {path}: the file is empty", field=option)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(
            f"{option} {path}:{line}: is not UTF-8 text; convert the file first", field=option
        ) from error


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """What cannot be written in the block, to a place that the user named, is told so; a full disk stays what it is."""
    try:
        yield
    except OSError as error:
        if disk_full_error(error) is not None:
            raise
        raise InvalidInputError(f"{option} {path}: cannot be written ({error.strerror})", field=option) from error


def shipped_constitutions() -> dict[str, Path]:
    """Files of the constitutions that ship with the product, by name."""
    import rlaif.constitutions

    folder = Path(next(iter(rlaif.constitutions.__path__)))
    return {path.stem: path for path in folder.glob("*.yaml")}


def _looks_like_path(value: str) -> bool:
    return value.startswith((".", "~", os.sep)) or value.count("/") > 1 or value.endswith("/")
