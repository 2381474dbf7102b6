"""What a check-up found, and what to do about each thing that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from rlaif.core.errors import (
    CorruptionError,
    DeadlineError,
    ForbiddenError,
    NotFoundError,
    QuotaExceededError,
    RlaifError,
    UnauthenticatedError,
    UnavailableError,
)

State = Literal["ok", "look", "failed"]
"""`look` is right enough to work and worth a look."""


@dataclass(frozen=True)
class Finding:
    """One check of one thing. `fix` is empty where all is well."""

    subject: str
    check: str
    state: State
    seen: str
    fix: str = ""


class Findings:
    """What was found of one thing, told to `add` as it is found."""

    def __init__(self, subject: str, add: Callable[[Finding], None]) -> None:
        self._subject, self._add = subject, add

    def ok(self, check: str, seen: str) -> None:
        self._add(Finding(self._subject, check, "ok", _one_line(seen)))

    def look(self, check: str, seen: str, *, fix: str) -> None:
        self._add(Finding(self._subject, check, "look", _one_line(seen), fix))

    def failed(self, check: str, seen: str, *, fix: str) -> None:
        self._add(Finding(self._subject, check, "failed", _one_line(seen), fix))

    @contextmanager
    def attempt(self, check: str, *, fix: str = "") -> Iterator[None]:
        """An error of ours within is a failure of this check, and ends the block's caller with StoppedError."""
        try:
            yield
        except RlaifError as error:
            self.failed(check, error.message, fix=fix or _fix(error))
            raise StoppedError from error


class StoppedError(Exception):
    """What comes after would fail for the same reason."""


_TOKEN_FIXES: Final = {
    "TOKEN_MISSING": "give a token: --token-file FILE or RLAIF_TOKEN; `rlaif token new` makes one",
    "TOKEN_UNKNOWN": "use a token that the Secret of tokens.existingSecret lists, or add this one's SHA-256 there: "
    "`rlaif token new`",
    "TOKEN_MALFORMED": "the file or variable must hold the token alone, on one line",
}
_TLS_FIXES: Final = {
    "speak TLS only": "show a certificate that its authority has signed: RLAIF_TLS_CERTIFICATE and RLAIF_TLS_KEY",
    "speaks no TLS": "leave out --tls-ca, or set tls.enabled in the chart's values",
}
_FIXES: Final[Mapping[type[RlaifError], str]] = {
    DeadlineError: "it is overloaded or hangs: look at its log and dashboard, or give it longer by --timeout",
    QuotaExceededError: "its queue is full: see RlaifCallsRefused in docs/runbooks.md",
    CorruptionError: "see RlaifLedgerBroken in docs/runbooks.md",
    NotFoundError: "name one that it has",
    UnavailableError: "look at its log: kubectl logs deploy/rlaif-SERVICE",
}


def _fix(error: RlaifError) -> str:
    if isinstance(error, UnauthenticatedError):
        return _TOKEN_FIXES.get(error.reason, "use another token or certificate")
    if isinstance(error, ForbiddenError):
        roles = error.metadata.get("roles_needed", "").replace(",", " or ")
        return f"use a token with the role {roles}: `rlaif token new`" if roles else "ask for the right to do it"
    told = [fix for words, fix in _TLS_FIXES.items() if words in error.message]
    if told:
        return told[0]
    for kind, fix in _FIXES.items():
        if isinstance(error, kind):
            return fix
    return f"look at its log ({error.reason})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
