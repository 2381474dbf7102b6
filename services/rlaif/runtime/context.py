"""What a call carries with it: its W3C trace, who makes it and until when it may run."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


@dataclass(frozen=True)
class CallContext:
    """One call. `deadline` is in `time.monotonic()` seconds; None when it may run for ever. `peer` is a connection.

    `named` says whether `actor` tells callers apart, as a name does and a token that everyone shares does not.
    """

    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))
    trace_flags: str = "01"
    actor: str = ""
    deadline: float | None = None
    peer: str = ""
    named: bool = False

    @property
    def traceparent(self) -> str:
        """The W3C traceparent header of this call's own span."""
        return f"00-{self.trace_id}-{self.span_id}-{self.trace_flags}"


_current: ContextVar[CallContext | None] = ContextVar("rlaif_call", default=None)


def current_call() -> CallContext | None:
    """The call being served or made here; None outside of any."""
    return _current.get()


def current_trace_id() -> str:
    """W3C trace id of the call being served, 32 hex digits; empty outside of any."""
    call = _current.get()
    return call.trace_id if call else ""


def current_actor() -> str:
    """Who makes the call being served; empty outside of any."""
    call = _current.get()
    return call.actor if call else ""


def current_caller() -> str:
    """Who shares of the service are counted for: who is known by name, else the connection; empty outside of any."""
    call = _current.get()
    if call is None:
        return ""
    return call.actor if call.named or not call.peer else call.peer


def remaining_seconds() -> float | None:
    """Time left to the call being served, at least 0; None when it has no deadline."""
    call = _current.get()
    if call is None or call.deadline is None:
        return None
    return max(0.0, call.deadline - time.monotonic())


def enter_call(call: CallContext) -> None:
    """Makes `call` the current one for the rest of this task."""
    _current.set(call)


@contextmanager
def trace() -> Iterator[str]:
    """Gives all calls made inside one trace id, and yields it."""
    call = CallContext()
    token = _current.set(call)
    try:
        yield call.trace_id
    finally:
        _current.reset(token)


def call_from_traceparent(
    header: str | None, *, actor: str = "", deadline: float | None = None, peer: str = ""
) -> CallContext:
    """A call in the caller's trace; in a new one when the header is absent or malformed."""
    match = _TRACEPARENT.fullmatch(header) if header and not header.startswith("ff") else None
    if match is None or match[1] == _NO_TRACE or match[2] == _NO_SPAN:
        return CallContext(actor=actor, deadline=deadline, peer=peer)
    return CallContext(trace_id=match[1], trace_flags=match[3], actor=actor, deadline=deadline, peer=peer)


def outgoing_traceparent() -> str:
    """Header for a call made from here: the current trace, or a new one outside of any."""
    call = _current.get()
    return (call or CallContext()).traceparent
