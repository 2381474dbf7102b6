"""What the Kubeflow Pipelines API or the way to it answered instead, as errors of ours: one sentence with the fix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
from urllib3 import exceptions

from rlaif.core.errors import (
    ConflictError,
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    QuotaExceededError,
    RlaifError,
    UnauthenticatedError,
    UnavailableError,
)

_API_PATH: Final = "/apis/v2beta1"
_MOST_CHARACTERS: Final = 300
_SAID_KEYS: Final = ("message", "error_message", "error")
_RETRY_AFTER_SECONDS: Final = 5.0


class WrongHostError(InvalidInputError):
    """Something answers at the host, and it is not the Kubeflow Pipelines API."""

    reason = "WRONG_HOST"

    def __init__(self, message: str) -> None:
        super().__init__(message, field="--host")


@dataclass(frozen=True)
class Peer:
    """Whom a request went to and with what, as sentences name them; never the credentials themselves."""

    host: str
    namespace: str = ""
    credentials: str = ""
    """Where the credentials came from, such as "the file token"; empty where none were sent."""
    timeout_seconds: float = 60.0

    def refused(self, status: int, *, body: bytes, headers: Mapping[str, str], write: bool) -> RlaifError:
        """The error behind an answer that is not a success."""
        said = _said(body)
        says = f"; it says: {said}" if said else ""
        match status:
            case 301 | 302 | 303 | 307 | 308:
                return self._redirected(headers.get("Location", ""))
            case 401:
                return UnauthenticatedError(f"{self.host} did not let us in (401): {self._credentials_fix()}{says}")
            case 403:
                return ForbiddenError(
                    f"{self.host} does not allow this (403){self._in_namespace()}: have your account bound to the role "
                    f"kubeflow-pipelines-edit there, or name your own --namespace{says}"
                )
            case 404 if _is_api_answer(body):
                return NotFoundError(f"{self.host} does not know what was asked for (404){says}")
            case 404 | 405:
                return self.not_the_api(f"answers {status} to {_API_PATH}")
            case 409:
                return ConflictError(f"{self.host} already has one of that name (409){says}")
            case 413:
                return InvalidInputError(f"{self.host} takes no request of that size (413){says}")
            case 429:
                return QuotaExceededError(
                    f"{self.host} is asked too often (429); try again later{says}",
                    retry_after_seconds=_RETRY_AFTER_SECONDS,
                )
            case 502 | 503 | 504:
                return UnavailableError(
                    f"{self.host} cannot answer now ({status}): the way there works, the Kubeflow Pipelines API behind "
                    f"it does not; look at its pods (kubectl get pods -l app=ml-pipeline) or try again{says}"
                )
            case _ if 400 <= status < 500:
                return InvalidInputError(f"{self.host} refused the request ({status}){says}")
            case _:
                outcome = "; what was asked for may have happened: look before you ask again" if write else ""
                return UnavailableError(f"{self.host} failed ({status}){outcome}{says}")

    def lost(self, error: exceptions.HTTPError, *, write: bool) -> RlaifError:
        """The error behind a request without an answer."""
        cause = error.reason if isinstance(error, exceptions.MaxRetryError) and error.reason is not None else error
        if isinstance(cause, exceptions.NameResolutionError):
            return UnavailableError(f"{self.host}: nobody knows the name {urlsplit(self.host).hostname}; check --host")
        if isinstance(cause, exceptions.SSLError):
            return self._tls(str(cause))
        if isinstance(cause, exceptions.ConnectTimeoutError) and not isinstance(cause, exceptions.NewConnectionError):
            return DeadlineError(f"{self.host} takes no connection; check --host and the network policies on the way")
        if isinstance(cause, exceptions.NewConnectionError):
            return UnavailableError(
                f"nothing listens at {self.host}; check --host, or forward a port to the API first "
                "(kubectl port-forward -n kubeflow svc/ml-pipeline 8888)"
            )
        outcome = "; it may have happened all the same: look before you ask again" if write else ""
        if isinstance(cause, exceptions.ReadTimeoutError):
            return DeadlineError(
                f"{self.host} did not answer within {self.timeout_seconds:g} s{outcome} (--timeout waits longer)"
            )
        return UnavailableError(f"the connection to {self.host} broke{outcome}: {_first_line(str(cause))}")

    def not_the_api(self, what: str) -> WrongHostError:
        """The error for a host that is something else."""
        return WrongHostError(
            f"{self.host} is not the Kubeflow Pipelines API: it {what}; give --host the address whose "
            f"{_API_PATH}/healthz answers, such as https://kubeflow.example.com/pipeline or http://127.0.0.1:8888"
        )

    def _redirected(self, location: str) -> RlaifError:
        target = urlsplit(location)
        place = f" to {target.scheme}://{target.netloc}" if target.netloc else ""
        return UnauthenticatedError(
            f"{self.host} sends us away{place}, to a login page or another address: {self._credentials_fix()}"
        )

    def _credentials_fix(self) -> str:
        if self.credentials:
            return f"what {self.credentials} holds is wrong, or no longer valid; write a fresh token there"
        return (
            "it wants credentials and none were found; give --token-file (a service account's or an OIDC token) or "
            "--header-file (a session cookie)"
        )

    def _in_namespace(self) -> str:
        return f" in namespace {self.namespace}" if self.namespace else ""

    def _tls(self, cause: str) -> RlaifError:
        if "WRONG_VERSION_NUMBER" in cause or "record layer failure" in cause:
            return WrongHostError(f"{self.host} does not speak TLS; write http:// if that is meant")
        if "CERTIFICATE_VERIFY_FAILED" in cause:
            why = cause.rpartition("CERTIFICATE_VERIFY_FAILED] ")[2].rstrip("')")
            return InvalidInputError(
                f"{self.host}: {_first_line(why)}; give --ca-file with the certificates it is signed by",
                field="--ca-file",
            )
        return UnavailableError(f"{self.host}: no TLS connection: {_first_line(cause)}")


def is_html(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether a page for people came in the place of an answer."""
    return "html" in response.headers.get("Content-Type", "") or response.data[:64].lstrip()[:1] == b"<"


def _is_api_answer(body: bytes) -> bool:
    """Whether a 404 is about a resource, as the API says it, and not about a path that nobody serves."""
    answer = _json(body)
    if not isinstance(answer, Mapping):
        return False
    # grpc-gateway answers a path that it does not know with exactly this.
    return answer.get("message") != "Not Found"


def _said(body: bytes) -> str:
    """What the server says, one line, bounded; nothing of a page of HTML."""
    answer = _json(body)
    if isinstance(answer, Mapping):
        text = next((str(answer[key]) for key in _SAID_KEYS if answer.get(key)), "")
    else:
        text = body[: 4 * _MOST_CHARACTERS].decode("utf-8", errors="replace")
        text = "" if text.lstrip().startswith("<") else text
    return _first_line(text)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"
