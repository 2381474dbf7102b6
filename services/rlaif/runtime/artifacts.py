"""Files that are whole or absent: atomic writes, digests of model folders, versions of a policy."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.core.errors import CorruptionError, InvalidInputError, NotFoundError

_PICKLED_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_IDENTIFYING_FILES = ("config.json", "*.safetensors", "tokenizer*.json", "chat_template*")
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_FILES = (_ADAPTER_CONFIG, "base.json")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_POLICY_NAME = re.compile(r"policies/[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class PublishedVersion:
    """One version of a policy on shared storage. `uri` is the model folder; `version` counts optimiser steps."""

    policy: str
    version: int
    uri: str
    digest: str


def atomic_write_text(path: Path, text: str) -> None:
    """Replaces the file by `text` as UTF-8: after a crash it holds the old text or the new, never a part."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file by `data`: after a crash it holds the old bytes or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def atomic_write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Puts at `path` the folder that `write` fills: after a crash it is the old one, the new one or absent.

    `write` gets an empty folder beside `path`. A folder already at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        write(temporary)
        _fsync_tree(temporary)
        temporary.chmod(0o755)
        _replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(path.parent)


def folder_digest(path: Path) -> str:
    """SHA-256 that identifies a model folder, 64 lower-case hex digits.

    Taken over the sorted (relative name, SHA-256 of the bytes) of config.json, *.safetensors, tokenizer*.json and
    chat_template*, and of a LoRA adapter's adapter_config.json and base.json; other files do not change what the model
    says.
    """
    if not path.is_dir():
        raise NotFoundError(f"model folder {path} does not exist", metadata=_folder_resource(path))
    names = (*_IDENTIFYING_FILES, *(_ADAPTER_FILES if (path / _ADAPTER_CONFIG).is_file() else ()))
    files = sorted({file for name in names for file in path.glob(name) if file.is_file()})
    if not any(file.suffix == ".safetensors" for file in files):
        pickled = next((file.name for name in _PICKLED_FILES for file in sorted(path.glob(name))), None)
        why = f"; {pickled} is a pickle, which can run code: save them as safetensors" if pickled else ""
        raise InvalidInputError(f"model folder {path} holds no .safetensors file{why}", reason="NO_WEIGHTS")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def version_folder(root: Path, policy: str, *, version: int) -> Path:
    """Where that version's model folder lies."""
    return _policy_folder(root, policy) / "versions" / f"{version:08d}"


def publish_version(root: Path, policy: str, *, version: int, write: Callable[[Path], None]) -> PublishedVersion:
    """Makes the model folder that `write` fills the policy's desired version, and says which that is.

    Samplers see either the version before or this one, whole. Publishing a version again replaces it, so that a
    resumed training may repeat its last step.
    """
    folder = version_folder(root, policy, version=version)
    atomic_write_folder(folder, write)
    published = PublishedVersion(policy=policy, version=version, uri=str(folder), digest=folder_digest(folder))
    desired = {
        "policy": policy,
        "version": version,
        # Relative, so that the store can be mounted elsewhere.
        "uri": str(folder.relative_to(root)),
        "digest": published.digest,
    }
    atomic_write_text(_desired_path(root, policy), json.dumps(desired, indent=2) + "\n")
    return published


def read_desired(root: Path, policy: str) -> PublishedVersion | None:
    """The version every replica should serve; None before the first one is published."""
    path = _desired_path(root, policy)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        desired = json.loads(text)
        return PublishedVersion(
            policy=str(desired["policy"]),
            version=int(desired["version"]),
            uri=str(root / desired["uri"]),
            digest=str(desired["digest"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"{path} is not a published version: {error}") from error


def list_versions(root: Path, policy: str) -> list[int]:
    """Versions of the policy that are there, ascending."""
    folder = _policy_folder(root, policy) / "versions"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def remove_version(root: Path, policy: str, *, version: int) -> None:
    """Removes that version's folder."""
    shutil.rmtree(version_folder(root, policy, version=version))


def remove_policy(root: Path, policy: str) -> None:
    """Removes the policy with all its versions and models; nothing to do where there is none."""
    folder = _policy_folder(root, policy)
    if folder.is_dir():
        shutil.rmtree(folder)


def check_policy_name(policy: str) -> str:
    """The name; InvalidInputError if it is none, or would lead elsewhere."""
    if not _POLICY_NAME.fullmatch(policy):
        raise InvalidInputError(f"policy {policy!r} is not of the form policies/{{run}}", field="policy")
    return policy


def check_model_name(name: str) -> str:
    """The name; InvalidInputError if it is none, or would lead elsewhere."""
    if not _MODEL_NAME.fullmatch(name):
        raise InvalidInputError(f"model name {name!r} is not of letters, digits, '.', '_', '-' and '/'", field="name")
    return name


def _policy_folder(root: Path, policy: str) -> Path:
    return root / check_policy_name(policy)


def _desired_path(root: Path, policy: str) -> Path:
    return _policy_folder(root, policy) / "desired.json"


def _folder_resource(path: Path) -> dict[str, str]:
    return {"resource_type": "model folder", "resource_name": str(path)}


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    # rename(2) cannot replace a folder that holds files.
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")) / "old"
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old.parent)


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            _fsync(Path(folder) / name)
        _fsync(Path(folder))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
