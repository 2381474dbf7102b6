"""Errors every layer raises: one root, each also the standard type a caller would expect."""

from __future__ import annotations

from collections.abc import Mapping


class RlaifError(Exception):
    """Root of all our errors. `reason` is stable and machine-readable, the message is a sentence."""

    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.field = field
        self.metadata = dict(metadata or {})


class InvalidInputError(RlaifError, ValueError):
    """A request, file or argument is wrong; `field` names where."""

    reason = "INVALID_INPUT"


class SettingsError(RlaifError, ValueError):
    """A settings file or environment value is wrong."""

    reason = "INVALID_SETTINGS"


class NotFoundError(RlaifError, LookupError):
    """The named resource does not exist; `metadata` holds `resource_type` and `resource_name`."""

    reason = "NOT_FOUND"


class PreconditionError(RlaifError, RuntimeError):
    """The system is not in the state the call needs, e.g. an older policy version is loaded."""

    reason = "FAILED_PRECONDITION"


class UnsupportedError(RlaifError, RuntimeError):
    """The service, as configured, does not offer this."""

    reason = "UNSUPPORTED"


class UnauthenticatedError(RlaifError, PermissionError):
    """No valid credentials were sent."""

    reason = "UNAUTHENTICATED"


class ForbiddenError(RlaifError, PermissionError):
    """The credentials do not allow this."""

    reason = "FORBIDDEN"


class QuotaExceededError(RlaifError, RuntimeError):
    """A bounded queue is full; try again after `retry_after_seconds`."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, *, retry_after_seconds: float, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(RlaifError, TimeoutError):
    """The work did not end within its deadline."""

    reason = "DEADLINE_EXCEEDED"


class UnavailableError(RlaifError, ConnectionError):
    """A peer or engine cannot be reached; the call can be tried again."""

    reason = "UNAVAILABLE"


class ConflictError(RlaifError, RuntimeError):
    """The same request id was used for a different request, or a resource changed meanwhile."""

    reason = "CONFLICT"


class CorruptionError(RlaifError, RuntimeError):
    """Stored data does not match its digest."""

    reason = "DATA_CORRUPTION"
