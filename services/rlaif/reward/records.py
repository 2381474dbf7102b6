"""What was last loaded under each name, kept on shared storage: a restart and all other replicas read it there.

{artifact_root}/rewardModels/{id}.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlaif.core.errors import CorruptionError, NotFoundError, UnavailableError
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.recipes import MAX_COMPONENTS, MAX_MEMBERS
from rlaif.runtime.artifacts import atomic_write_bytes
from rlaif.runtime.objects import ObjectStore
from rlaif.runtime.remote_store import scheme_of
from rlaif.runtime.store import is_remote

_MAX_BYTES: Final = 256 * 1024
_COMPONENT: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

Loads = Mapping[str, tuple[ModelIdentity, ...]]
"""Members by the trained component that they were loaded into, all with digests."""


@dataclass(frozen=True)
class LoadRecord:
    """What is to be served under a name."""

    name: str
    """Resource name, "rewardModels/{id}"."""
    loads: Loads


class LoadRecords:
    """Records below one root. Methods block; any thread may call them. A record is whole, or not there."""

    def __init__(self, root: str) -> None:
        self._objects = ObjectStore(scheme_of(root)) if is_remote(root) else None
        self._root = root if self._objects else str(Path(root.removeprefix("file://")).expanduser())

    def read(self, name: str) -> LoadRecord | None:
        """The record of that name, None where nothing was loaded; CorruptionError when it is none.

        UnavailableError, ForbiddenError or UnauthenticatedError where storage does not give it.
        """
        place = self._place(name)
        try:
            data = self._objects.read(place, start=0, end=_MAX_BYTES) if self._objects else _read_file(place)
        except NotFoundError as error:
            if error.reason == "NO_SUCH_BUCKET":
                raise
            return None
        try:
            return _parse(json.loads(data), name=name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptionError(f"{place} does not say what was loaded: {error}", metadata={"uri": place}) from error

    def write(self, record: LoadRecord) -> None:
        """Puts it in the place of the one before; UnavailableError and its like when it cannot."""
        data = (json.dumps(_plain(record), indent=2) + "\n").encode()
        place = self._place(record.name)
        if self._objects is not None:
            self._objects.write(place, data)
            return
        try:
            atomic_write_bytes(Path(place), data)
        except OSError as error:
            raise UnavailableError(
                f"{place} cannot be written, so that no other replica would know what was loaded: {error.strerror}; "
                "with remember_loads the service needs write access below artifact_root"
            ) from error

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}.json"


def _read_file(place: str) -> bytes:
    try:
        with Path(place).open("rb") as file:
            return file.read(_MAX_BYTES)
    except FileNotFoundError as error:
        raise NotFoundError(f"{place} is not there") from error
    except OSError as error:
        raise UnavailableError(f"{place} cannot be read: {error.strerror}") from error


def _plain(record: LoadRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "loads": {
            component: [{"uri": each.uri, "digest": each.digest, "version": each.version} for each in members]
            for component, members in record.loads.items()
        },
    }


def _parse(values: Any, *, name: str) -> LoadRecord:
    if values["name"] != name:
        raise ValueError(f"it is of {values['name']!r}")
    loads = {component: tuple(map(_member, members)) for component, members in values["loads"].items()}
    if not all(map(_COMPONENT.fullmatch, loads)):
        raise ValueError(f"one of {', '.join(loads)} names no component")
    if not 1 <= len(loads) <= MAX_COMPONENTS or not all(1 <= len(each) <= MAX_MEMBERS for each in loads.values()):
        raise ValueError("it names no members, or too many")
    return LoadRecord(name, loads)


def _member(values: Any) -> ModelIdentity:
    digest = str(values["digest"])
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{values['uri']!r} has no digest")
    return ModelIdentity(str(values["uri"]), digest, int(values["version"]))
