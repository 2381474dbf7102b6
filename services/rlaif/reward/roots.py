"""From where LoadRewardModel may load: a caller must not have the service read any folder or bucket it can reach."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlaif.core.errors import InvalidInputError

_FILE = "file://"


class AllowedRoots:
    """Folders, URIs and hub ids; what is one of them, or below one, may be loaded."""

    def __init__(self, roots: Iterable[str]) -> None:
        given = sorted({root for root in roots if root})
        # A text such as "org/name" may be a folder or a hub id: it stands for both.
        self._folders = [_folder(root) for root in given if "://" not in root or root.startswith(_FILE)]
        self._prefixes = [root.rstrip("/") for root in given if not _is_local(root)]
        self._shown = ", ".join(given) or "none"

    def check(self, uri: str, *, field: str) -> None:
        """InvalidInputError naming the setting when the URI is not below a root. Links are followed first."""
        if self._is_allowed(uri):
            return
        raise InvalidInputError(
            f"{uri} is outside of the places that reward models may be loaded from ({self._shown}); the setting "
            "allowed_roots of the reward service adds one",
            field=field,
            reason="URI_NOT_ALLOWED",
        )

    def _is_allowed(self, uri: str) -> bool:
        # As loading takes it: a folder where there is one, else a hub id.
        if _is_local(uri) or ("://" not in uri and Path(uri).exists()):
            folder = _folder(uri)
            return any(folder.is_relative_to(root) for root in self._folders)
        if ".." in uri.split("/") or "\\" in uri or "%" in uri:
            return False
        return any(uri == prefix or uri.startswith(f"{prefix}/") for prefix in self._prefixes)


def _is_local(uri: str) -> bool:
    return uri.startswith(("/", ".", "~", _FILE)) or ("://" not in uri and uri.count("/") > 1)


def _folder(uri: str) -> Path:
    return Path(uri.removeprefix(_FILE)).expanduser().resolve()
