"""Channels to our services: deadlines always, retries of UNAVAILABLE only, core errors instead of RpcError."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Self, cast

import grpc

from rlaif.core.errors import DeadlineError, RlaifError, UnavailableError
from rlaif.runtime.context import outgoing_traceparent, remaining_seconds
from rlaif.runtime.settings import ClientSettings, read_file, read_token
from rlaif.runtime.status import from_rpc_error

# Left over from the caller's own deadline, so that it can still answer when a call made on its behalf runs out of time.
_MARGIN_SECONDS = 0.25
_LEAST_SECONDS = 0.05

_SERVICE_CONFIG = json.dumps(
    {
        # Where a name stands for several replicas, each gets its share of the calls; a retry goes to another one.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


def open_channel(settings: ClientSettings) -> grpc.Channel:
    """A channel for blocking calls. Calls on it raise core errors; close it when done."""
    if settings.tls_ca_path is None:
        channel = grpc.insecure_channel(settings.target, options=_options(settings))
    else:
        channel = grpc.secure_channel(settings.target, _credentials(settings), options=_options(settings))
    return cast(grpc.Channel, _BlockingChannel(channel, _Terms(settings)))


def open_aio_channel(settings: ClientSettings) -> grpc.aio.Channel:
    """A channel for awaited calls, made inside a running loop. Calls on it raise core errors; close it when done."""
    if settings.tls_ca_path is None:
        channel = grpc.aio.insecure_channel(settings.target, options=_options(settings))
    else:
        channel = grpc.aio.secure_channel(settings.target, _credentials(settings), options=_options(settings))
    return cast(grpc.aio.Channel, _AwaitedChannel(channel, _Terms(settings)))


def wait_serving(settings: ClientSettings, services: Sequence[str], *, timeout_seconds: float) -> None:
    """Returns once all gRPC services named (for example "rlaif.v1.JudgeService") answer SERVING.

    DeadlineError when that takes longer; any other refusal, such as a wrong token, is raised at once.
    """
    # Only who waits needs the health stubs.
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    deadline = time.monotonic() + timeout_seconds
    pause_seconds = 0.02
    with open_channel(settings) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in services:
            while not _is_serving(health, health_pb2.HealthCheckRequest(service=service), deadline=deadline):
                if time.monotonic() + pause_seconds > deadline:
                    raise DeadlineError(f"{service} at {settings.target} does not serve after {timeout_seconds:g} s")
                time.sleep(pause_seconds)
                pause_seconds = min(0.5, pause_seconds * 1.5)


def _is_serving(health: Any, request: Any, *, deadline: float) -> bool:
    try:
        answer = health.Check(request, timeout=max(_LEAST_SECONDS, min(2.0, deadline - time.monotonic())))
    except (UnavailableError, DeadlineError):
        return False
    return bool(answer.status == answer.SERVING)


class _Terms:
    """What every call gets: a deadline, the trace and the token."""

    def __init__(self, settings: ClientSettings) -> None:
        self._timeout_seconds = settings.timeout_seconds
        self._target = settings.target
        token = read_token(settings.token_path)
        self._authorization = (("authorization", f"Bearer {token}"),) if token else ()

    def timeout(self, wanted_seconds: float | None) -> float:
        """Seconds the call may take; never more than the call being served has left."""
        seconds = self._timeout_seconds if wanted_seconds is None else wanted_seconds
        remaining = remaining_seconds()
        return seconds if remaining is None else max(_LEAST_SECONDS, min(seconds, remaining - _MARGIN_SECONDS))

    def metadata(self, wanted: Iterable[tuple[str, str]] | None) -> tuple[tuple[str, str], ...]:
        return (*(wanted or ()), ("traceparent", outgoing_traceparent()), *self._authorization)

    def error(self, error: grpc.RpcError) -> RlaifError:
        return from_rpc_error(error, target=self._target)


class _BlockingChannel:
    """A grpc.Channel whose calls keep the terms. A proxy, not interceptors: those must not raise errors of ours."""

    def __init__(self, channel: Any, terms: _Terms) -> None:
        self._channel = channel
        self._terms = terms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def unary_unary(self, method: str, *codecs: Any, **keywords: Any) -> Callable[..., Any]:
        start, terms = self._channel.unary_unary(method, *codecs, **keywords), self._terms

        def call(request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
            try:
                return start(request, timeout=terms.timeout(timeout), metadata=terms.metadata(metadata), **options)
            except grpc.RpcError as error:
                raise terms.error(error) from error

        return call

    def unary_stream(self, method: str, *codecs: Any, **keywords: Any) -> Callable[..., Any]:
        start, terms = self._channel.unary_stream(method, *codecs, **keywords), self._terms

        def call(request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Iterator[Any]:
            call = start(request, timeout=terms.timeout(timeout), metadata=terms.metadata(metadata), **options)
            try:
                yield from call
            except grpc.RpcError as error:
                raise terms.error(error) from error
            finally:
                # A reader that stops half-way must not leave the server sending.
                call.cancel()

        return call


class _AwaitedChannel:
    """A grpc.aio.Channel whose calls keep the terms."""

    def __init__(self, channel: Any, terms: _Terms) -> None:
        self._channel = channel
        self._terms = terms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close(None)

    def unary_unary(self, method: str, *codecs: Any, **keywords: Any) -> Callable[..., Any]:
        start, terms = self._channel.unary_unary(method, *codecs, **keywords), self._terms

        async def call(request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:  # noqa: ASYNC109 - gRPC's own signature
            try:
                return await start(
                    request, timeout=terms.timeout(timeout), metadata=terms.metadata(metadata), **options
                )
            except grpc.RpcError as error:
                raise terms.error(error) from error

        return call

    def unary_stream(self, method: str, *codecs: Any, **keywords: Any) -> Callable[..., Any]:
        start, terms = self._channel.unary_stream(method, *codecs, **keywords), self._terms

        async def call(
            request: Any,
            timeout: float | None = None,  # noqa: ASYNC109 - gRPC's own signature
            metadata: Any = None,
            **options: Any,
        ) -> AsyncIterator[Any]:
            call = start(request, timeout=terms.timeout(timeout), metadata=terms.metadata(metadata), **options)
            try:
                async for response in call:
                    yield response
            except grpc.RpcError as error:
                raise terms.error(error) from error
            finally:
                call.cancel()

        return call


def _options(settings: ClientSettings) -> list[tuple[str, str | int]]:
    return [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A service that starts later than its caller is found soon after it does.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Proxies from the environment are for the internet; our services are beside us.
        ("grpc.enable_http_proxy", 0),
    ]


def _credentials(settings: ClientSettings) -> grpc.ChannelCredentials:
    assert settings.tls_ca_path is not None
    certificate = key = None
    if settings.tls_certificate_path and settings.tls_key_path:
        certificate = read_file(settings.tls_certificate_path, key="tls_certificate_path")
        key = read_file(settings.tls_key_path, key="tls_key_path")
    return grpc.ssl_channel_credentials(read_file(settings.tls_ca_path, key="tls_ca_path"), key, certificate)
