"""Objects on shared storage, through fsspec: every call is bounded in time and fails with one of our errors."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlaif.core.errors import (
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    RlaifError,
    SettingsError,
    UnauthenticatedError,
    UnavailableError,
)

TIMEOUT_VARIABLE: Final = "RLAIF_STORE_TIMEOUT_SECONDS"
"""Longest that one request to a store may take, its retries included; 60 s when unset."""

StorageOptions = Mapping[str, Any]

_EXTRAS: Final = {"s3": "s3fs", "gs": "gcsfs"}
_DEFAULT_TIMEOUT_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 20.0
_S3FS_ATTEMPTS: Final = 2
# An upload is one call for the whole file: on top of a request's time it gets what this rate takes.
_SLOWEST_BYTES_PER_SECOND: Final = 1024 * 1024
_SECRET_NAMES: Final = ("key", "sas", "username")
_SECRET_WORDS: Final = (
    "secret",
    "token",
    "password",
    "passphrase",
    "credential",
    "accesskey",
    "customerkey",
    "privatekey",
)
_MISSING_CODES: Final = ("NoSuchBucket", "NoSuchKey", "NotFound", "404")
_DENIED_CODES: Final = (
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "401",
    "403",
)
_NO_CREDENTIALS: Final = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "RefreshError",
)
_MAX_CAUSE_CHARACTERS: Final = 240

_filesystems: dict[tuple[int, str, str], Any] = {}
_opening = threading.Lock()


@dataclass(frozen=True)
class ObjectInfo:
    """One object under a folder. `tag` changes when its content does; empty where the store has none."""

    name: str
    size_bytes: int
    tag: str


class ObjectStore:
    """Objects of one scheme. Paths are whole URIs; methods block and may be called from any thread.

    All raise NotFoundError, ForbiddenError, UnauthenticatedError or UnavailableError, which name the URI and the cause.
    """

    def __init__(self, scheme: str, *, options: StorageOptions | None = None) -> None:
        self._scheme, self._options = scheme, check_storage_options(options or {})
        self._timeout_seconds = _timeout_seconds()

    def read(self, uri: str, *, start: int, end: int) -> bytes:
        """Bytes `start` up to `end` of an object, fewer where it ends before; one request."""
        return bytes(self._call("cat_file", uri, start=start, end=end))

    def write(self, uri: str, data: bytes) -> None:
        """Makes `data` the object's content, at once: a reader sees the old content or the new."""
        self._call("pipe_file", uri, data)

    def upload(self, file: Path, uri: str) -> None:
        """Makes a local file's bytes the object's content; it is there only once it is whole."""
        seconds = self._timeout_seconds + file.stat().st_size / _SLOWEST_BYTES_PER_SECOND
        self._call("put_file", uri, source=str(file), timeout_seconds=seconds)

    def list_objects(self, folder: str) -> list[ObjectInfo]:
        """All objects below the folder, by their names relative to it; none where there is nothing."""
        try:
            found = self._call("find", folder, detail=True)
        except NotFoundError as error:
            if error.reason == "NO_SUCH_BUCKET":
                raise
            return []
        prefix = self._path(folder) + "/"
        return [
            ObjectInfo(path.removeprefix(prefix), int(info["size"]), _tag(info))
            for path, info in sorted(found.items())
            # Consoles leave empty objects whose names end with a slash where somebody made a folder.
            if path.startswith(prefix) and not path.endswith("/") and info.get("type") != "directory"
        ]

    def list_folders(self, folder: str) -> list[str]:
        """Names of the folders directly below; none where there is nothing."""
        try:
            entries = self._call("ls", folder, detail=True)
        except NotFoundError as error:
            if error.reason == "NO_SUCH_BUCKET":
                raise
            return []
        return sorted(
            entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry.get("type") == "directory"
        )

    def remove(self, folder: str) -> None:
        """Removes the folder with all below it; nothing to do where there is nothing."""
        try:
            self._call("rm", folder, recursive=True)
        except NotFoundError:
            return

    def _path(self, uri: str) -> str:
        return str(self._filesystem()._strip_protocol(uri)).rstrip("/")

    def _call(
        self, name: str, uri: str, *arguments: Any, source: str = "", timeout_seconds: float = 0.0, **options: Any
    ) -> Any:
        filesystem = self._filesystem()
        places = (source, self._path(uri)) if source else (self._path(uri),)
        try:
            if not filesystem.async_impl:
                return getattr(filesystem, name)(*places, *arguments, **options)
            from fsspec.asyn import sync

            return sync(
                filesystem.loop,
                getattr(filesystem, f"_{name}"),
                *places,
                *arguments,
                timeout=timeout_seconds or self._timeout_seconds,
                **options,
            )
        except RlaifError:
            raise
        except Exception as error:  # each library behind fsspec raises its own
            raise _translated(error, uri=uri) from error

    def _filesystem(self) -> Any:
        # One client a process: a forked child must not use its parent's connections.
        key = (os.getpid(), self._scheme, json.dumps(dict(self._options), sort_keys=True))
        with _opening:
            if key not in _filesystems:
                _filesystems[key] = _open_filesystem(self._scheme, self._options)
            return _filesystems[key]


def forget_connections() -> None:
    """Has the next call connect anew, with the environment as it is then."""
    with _opening:
        _filesystems.clear()


def check_storage_options(options: StorageOptions) -> dict[str, Any]:
    """The options; SettingsError for one that looks like a secret, because settings are written to disk and logged."""
    for name in _names(options):
        last = name.rsplit(".", 1)[-1].lower().replace("_", "").replace("-", "")
        if last in _SECRET_NAMES or any(word in last for word in _SECRET_WORDS):
            raise SettingsError(
                f"storage_options.{name} looks like a secret: credentials come from the environment or from mounted "
                "files (AWS_ACCESS_KEY_ID, AWS_SHARED_CREDENTIALS_FILE, GOOGLE_APPLICATION_CREDENTIALS)",
                field="storage_options",
            )
    return dict(options)


def _names(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in _names(value))


def _timeout_seconds() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else _DEFAULT_TIMEOUT_SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"{TIMEOUT_VARIABLE}={text!r} is not a number of seconds above 0", field=TIMEOUT_VARIABLE)
    return seconds


def _open_filesystem(scheme: str, options: StorageOptions) -> Any:
    try:
        import fsspec

        filesystem_class = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = _EXTRAS.get(scheme, "fsspec")
        raise SettingsError(
            f"{scheme}:// needs {package}, which is not installed: pip install 'kube-rlaif[{_extra(scheme)}]'"
        ) from error
    try:
        # Listings are never remembered: others publish and remove while we look.
        filesystem = filesystem_class(use_listings_cache=False, skip_instance_cache=True, **_bounded(scheme, options))
    except Exception as error:
        raise _translated(error, uri=f"{scheme}://") from error
    if scheme == "s3":
        # Its attempts multiply with those of the client below it; five of its own would take half a minute.
        filesystem.retries = _S3FS_ATTEMPTS
    return filesystem


def _extra(scheme: str) -> str:
    return "gcs" if scheme == "gs" else scheme


def _bounded(scheme: str, options: StorageOptions) -> dict[str, Any]:
    """The options with connection timeouts where the caller gave none."""
    if scheme != "s3":
        return dict(options)
    config = {
        "connect_timeout": min(_CONNECT_SECONDS, _timeout_seconds()),
        "read_timeout": min(_READ_SECONDS, _timeout_seconds()),
        "retries": {"total_max_attempts": 2, "mode": "standard"},
    }
    return {**options, "config_kwargs": config | dict(options.get("config_kwargs", {}))}


def _tag(info: Mapping[str, Any]) -> str:
    return str(next((info[name] for name in ("ETag", "etag", "generation", "created") if info.get(name)), ""))


def _translated(error: Exception, *, uri: str) -> RlaifError:
    chain = list(_causes(error))
    codes = [code for each in chain if (code := _code(each))]
    cause = _line(error)
    resource = {"resource_type": "object", "resource_name": uri}
    if any(type(each).__name__ in _NO_CREDENTIALS for each in chain):
        return UnauthenticatedError(f"{uri}: no credentials were found for this store ({cause})")
    if isinstance(error, FileNotFoundError) or any(code in _MISSING_CODES for code in codes):
        if "NoSuchBucket" in codes or "bucket does not exist" in cause.lower():
            return NotFoundError(f"{uri}: the bucket does not exist", reason="NO_SUCH_BUCKET", metadata=resource)
        return NotFoundError(f"{uri} does not exist", metadata=resource)
    if isinstance(error, PermissionError) or any(code in _DENIED_CODES for code in codes) or "Forbidden" in cause:
        return ForbiddenError(f"{uri}: access denied ({cause})")
    if isinstance(error, ValueError) and not codes:
        return InvalidInputError(f"{uri}: {cause}", field="uri")
    if isinstance(error, TimeoutError):
        return UnavailableError(f"{uri}: the store did not answer in time", reason="STORE_TIMEOUT")
    return UnavailableError(f"{uri}: the store cannot be reached ({cause})", reason="STORE_UNAVAILABLE")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, each once."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _code(error: BaseException) -> str:
    """The store's own code, as botocore and gcsfs keep it."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        return str(response.get("Error", {}).get("Code", ""))
    code = vars(error).get("code")
    return str(code) if isinstance(code, int | str) else ""


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_MAX_CAUSE_CHARACTERS] if text else type(error).__name__
