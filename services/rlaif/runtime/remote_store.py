"""Models on object storage: published under paths that never change, listed by a manifest, fetched through the cache.

    {root}/policies/{run}/desired.json                              which version replicas should serve; replaced last
    {root}/policies/{run}/versions/00000003/{content}/manifest.json its files with sizes and SHA-256; written after them
    {root}/policies/{run}/versions/00000003/{content}/…             the model's files

`content` is the beginning of the manifest's SHA-256: publishing other files under a version leaves those that somebody
is fetching where they are.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlaif.core.errors import CorruptionError, InvalidInputError, NotFoundError
from rlaif.runtime.artifact_cache import ArtifactCache, RemoteFile, is_held
from rlaif.runtime.artifacts import PublishedVersion, check_model_name, check_policy_name, folder_digest
from rlaif.runtime.objects import ObjectStore, StorageOptions

MANIFEST_NAME: Final = "manifest.json"

_DESIRED_NAME: Final = "desired.json"
_MODEL_FILES: Final = re.compile(
    r"[\w-][\w.-]*\.(json|jinja|model|safetensors)|chat_template[\w.-]*|merges\.txt|vocab\.txt"
)
_PICKLED: Final = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)")
_SAFE_NAME: Final = re.compile(r"[\w-][\w.-]{0,254}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CONTENT_LENGTH: Final = 32
_MAX_DESIRED_BYTES: Final = 64 * 1024
_MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
_MAX_REMEMBERED: Final = 16

_fetched: dict[tuple[str, str], Path] = {}
_remembering = threading.Lock()


@dataclass(frozen=True)
class _Listing:
    """What a model folder on the store consists of; `digest` is empty where nobody wrote it down."""

    files: tuple[RemoteFile, ...]
    digest: str


class RemoteStore:
    """Policies and models below a URI of object storage."""

    def __init__(self, root: str, *, options: StorageOptions | None = None) -> None:
        self.root = root.rstrip("/")
        self._objects = ObjectStore(scheme_of(root), options=options)

    def publish_version(self, policy: str, *, version: int, write: Callable[[Path], None]) -> PublishedVersion:
        """Uploads the folder that `write` fills, then makes it the policy's desired version."""
        place, digest = self._upload(f"{check_policy_name(policy)}/versions/{version:08d}", write)
        desired = {"policy": policy, "version": version, "uri": place, "digest": digest}
        self._objects.write(f"{self.root}/{policy}/{_DESIRED_NAME}", _json(desired))
        return PublishedVersion(policy=policy, version=version, uri=f"{self.root}/{place}", digest=digest)

    def publish_model(self, policy: str, name: str, *, write: Callable[[Path], Any]) -> tuple[str, str]:
        """(URI, digest) of the uploaded folder that `write` fills."""
        place, digest = self._upload(f"{check_policy_name(policy)}/models/{check_model_name(name)}", write)
        return f"{self.root}/{place}", digest

    def read_desired(self, policy: str) -> PublishedVersion | None:
        """The version every replica should serve; None before the first one is published."""
        uri = f"{self.root}/{check_policy_name(policy)}/{_DESIRED_NAME}"
        try:
            data = self._objects.read(uri, start=0, end=_MAX_DESIRED_BYTES)
        except NotFoundError as error:
            if error.reason == "NO_SUCH_BUCKET":
                raise
            return None
        try:
            desired = json.loads(data)
            place, digest = str(desired["uri"]), str(desired["digest"])
            if not _is_below(place, f"{policy}/versions"):
                raise ValueError(f"it names {place!r}, which is no version of {policy}")
            return PublishedVersion(
                policy=policy, version=int(desired["version"]), uri=f"{self.root}/{place}", digest=digest
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"{uri} is not a published version: {error}") from error

    def list_versions(self, policy: str) -> list[int]:
        """Versions of the policy that are there, ascending."""
        names = self._objects.list_folders(f"{self.root}/{check_policy_name(policy)}/versions")
        return sorted(int(name) for name in names if name.isdigit())

    def remove_versions_before(self, policy: str, version: int, *, kept: Collection[int] = ()) -> None:
        """Removes older versions except those kept and the desired one."""
        desired = self.read_desired(policy)
        for old in self.list_versions(policy):
            if old < version and old not in kept and (desired is None or old != desired.version):
                self._objects.remove(f"{self.root}/{policy}/versions/{old:08d}")

    def remove_policy(self, policy: str) -> None:
        """Removes the policy with all its versions and models."""
        self._objects.remove(f"{self.root}/{check_policy_name(policy)}")

    def fetch(self, uri: str, *, digest: str = "") -> Path:
        """The model's files in this machine's cache, checked against its manifest and, if given, the digest."""
        known = (uri, digest)
        with _remembering:
            path = _fetched.get(known) if digest else None
        if path is not None and is_held(path):
            return path
        listing = self._list(uri)
        wanted = digest or listing.digest
        if listing.digest and listing.digest != wanted:
            raise _mismatch(uri, expected=wanted, found=listing.digest)

        def check(folder: Path) -> None:
            found = folder_digest(folder)
            if wanted and found != wanted:
                raise _mismatch(uri, expected=wanted, found=found)

        path = ArtifactCache.of_environment().fetch(
            uri,
            listing.files,
            read=lambda name, start, end: self._objects.read(f"{uri}/{name}", start=start, end=end),
            check=check,
        )
        with _remembering:
            _fetched[known] = path
            while len(_fetched) > _MAX_REMEMBERED:
                _fetched.pop(next(iter(_fetched)))
        return path

    def list_model_files(self, uri: str) -> tuple[str, ...]:
        """Names of the model's files; NotFoundError where there are none, InvalidInputError if they are pickles."""
        return tuple(file.name for file in self._list(uri).files)

    def _upload(self, place: str, write: Callable[[Path], Any]) -> tuple[str, str]:
        """(path below the root, digest) of the folder that `write` fills."""
        with ArtifactCache.of_environment().outgoing() as folder:
            write(folder)
            digest = folder_digest(folder)
            files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_NAME)
            for path in files:
                _check_publishable(path)
            manifest = _json({"digest": digest, "files": [_described(path) for path in files]})
            place = f"{place}/{hashlib.sha256(manifest).hexdigest()[:_CONTENT_LENGTH]}"
            for path in files:
                self._objects.upload(path, f"{self.root}/{place}/{path.name}")
            self._objects.write(f"{self.root}/{place}/{MANIFEST_NAME}", manifest)
        return place, digest

    def _list(self, uri: str) -> _Listing:
        try:
            data = self._objects.read(f"{uri}/{MANIFEST_NAME}", start=0, end=_MAX_MANIFEST_BYTES)
        except NotFoundError as error:
            if error.reason == "NO_SUCH_BUCKET":
                raise
            return self._list_objects(uri)
        return _parse_manifest(uri, data)

    def _list_objects(self, uri: str) -> _Listing:
        """The model's files of a folder that was copied there without a manifest."""
        found = self._objects.list_objects(uri)
        for each in found:
            if not _is_below(each.name, ""):
                raise CorruptionError(f"{uri} lists a file {each.name!r}, which would lie outside the model's folder")
        files = tuple(
            RemoteFile(each.name, each.size_bytes, tag=each.tag) for each in found if _MODEL_FILES.fullmatch(each.name)
        )
        return _checked(uri, _Listing(files, digest=""), names=[each.name for each in found])


def scheme_of(uri: str) -> str:
    """Part of a URI before "://", with gcs written as gs; empty for a path."""
    scheme, separator, _ = uri.partition("://")
    return ("gs" if scheme == "gcs" else scheme) if separator else ""


def _parse_manifest(uri: str, data: bytes) -> _Listing:
    try:
        manifest = json.loads(data)
        files = tuple(_parse_file(each) for each in manifest["files"])
        listing = _Listing(tuple(file for file in files if _MODEL_FILES.fullmatch(file.name)), str(manifest["digest"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"{uri}/{MANIFEST_NAME} does not list a model's files: {error}") from error
    return _checked(uri, listing, names=[file.name for file in files])


def _parse_file(entry: dict[str, Any]) -> RemoteFile:
    file = RemoteFile(str(entry["name"]), int(entry["size_bytes"]), str(entry["sha256"]))
    if not _SAFE_NAME.fullmatch(file.name):
        raise ValueError(f"{file.name!r} is no file name")
    if file.size_bytes < 0 or not _SHA256.fullmatch(file.sha256):
        raise ValueError(f"{file.name} has no size or SHA-256")
    return file


def _checked(uri: str, listing: _Listing, *, names: Sequence[str]) -> _Listing:
    if not names:
        raise NotFoundError(f"{uri} holds nothing", metadata={"resource_type": "model folder", "resource_name": uri})
    if any(file.name.endswith(".safetensors") for file in listing.files):
        return listing
    pickled = next((name for name in names if _PICKLED.fullmatch(name)), None)
    if pickled:
        raise InvalidInputError(
            f"{uri} holds weights only as pickle ({pickled}), which can run code; save them as safetensors",
            field="model",
        )
    raise InvalidInputError(f"{uri} holds no weights (*.safetensors)", field="model", reason="NO_WEIGHTS")


def _check_publishable(path: Path) -> None:
    if _PICKLED.fullmatch(path.name):
        raise InvalidInputError(f"{path.name} is a pickle, which can run code; save it as safetensors", field="model")
    if not _SAFE_NAME.fullmatch(path.name):
        raise InvalidInputError(
            f"{path.name!r} cannot be published: a file's name is of letters, digits, '.', '_' and '-'", field="model"
        )


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"name": path.name, "size_bytes": path.stat().st_size, "sha256": sha256}


def _is_below(place: str, folder: str) -> bool:
    """Whether a relative path stays inside `folder`."""
    parts = place.split("/")
    return place.startswith(f"{folder}/" if folder else "") and not any(part in ("", ".", "..") for part in parts)


def _mismatch(uri: str, *, expected: str, found: str) -> CorruptionError:
    return CorruptionError(f"{uri} was published with digest {expected}, its files have {found}", metadata={"uri": uri})


def _json(value: Any) -> bytes:
    return f"{json.dumps(value, indent=2)}\n".encode()
