"""Where models and versions of policies lie: a folder, or object storage by its URI."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path, PurePath
from typing import Annotated, Any, Final, Protocol

from pydantic import AfterValidator, BeforeValidator

from rlaif.core.errors import CorruptionError, InvalidInputError, SettingsError
from rlaif.runtime import artifacts
from rlaif.runtime.artifacts import PublishedVersion, folder_digest
from rlaif.runtime.objects import check_storage_options

SCHEMES: Final = ("file", "s3", "gs", "gcs", "memory")
"""Of the URIs that are understood; a plain path is one of the machine."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class ArtifactStore(Protocol):
    """Versions of policies, and models, below one root. Methods block; any thread may call them.

    On object storage all raise UnavailableError, ForbiddenError, UnauthenticatedError or NotFoundError (no such
    bucket) within a bounded time, and never leave anything half published.
    """

    @property
    def root(self) -> str:
        """Folder or URI."""

    def publish_version(self, policy: str, *, version: int, write: Callable[[Path], None]) -> PublishedVersion:
        """Makes the model folder that `write` fills the policy's desired version, and says which that is.

        Samplers see either the version before or this one, whole. Publishing a version again replaces it.
        """

    def publish_model(self, policy: str, name: str, *, write: Callable[[Path], Any]) -> tuple[str, str]:
        """(URI, digest) of another model that `write` fills, kept with the policy; a name may have slashes."""

    def read_desired(self, policy: str) -> PublishedVersion | None:
        """The version every replica should serve; None before the first one is published."""

    def list_versions(self, policy: str) -> list[int]:
        """Versions of the policy that are there, ascending."""

    def remove_versions_before(self, policy: str, version: int, *, kept: Collection[int] = ()) -> None:
        """Removes older versions except those kept and the desired one."""

    def remove_policy(self, policy: str) -> None:
        """Removes the policy with all its versions and models."""

    def fetch(self, uri: str, *, digest: str = "") -> Path:
        """The model as a folder of this machine; CorruptionError when it has another digest than the one given."""


def open_store(root: str | Path, *, storage_options: dict[str, Any] | None = None) -> ArtifactStore:
    """The store at a folder or URI. Nothing is read or connected to yet.

    `storage_options` go to the fsspec file system, for example {"endpoint_url": …}; secrets are refused.
    """
    return _open(check_root(str(root)), storage_options)


def fetch_model(uri: str, *, digest: str = "", storage_options: dict[str, Any] | None = None) -> Path:
    """The model at a folder or URI as a folder of this machine, its digest checked.

    CorruptionError when it has another digest than the one given, or than it was published with.
    """
    uri = check_root(uri, field="model")
    return _open(uri, storage_options).fetch(uri, digest=digest)


def local_folder(uri: str, *, digest: str = "") -> Path:
    """Where a model lies on this machine: fetched and checked if it is on object storage, else just its path."""
    return fetch_model(uri, digest=digest) if is_remote(uri) else _local_path(uri)


def list_model_files(uri: str, *, storage_options: dict[str, Any] | None = None) -> tuple[str, ...]:
    """Names of the files of a model on object storage, nothing fetched; NotFoundError where there is none."""
    from rlaif.runtime.remote_store import RemoteStore

    uri = check_root(uri, field="model")
    return RemoteStore(uri, options=storage_options).list_model_files(uri)


def is_remote(uri: str) -> bool:
    """Whether it names object storage, from which models are fetched before use."""
    scheme = _SCHEME.match(uri)
    return scheme is not None and scheme[1] != "file"


def check_root(root: str, *, field: str = "artifact_root") -> str:
    """The root without a trailing slash; InvalidInputError says what is wrong with it."""
    scheme = _SCHEME.match(root)
    if scheme is None:
        return root.rstrip("/") or root
    if scheme[1] not in SCHEMES:
        raise InvalidInputError(
            f"{root}: {scheme[1]}:// is not understood; give a folder or a URI of {', '.join(SCHEMES)}",
            field=field,
        )
    bucket, *folders = root[scheme.end() :].rstrip("/").split("/")
    if scheme[1] != "file" and not bucket:
        raise InvalidInputError(f"{root} names no bucket", field=field)
    if "@" in bucket:
        raise InvalidInputError(
            f"{scheme[1]}://…@…: credentials do not belong in a URI; they come from the environment or mounted files",
            field=field,
        )
    if any(part in (".", "..") for part in (bucket, *folders)) or "?" in root or "#" in root:
        raise InvalidInputError(f"{root} may hold no '..', '?' or '#'", field=field)
    return root.rstrip("/")


def _without_secrets(options: dict[str, Any]) -> dict[str, Any]:
    try:
        return check_storage_options(options)
    except SettingsError as error:
        raise ValueError(error.message) from error


def _open(root: str, storage_options: dict[str, Any] | None) -> ArtifactStore:
    if not is_remote(root):
        return LocalStore(root)
    from rlaif.runtime.remote_store import RemoteStore

    return RemoteStore(root, options=storage_options)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, PurePath) else value


def _checked(root: str) -> str:
    try:
        return check_root(root)
    except InvalidInputError as error:
        raise ValueError(error.message) from error


StorageOptions = Annotated[dict[str, Any], AfterValidator(_without_secrets)]
"""What a file system is told beyond the environment, in settings."""

ArtifactRoot = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked)]
"""Folder or URI in settings."""


class LocalStore:
    """Policies and models below a folder of this machine, or one that is mounted."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._folder = _local_path(root)

    def publish_version(self, policy: str, *, version: int, write: Callable[[Path], None]) -> PublishedVersion:
        """Puts the folder in place, then names it in desired.json."""
        return artifacts.publish_version(self._folder, policy, version=version, write=write)

    def publish_model(self, policy: str, name: str, *, write: Callable[[Path], Any]) -> tuple[str, str]:
        """Puts the folder in place."""
        folder = self._folder / artifacts.check_policy_name(policy) / "models" / artifacts.check_model_name(name)
        artifacts.atomic_write_folder(folder, write)
        return str(folder), folder_digest(folder)

    def read_desired(self, policy: str) -> PublishedVersion | None:
        """What desired.json names."""
        return artifacts.read_desired(self._folder, policy)

    def list_versions(self, policy: str) -> list[int]:
        """Versions of the policy that are there, ascending."""
        return artifacts.list_versions(self._folder, policy)

    def remove_versions_before(self, policy: str, version: int, *, kept: Collection[int] = ()) -> None:
        """Removes older versions except those kept and the desired one."""
        desired = self.read_desired(policy)
        for old in self.list_versions(policy):
            if old < version and old not in kept and (desired is None or old != desired.version):
                artifacts.remove_version(self._folder, policy, version=old)

    def remove_policy(self, policy: str) -> None:
        """Removes the policy with all its versions and models."""
        artifacts.remove_policy(self._folder, policy)

    def fetch(self, uri: str, *, digest: str = "") -> Path:
        """The folder itself."""
        folder = _local_path(uri)
        found = folder_digest(folder)
        if digest and found != digest:
            raise CorruptionError(f"{uri} was published with digest {digest}, its folder has {found}")
        return folder


def _local_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://")).expanduser()
