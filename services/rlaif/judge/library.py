"""The constitutions a judge can apply."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rlaif.core.constitution import Constitution, parse_constitution
from rlaif.core.errors import InvalidInputError, NotFoundError, SettingsError
from rlaif.judge.inline import read_inline_constitution
from rlaif.v1 import judge_service_pb2

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


class ConstitutionLibrary:
    """Constitutions by resource name."""

    def __init__(self, constitutions: Sequence[Constitution]) -> None:
        self._by_name: dict[str, Constitution] = {}
        for constitution in sorted(constitutions, key=lambda each: each.name):
            if constitution.name in self._by_name:
                raise SettingsError(f"two constitutions have the id {constitution.constitution_id!r}")
            self._by_name[constitution.name] = constitution

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each constitution by its name."""
        return {name: constitution.sha256 for name, constitution in self._by_name.items()}

    def get(self, name: str, *, field: str = "constitution") -> Constitution:
        """The constitution of that name; NotFoundError says which there are."""
        if not name:
            raise InvalidInputError(
                'the name of a constitution, "constitutions/{constitution}", is required', field=field
            )
        if name not in self._by_name:
            raise NotFoundError(
                f"no constitution {name!r}; there are {', '.join(self._by_name)}",
                field=field,
                metadata={"resource_type": "rlaif.v1.Constitution", "resource_name": name},
            )
        return self._by_name[name]

    def resolve(self, name: str, inline: judge_service_pb2.Constitution | None) -> Constitution:
        """The constitution that a request names or brings along."""
        if inline is None:
            return self.get(name)
        if name:
            raise InvalidInputError(
                "name a constitution or bring one along, not both", field="inline_constitution", reason="AMBIGUOUS"
            )
        brought = read_inline_constitution(inline)
        known = self._by_name.get(brought.name)
        if known is not None and known.sha256 != brought.sha256:
            raise InvalidInputError(
                f"{brought.name} is another constitution of this service; give yours another name",
                field="inline_constitution.name",
                reason="NAME_TAKEN",
            )
        return brought

    def page(self, *, page_size: int, page_token: str) -> tuple[list[Constitution], str]:
        """One page in name order and the token of the next, empty on the last."""
        if page_size < 0:
            raise InvalidInputError(f"{page_size} is below 0", field="page_size")
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        last = _decode(page_token) if page_token else ""
        rest = [constitution for name, constitution in self._by_name.items() if name > last]
        return rest[:size], _encode(rest[size - 1].name) if len(rest) > size else ""


def load_library(sources: Sequence[str]) -> ConstitutionLibrary:
    """Constitutions from YAML files or shipped names; SettingsError names the source that is wrong."""
    return ConstitutionLibrary([_load(source) for source in sources])


def _load(source: str) -> Constitution:
    try:
        if "/" in source or source.endswith((".yaml", ".yml")):
            text = Path(source).read_text(encoding="utf-8")
        else:
            text = resources.files("rlaif.constitutions").joinpath(f"{source}.yaml").read_text(encoding="utf-8")
        return parse_constitution(text, source=source)
    except FileNotFoundError as error:
        raise SettingsError(
            f"no constitution file or shipped constitution {source!r}", field="constitutions"
        ) from error
    except OSError as error:
        raise SettingsError(
            f"constitution {source!r} cannot be read: {error.strerror}", field="constitutions"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"constitution {source!r} is not UTF-8", field="constitutions") from error
    except InvalidInputError as error:
        raise SettingsError(error.message, field="constitutions") from error


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _decode(token: str) -> str:
    try:
        name = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidInputError("the page token was not made by this service", field="page_token") from error
    if not name.startswith("constitutions/"):
        raise InvalidInputError("the page token was not made by this service", field="page_token")
    return name
