"""Who calls: known by a bearer token, or by a client certificate."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

from rlaif.core.errors import SettingsError, UnauthenticatedError
from rlaif.runtime.roles import Role
from rlaif.runtime.settings import ListenSettings, parse_token, read_own_token
from rlaif.runtime.tokens import Token, find_token, parse_tokens, sha256
from rlaif.runtime.watched_files import WatchedFiles

_ALL = frozenset(Role)
_TOKEN_KEY, _TOKENS_KEY = "listen.token_path", "listen.tokens_path"


@dataclass(frozen=True)
class Identity:
    """Who calls and what they may do. `named` is as in `rlaif.runtime.context.CallContext`."""

    actor: str
    roles: frozenset[Role]
    named: bool


class Authenticator:
    """Knows callers by what `ListenSettings` lists; where it lists nothing, everyone may do everything."""

    def __init__(self, listen: ListenSettings) -> None:
        """SettingsError when a file of tokens cannot be used."""
        self._certificates = {each.common_name: each.roles for each in listen.certificates}
        self._admin = _admin_token(listen)
        self._listed = _listed_tokens(listen)
        self._has_tokens = self._admin is not None or self._listed is not None
        if listen.metrics_token and not self._has_tokens:
            raise SettingsError(
                f"listen.metrics_token needs tokens: set {_TOKENS_KEY} or {_TOKEN_KEY}", field="listen.metrics_token"
            )

    @property
    def is_open(self) -> bool:
        """Whether callers need to prove nothing here. TLS may still have asked them for a certificate."""
        return not self._has_tokens and not self._certificates

    @property
    def files(self) -> tuple[WatchedFiles[Any], ...]:
        """What may change."""
        return tuple(each for each in (self._admin, self._listed) if isinstance(each, WatchedFiles))

    def identify(self, authorization: str | None, *, common_name: str | None = None) -> Identity:
        """The caller, by its authorization header and the common name in its verified certificate.

        UnauthenticatedError with reason TOKEN_MISSING, TOKEN_MALFORMED or TOKEN_UNKNOWN. Where a token is sent it
        decides, whatever the certificate.
        """
        if self.is_open:
            return _unchecked(authorization, common_name=common_name)
        if authorization is not None:
            return self._by_token(_token_in(authorization), common_name=common_name)
        if common_name in self._certificates:
            return Identity(f"certificate:{common_name}", self._certificates[common_name], named=True)
        raise UnauthenticatedError(self._what_is_missing(common_name), reason="TOKEN_MISSING")

    def _by_token(self, token: str, *, common_name: str | None) -> Identity:
        admin = self._admin.value if isinstance(self._admin, WatchedFiles) else self._admin
        # Digests have one length, so the comparison tells nothing of the token's.
        is_admin = admin is not None and hmac.compare_digest(sha256(token), sha256(admin))
        row = find_token(token, self._listed.value if self._listed else ())
        if row is not None:
            return Identity(f"token:{row.name}", row.roles, named=True)
        if is_admin:
            return _unchecked(f"Bearer {token}", common_name=common_name)
        raise UnauthenticatedError("the bearer token is not one that this service knows", reason="TOKEN_UNKNOWN")

    def _what_is_missing(self, common_name: str | None) -> str:
        if not self._has_tokens:
            known = "the name in the client's certificate" if common_name else "a caller without a certificate"
            return f"{known} is not among listen.certificates of this service"
        return "the call needs a bearer token in its authorization metadata"


def _unchecked(authorization: str | None, *, common_name: str | None) -> Identity:
    """Who may do everything: by certificate, else by the fingerprint of the token that all such callers share."""
    if common_name is not None:
        return Identity(f"certificate:{common_name}", _ALL, named=True)
    token = (authorization or "").partition(" ")[2]
    return Identity(f"token:{sha256(token).hex()[:12]}" if token else "anonymous", _ALL, named=False)


def _token_in(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token or " " in token:
        raise UnauthenticatedError("the authorization metadata must be: Bearer TOKEN", reason="TOKEN_MALFORMED")
    return token


def _admin_token(listen: ListenSettings) -> WatchedFiles[str] | str | None:
    if listen.token_path is not None:
        source = str(listen.token_path)
        return WatchedFiles({_TOKEN_KEY: listen.token_path}, lambda read: parse_token(read[_TOKEN_KEY], source=source))
    # Where tokens are listed, the variable is what the service itself sends to others, and makes nobody an admin here.
    return read_own_token() if listen.tokens_path is None else None


def _listed_tokens(listen: ListenSettings) -> WatchedFiles[tuple[Token, ...]] | None:
    if listen.tokens_path is None:
        return None
    source = f"{_TOKENS_KEY}: {listen.tokens_path}"
    return WatchedFiles({_TOKENS_KEY: listen.tokens_path}, lambda read: parse_tokens(read[_TOKENS_KEY], source=source))
