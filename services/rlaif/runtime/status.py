"""Our errors as google.rpc.Status and back; the only module that knows gRPC codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from rlaif.core.errors import (
    ConflictError,
    CorruptionError,
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    QuotaExceededError,
    RlaifError,
    SettingsError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from rlaif.runtime.tls_failures import explain_tls_failure

DOMAIN = "rlaif"
"""Domain of every ErrorInfo of ours."""
DETAILS_KEY = "grpc-status-details-bin"
INTERNAL_MESSAGE = "internal error; the service's log has the trace"

_CODES: Mapping[type[RlaifError], grpc.StatusCode] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    SettingsError: grpc.StatusCode.FAILED_PRECONDITION,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    QuotaExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    ConflictError: grpc.StatusCode.ABORTED,
    CorruptionError: grpc.StatusCode.DATA_LOSS,
}
_ERRORS: Mapping[grpc.StatusCode, type[RlaifError]] = {
    code: error for error, code in _CODES.items() if error is not SettingsError
}

# Details travel in a trailer, which HTTP/2 peers cap at 8 KiB.
_MAX_MESSAGE_CHARACTERS = 800
_MAX_VALUE_CHARACTERS = 200
_MAX_METADATA = 8


def code_of(error: RlaifError) -> grpc.StatusCode:
    """The gRPC code of one of our errors."""
    for error_class in type(error).__mro__:
        if error_class in _CODES:
            return _CODES[error_class]
    return grpc.StatusCode.INTERNAL


def to_status(error: RlaifError) -> status_pb2.Status:
    """google.rpc.Status of one of our errors: ErrorInfo always, and what else its kind calls for."""
    message = error.message[:_MAX_MESSAGE_CHARACTERS]
    metadata = {
        key[:_MAX_VALUE_CHARACTERS]: value[:_MAX_VALUE_CHARACTERS]
        for key, value in list(error.metadata.items())[:_MAX_METADATA]
    }
    status = status_pb2.Status(code=code_of(error).value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if detail := _detail(error, message=message):
        status.details.add().Pack(detail)
    return status


def internal_status() -> status_pb2.Status:
    """What callers learn of an exception we did not expect: nothing but that it happened."""
    return to_status(RlaifError(INTERNAL_MESSAGE))


def trailers(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """The status as trailing metadata."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def from_rpc_error(error: grpc.RpcError, *, target: str) -> RlaifError:
    """The core error behind a failed call to `target`, with its reason, field and metadata."""
    code, message = error.code(), error.details() or ""
    for status in _statuses(error.trailing_metadata()):
        return _from_status(status, code=code)
    if code is grpc.StatusCode.UNAVAILABLE:
        if cause := explain_tls_failure(message):
            return UnavailableError(f"{target} cannot be reached: {cause}")
        return UnavailableError(f"{target} cannot be reached: {message}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        # gRPC itself refuses such a message, before any of our code sees it.
        return InvalidInputError(f"a message to or from {target} is too large: {message}", reason="MESSAGE_TOO_LARGE")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{target} did not answer in time")
    if code is grpc.StatusCode.CANCELLED:
        return UnavailableError(f"the call to {target} was cancelled", reason="CANCELLED")
    return _make(_ERRORS.get(code, RlaifError), f"{target}: {message or code.name}", reason=None)


def _detail(error: RlaifError, *, message: str) -> Any:
    if isinstance(error, InvalidInputError) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        return error_details_pb2.BadRequest(field_violations=[violation])
    if isinstance(error, NotFoundError):
        return error_details_pb2.ResourceInfo(
            resource_type=error.metadata.get("resource_type", ""),
            resource_name=error.metadata.get("resource_name", ""),
            description=message,
        )
    if isinstance(error, PreconditionError):
        failure = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=error.field or "", description=message
        )
        return error_details_pb2.PreconditionFailure(violations=[failure])
    if isinstance(error, QuotaExceededError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        return error_details_pb2.RetryInfo(retry_delay=delay)
    return None


def _statuses(metadata: Iterable[Any] | None) -> Iterable[status_pb2.Status]:
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            yield status_pb2.Status.FromString(value)


def _from_status(status: status_pb2.Status, *, code: grpc.StatusCode) -> RlaifError:
    info, field, retry_after_seconds = error_details_pb2.ErrorInfo(), None, 1.0
    bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    failure = error_details_pb2.PreconditionFailure()
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
        if detail.Unpack(failure) and failure.violations:
            field = failure.violations[0].subject or None
        if detail.Unpack(retry):
            retry_after_seconds = retry.retry_delay.ToMilliseconds() / 1000
    return _make(
        _ERRORS.get(code, RlaifError),
        status.message,
        reason=info.reason or None,
        field=field,
        metadata=dict(info.metadata),
        retry_after_seconds=retry_after_seconds,
    )


def _make(
    error_class: type[RlaifError],
    message: str,
    *,
    reason: str | None,
    field: str | None = None,
    metadata: Mapping[str, str] | None = None,
    retry_after_seconds: float = 1.0,
) -> RlaifError:
    if issubclass(error_class, QuotaExceededError):
        error: RlaifError = error_class(message, retry_after_seconds=retry_after_seconds, reason=reason)
        error.metadata = dict(metadata or {})
        return error
    return error_class(message, reason=reason, field=field, metadata=metadata)
