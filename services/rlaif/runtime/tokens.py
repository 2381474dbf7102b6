"""Bearer tokens as their SHA-256 and roles, and the YAML file that lists them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from rlaif.core.errors import SettingsError
from rlaif.runtime.roles import Role
from rlaif.runtime.settings import SettingsModel, parse_yaml

_MAX_TOKENS = 1000
# Scanners for leaked secrets look for a beginning they know.
_PREFIX = "rlaif_"

Roles = Annotated[frozenset[Role], Field(min_length=1)]


class Token(SettingsModel):
    """One row of the file. Two rows may have one name: that is how a token is replaced without a gap."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")
    """Who holds it, as the ledger will say: letters, digits and . _ @ -, at most 63."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the token, 64 lower-case hexadecimal digits."""
    roles: Roles
    """What it may do."""


_RULES = {
    "name": "name must be 1 to 63 letters, digits and . _ @ -, beginning with a letter or digit",
    "sha256": "sha256 must be 64 lower-case hexadecimal digits (rlaif token new makes them)",
    "roles": f"roles must list at least one of {', '.join(Role)}",
}
_ROWS = TypeAdapter(Annotated[list[Token], Field(max_length=_MAX_TOKENS)])


@dataclass(frozen=True)
class NewToken:
    """A token just made: the only time it can be read."""

    token: str
    row: Token


def new_token(name: str, *, roles: Iterable[Role]) -> NewToken:
    """A token of 256 random bits; SettingsError when the name or roles are not allowed."""
    token = _PREFIX + secrets.token_urlsafe(32)
    return NewToken(token, describe_token(token, name=name, roles=roles))


def describe_token(token: str, *, name: str, roles: Iterable[Role]) -> Token:
    """The row of a token that exists already."""
    try:
        return Token(name=name, sha256=sha256(token).hex(), roles=frozenset(roles))
    except ValidationError as error:
        raise SettingsError(_explain(error), field=str(error.errors()[0]["loc"][0])) from None


def parse_tokens(content: bytes, *, source: str) -> tuple[Token, ...]:
    """The rows of a file; SettingsError, which repeats none of its values, when it is not such a list."""
    values = parse_yaml(content, source=source, secret=True)
    if not isinstance(values, list):
        raise SettingsError(f"{source} must hold a list of name, sha256 and roles ([] for no token)")
    try:
        rows = _ROWS.validate_python(values)
    except ValidationError as error:
        # Without its cause, whose text would repeat what may be a token written in the wrong place.
        raise SettingsError(f"{source}: {_explain(error)}") from None
    digests = [row.sha256 for row in rows]
    for row in rows:
        if digests.count(row.sha256) > 1:
            raise SettingsError(f"{source}: one sha256 is listed twice, the last time for {row.name}")
    return tuple(rows)


def find_token(token: str, rows: Iterable[Token]) -> Token | None:
    """The row of a token that was sent. Every row is compared, so that the time taken tells nothing."""
    digest, found = sha256(token), None
    for row in rows:
        if hmac.compare_digest(digest, bytes.fromhex(row.sha256)):
            found = row
    return found


def sha256(token: str) -> bytes:
    """Digest of a token. Plain, not a slow one: a token is random, not a password."""
    return hashlib.sha256(token.encode()).digest()


def _explain(error: ValidationError) -> str:
    """The problems without the values, any of which may be a secret."""
    return "; ".join(_explain_one(problem) for problem in error.errors(include_input=False)[:5])


def _explain_one(problem: Any) -> str:
    index = problem["loc"][0] if problem["loc"] and isinstance(problem["loc"][0], int) else None
    field = next((part for part in problem["loc"] if isinstance(part, str)), "")
    row = "" if index is None else f"row {index + 1}: "
    if problem["type"] == "missing":
        return f"{row}{field} is required"
    if problem["type"] == "extra_forbidden":
        return f"{row}unknown key; known keys: {', '.join(Token.model_fields)}"
    if problem["type"] == "too_long" and not field:
        return f"at most {_MAX_TOKENS} tokens"
    return f"{row}{_RULES.get(field, 'name, sha256 and roles are expected')}"
