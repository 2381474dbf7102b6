"""The architecture behind what a user calls a model, without a network."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml

from rlaif.core.errors import InvalidInputError, RlaifError
from rlaif.runtime.objects import ObjectStore
from rlaif.runtime.remote_store import scheme_of
from rlaif.runtime.store import is_remote
from rlaif_pipelines.planning.architecture import Architecture

_VARIANT: Final = re.compile(r"-(Instruct|Base|Chat)(-\d{4}|-v\d+(\.\d+)?)?$", re.IGNORECASE)
_BY_HAND: Final = re.compile(r"\w+=[\w.]+(,\w+=[\w.]+)*")
_MAX_CONFIG_BYTES: Final = 4 << 20
_EXAMPLE: Final = (
    "num_hidden_layers=36,hidden_size=4096,num_attention_heads=32,num_key_value_heads=8,intermediate_size=12288,"
    "vocab_size=151936"
)


@dataclass(frozen=True)
class PlannedModel:
    """A model of a plan, and where its sizes come from."""

    name: str
    architecture: Architecture
    source: str


def find_model(name: str, *, option: str) -> PlannedModel:
    """The model of a folder, a URI, a well-known name, the Hugging Face cache, or of sizes given by hand.

    InvalidInputError says how to name one that is found nowhere.
    """
    try:
        return _find(name)
    except InvalidInputError as error:
        raise InvalidInputError(f"{option} {name}: {error.message}", field=option) from None


def _find(name: str) -> PlannedModel:
    if _BY_HAND.fullmatch(name):
        sizes = {key: yaml.safe_load(value) for key, value in (part.split("=") for part in name.split(","))}
        return PlannedModel("sizes by hand", Architecture.from_config(sizes), "given by hand")
    if is_remote(name):
        return _of_remote(name)
    folder = Path(name.removeprefix("file://")).expanduser()
    if folder.is_dir():
        return PlannedModel(folder.name, _of_file(folder / "config.json"), str(folder / "config.json"))
    base = _VARIANT.sub("", name)
    for known, config in known_architectures().items():
        if base.casefold() in (known.casefold(), known.partition("/")[2].casefold()):
            return PlannedModel(name, Architecture.from_config(config), "the built-in table")
    cached = _in_hub_cache(name)
    if cached is not None:
        return PlannedModel(name, _of_file(cached), "the Hugging Face cache")
    close = difflib.get_close_matches(base, known_architectures(), n=1, cutoff=0.7)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise InvalidInputError(
        f"is not known without a network{hint}; give a folder with its config.json, or its sizes by hand: {_EXAMPLE}"
    )


@cache
def known_architectures() -> Mapping[str, Mapping[str, Any]]:
    """Configurations of well-known models, by name."""
    text = resources.files("rlaif_pipelines.planning").joinpath("architectures.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def _of_file(path: Path) -> Architecture:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInputError(f"the folder holds no {path.name}") from None
    except OSError as error:
        raise InvalidInputError(f"{path.name} cannot be read ({error.strerror})") from None
    return _of_config(data)


def _of_remote(uri: str) -> PlannedModel:
    """Of object storage the configuration alone is read."""
    uri = uri.rstrip("/")
    try:
        data = ObjectStore(scheme_of(uri)).read(f"{uri}/config.json", start=0, end=_MAX_CONFIG_BYTES + 1)
    except RlaifError as error:
        raise InvalidInputError(error.message) from None
    return PlannedModel(uri.rpartition("/")[2], _of_config(data), f"{uri}/config.json")


def _of_config(data: bytes) -> Architecture:
    try:
        config = json.loads(data) if len(data) <= _MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InvalidInputError("config.json is no JSON object")
    try:
        return Architecture.from_config(config)
    except InvalidInputError as error:
        raise InvalidInputError(f"config.json {error.message}; give the sizes by hand: {_EXAMPLE}") from None


def _in_hub_cache(name: str) -> Path | None:
    """config.json of a model that was downloaded before; None where there is none, or no such library."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
