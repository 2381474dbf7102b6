"""What happens around every call: who may make it, trace, deadline, metrics, and errors as google.rpc.Status."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, NoReturn

import grpc

from rlaif.core.errors import (
    DeadlineError,
    QuotaExceededError,
    RlaifError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from rlaif.runtime import status
from rlaif.runtime.authentication import Authenticator, Identity
from rlaif.runtime.context import CallContext, call_from_traceparent, current_actor, enter_call
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.malformed import read_message
from rlaif.runtime.roles import check_role
from rlaif.runtime.telemetry import request_metrics

_log = EventLogger(__name__)
_HEALTH = "/grpc.health."
_REFLECTION = "/grpc.reflection."
# What a caller is told to wait when too many calls are being served.
_RETRY_SECONDS = 1.0

Behavior = Callable[[Any, Any], Any]
Handler = Any  # grpc.RpcMethodHandler, whose four behaviours the stubs do not tell apart


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # serves every message type
    """Wraps every handler of a server once.

    Servicers are `async`, raise core errors and simply leave out what they do not serve: a method that is not
    overridden answers UNIMPLEMENTED with reason NOT_SERVED. Health is exempt from everything, reflection from all
    but the token, whose role does not matter.
    """

    def __init__(
        self, service: str, *, authenticator: Authenticator, default_deadline_seconds: float, max_in_flight: int
    ) -> None:
        self._service = service
        self._authenticator = authenticator
        self._max_in_flight = max_in_flight
        self._default_deadline_seconds = default_deadline_seconds
        self._metrics = request_metrics(service)
        self._handlers: dict[str, Handler] = {}
        self._num_in_flight = 0
        self._last_arrival = -math.inf
        self._idle = asyncio.Event()
        self._idle.set()
        self.accepting = False
        """Calls are answered UNAVAILABLE until this is set."""

    @property
    def is_idle(self) -> bool:
        """Whether no call is being served."""
        return self._num_in_flight == 0

    async def wait_quiet(self, seconds: float, *, at_most: float) -> None:
        """Returns once no call has come for `seconds`, or after `at_most`."""
        given_up = time.monotonic() + at_most
        while True:
            remaining = min(given_up, self._last_arrival + seconds) - time.monotonic()
            if remaining <= 0:
                return
            await asyncio.sleep(remaining)

    async def wait_idle(self) -> None:
        """Returns once no call is being served."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return grpc.unary_unary_rpc_method_handler(self._around("unknown", _refuse_unknown(method)))
            self._handlers[method] = self._wrap(method, handler)
        return self._handlers[method]

    def _wrap(self, method: str, handler: Any) -> Handler:
        if method.startswith(_HEALTH):
            return handler
        name = method.removeprefix("/").rpartition(".")[2]
        if handler.request_streaming:
            assert method.startswith(_REFLECTION), f"{method}: client streams are not supported"
            return grpc.stream_stream_rpc_method_handler(
                self._guarded(handler.stream_stream), handler.request_deserializer, handler.response_serializer
            )
        # gRPC is given no deserializer: a small message can be large once it is parsed, and strangers may send it.
        codecs = {"request_deserializer": None, "response_serializer": handler.response_serializer}
        checked = {"method": _full_name(method), "deserializer": handler.request_deserializer}
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._around(name, handler.unary_unary, **checked), **codecs)
        stream = self._around(name, _writing(handler.unary_stream), **checked)
        return grpc.unary_stream_rpc_method_handler(stream, **codecs)

    def _around(
        self, name: str, behavior: Behavior, *, method: str | None = None, deserializer: Any = bytes
    ) -> Behavior:
        """`name` is what metrics say; `method` is whose roles count, None for a method that does not exist."""
        if inspect.unwrap(behavior).__module__.endswith("_pb2_grpc"):
            behavior = _refuse_unserved(name, service=self._service)

        async def serve(data: bytes, context: Any) -> Any:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            self._begin()
            # The trace starts first, so that refusals are logged and answered within it.
            call = _enter(context)
            try:
                call = self._admit(context, call, method=method)
                request = read_message(data, deserializer)
                return await self._within_deadline(behavior, request, context, call)
            except asyncio.CancelledError:
                expired = call.deadline is not None and call.deadline <= time.monotonic()
                code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
                raise
            except grpc.aio.AbortError:
                code = context.code()
                raise
            except RlaifError as error:
                code = status.code_of(error)
                # A fault of ours needs its cause; a refusal does not.
                write = _log.exception if code is grpc.StatusCode.INTERNAL else _log.info
                who = {"actor": current_actor(), "peer": call.peer}
                answer = status.to_status(error)
                # The answer's message: it is cut where the error's repeats what the caller sent.
                write("call failed", method=name, code=code.name, reason=error.reason, error=answer.message, **who)
                await _abort(context, call, answer, code)
            except Exception:  # noqa: BLE001 - the caller must learn nothing of it, the log everything
                code = grpc.StatusCode.INTERNAL
                _log.exception("call crashed", method=name)
                await _abort(context, call, status.internal_status(), code)
            finally:
                self._metrics.requests.labels(method=name, code=code.name).inc()
                self._metrics.seconds.labels(method=name).observe(time.perf_counter() - started)
                self._end()

        return serve

    def _guarded(self, behavior: Behavior) -> Behavior:
        async def serve(requests: Any, context: Any) -> AsyncIterator[Any]:
            call = _enter(context)
            try:
                self._identify(context)
            except UnauthenticatedError as error:
                await _abort(context, call, status.to_status(error), status.code_of(error))
            async for response in behavior(requests, context):
                yield response

        return serve

    async def _within_deadline(self, behavior: Behavior, request: Any, context: Any, call: CallContext) -> Any:
        if call.deadline is not None:
            # gRPC cancels this task when the caller's own deadline passes.
            enter_call(call)
            return await behavior(request, context)
        seconds = self._default_deadline_seconds
        deadline = time.monotonic() + seconds
        enter_call(replace(call, deadline=deadline))
        try:
            async with asyncio.timeout(seconds) as scope:
                return await behavior(request, context)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError(
                f"the call took longer than {seconds:g} s, the default for callers that set no deadline",
                reason="DEFAULT_DEADLINE_EXCEEDED",
            ) from error

    def _admit(self, context: Any, call: CallContext, *, method: str | None) -> CallContext:
        """The call with its caller; raises unless it may be served now."""
        caller = self._identify(context)
        call = replace(call, actor=caller.actor, named=caller.named)
        enter_call(call)
        if method is not None:
            check_role(method, actor=caller.actor, roles=caller.roles)
        if not self.accepting:
            raise UnavailableError(f"{self._service} is starting or stopping", reason="NOT_READY")
        if self._num_in_flight > self._max_in_flight:
            raise QuotaExceededError(
                f"{self._max_in_flight} calls are being served and no more may be",
                retry_after_seconds=_RETRY_SECONDS,
                reason="TOO_MANY_CALLS",
            )
        return call

    def _identify(self, context: Any) -> Identity:
        return self._authenticator.identify(_header(context, "authorization"), common_name=_common_name(context))

    def _begin(self) -> None:
        self._num_in_flight += 1
        self._last_arrival = time.monotonic()
        self._idle.clear()
        self._metrics.in_flight.inc()

    def _end(self) -> None:
        self._num_in_flight -= 1
        self._metrics.in_flight.dec()
        if self._num_in_flight == 0:
            self._idle.set()


def _enter(context: Any) -> CallContext:
    seconds = context.time_remaining()
    deadline = None if seconds is None else time.monotonic() + seconds
    call = call_from_traceparent(
        _header(context, "traceparent"), actor="anonymous", deadline=deadline, peer=context.peer()
    )
    enter_call(call)
    context.set_trailing_metadata((("traceparent", call.traceparent),))
    return call


def _common_name(context: Any) -> str | None:
    """The name in the client's certificate, which TLS has verified."""
    for name in context.auth_context().get("x509_common_name", ()):
        return str(name.decode(errors="replace"))
    return None


def _header(context: Any, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return None


def _full_name(path: str) -> str:
    """ "rlaif.v1.JudgeService.GetJudge" of "/rlaif.v1.JudgeService/GetJudge"."""
    return path.removeprefix("/").replace("/", ".")


def _writing(behavior: Behavior) -> Behavior:
    """A streaming behaviour that writes its responses itself, so that sending them counts towards the deadline."""
    if not inspect.isasyncgenfunction(behavior):
        return behavior

    async def write(request: Any, context: Any) -> None:
        async for response in behavior(request, context):
            await context.write(response)

    return write


def _refuse_unserved(name: str, *, service: str) -> Behavior:
    async def refuse(request: Any, context: Any) -> NoReturn:
        raise UnsupportedError(
            f"{name.replace('/', '.')} is not served by this {service} service",
            reason="NOT_SERVED",
            metadata={"method": name},
        )

    return refuse


def _refuse_unknown(method: str) -> Behavior:
    async def refuse(request: Any, context: Any) -> NoReturn:
        raise UnsupportedError(f"there is no method {method}", reason="UNKNOWN_METHOD", metadata={"method": method})

    return refuse


async def _abort(context: Any, call: CallContext, answer: Any, code: grpc.StatusCode) -> NoReturn:
    trailers = (*status.trailers(answer), ("traceparent", call.traceparent))
    await context.abort(code, answer.message, trailers)
    raise AssertionError("abort returned")
