"""Channels to our services: deadlines always, retries of what a server did not do, core errors instead of RpcError."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import grpc

from rlaif.client.connection import Connections, channel_options
from rlaif.core.errors import DeadlineError, RlaifError, UnavailableError
from rlaif.runtime.context import outgoing_traceparent, remaining_seconds
from rlaif.runtime.settings import ClientSettings, parse_token, read_token
from rlaif.runtime.status import from_rpc_error
from rlaif.runtime.watched_files import FreshFiles, WatchedFiles

# Left over from the caller's own deadline, so that it can still answer when a call made on its behalf runs out of time.
_MARGIN_SECONDS = 0.25
_LEAST_SECONDS = 0.05


def open_channel(settings: ClientSettings) -> grpc.Channel:
    """A channel for blocking calls. Calls on it raise core errors; close it when done."""

    def connect(credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(settings.target, options=channel_options(settings))
        return grpc.secure_channel(settings.target, credentials, options=channel_options(settings))

    connections = Connections(settings, open_=connect, close=lambda channel: channel.close())
    return cast(grpc.Channel, _BlockingChannel(connections, _Terms(settings)))


def open_aio_channel(settings: ClientSettings) -> grpc.aio.Channel:
    """A channel for awaited calls, made inside a running loop. Calls on it raise core errors; close it when done."""
    closing: set[asyncio.Task[None]] = set()

    def connect(credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(settings.target, options=channel_options(settings))
        return grpc.aio.secure_channel(settings.target, credentials, options=channel_options(settings))

    def close(channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(None))
        closing.add(task)
        task.add_done_callback(closing.discard)

    connections = Connections(settings, open_=connect, close=close)
    return cast(grpc.aio.Channel, _AwaitedChannel(connections, _Terms(settings)))


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
        self._token = _token(settings.token_path)

    def timeout(self, wanted_seconds: float | None) -> float:
        """Seconds the call may take; never more than the call being served has left."""
        seconds = self._timeout_seconds if wanted_seconds is None else wanted_seconds
        remaining = remaining_seconds()
        return seconds if remaining is None else max(_LEAST_SECONDS, min(seconds, remaining - _MARGIN_SECONDS))

    def metadata(self, wanted: Iterable[tuple[str, str]] | None) -> tuple[tuple[str, str], ...]:
        sent = (*(wanted or ()), ("traceparent", outgoing_traceparent()))
        token = self._token()
        return (*sent, ("authorization", f"Bearer {token}")) if token else sent

    def error(self, error: grpc.RpcError) -> RlaifError:
        return from_rpc_error(error, target=self._target)


def _token(token_path: Path | None) -> Callable[[], str | None]:
    """Gives the token to send now: the file is read again when it changes."""
    if token_path is None:
        token = read_token(None)
        return lambda: token
    key, source = "token_path", str(token_path)
    return FreshFiles(WatchedFiles({key: token_path}, lambda read: parse_token(read[key], source=source))).value


class _BlockingChannel:
    """A grpc.Channel whose calls keep the terms. A proxy, not interceptors: those must not raise errors of ours."""

    def __init__(self, connections: Connections, terms: _Terms) -> None:
        self._connections = connections
        self._terms = terms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connections.current.channel, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._connections.channels:
            channel.close()

    def unary_unary(self, method: str, *codecs: Any, **keywords: Any) -> Callable[..., Any]:
        connections, terms = self._connections, self._terms

        def make(channel: grpc.Channel) -> Callable[..., Any]:
            return channel.unary_unary(method, *codecs, **keywords)

        def call(request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
            with connections.use() as connection:
                start = connection.callable_of(make)
                try:
                    return start(request, timeout=terms.timeout(timeout), metadata=terms.metadata(metadata), **options)
                except grpc.RpcError as error:
                    raise terms.error(error) from error

        return call

    def unary_stream(self, method: str, *codecs: Any, **keywords: Any) -> Callable[..., Any]:
        connections, terms = self._connections, self._terms

        def make(channel: grpc.Channel) -> Callable[..., Any]:
            return channel.unary_stream(method, *codecs, **keywords)

        def call(request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Iterator[Any]:
            with connections.use() as connection:
                start = connection.callable_of(make)
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

    def __init__(self, connections: Connections, terms: _Terms) -> None:
        self._connections = connections
        self._terms = terms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connections.current.channel, name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        for channel in self._connections.channels:
            await channel.close(grace)

    def unary_unary(self, method: str, *codecs: Any, **keywords: Any) -> Callable[..., Any]:
        connections, terms = self._connections, self._terms

        def make(channel: grpc.aio.Channel) -> Callable[..., Any]:
            return channel.unary_unary(method, *codecs, **keywords)

        async def call(request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:  # noqa: ASYNC109 - gRPC's own signature
            with connections.use() as connection:
                start = connection.callable_of(make)
                try:
                    return await start(
                        request, timeout=terms.timeout(timeout), metadata=terms.metadata(metadata), **options
                    )
                except grpc.RpcError as error:
                    raise terms.error(error) from error

        return call

    def unary_stream(self, method: str, *codecs: Any, **keywords: Any) -> Callable[..., Any]:
        connections, terms = self._connections, self._terms

        def make(channel: grpc.aio.Channel) -> Callable[..., Any]:
            return channel.unary_stream(method, *codecs, **keywords)

        async def call(
            request: Any,
            timeout: float | None = None,  # noqa: ASYNC109 - gRPC's own signature
            metadata: Any = None,
            **options: Any,
        ) -> AsyncIterator[Any]:
            with connections.use() as connection:
                start = connection.callable_of(make)
                call = start(request, timeout=terms.timeout(timeout), metadata=terms.metadata(metadata), **options)
                try:
                    async for response in call:
                        yield response
                except grpc.RpcError as error:
                    raise terms.error(error) from error
                finally:
                    call.cancel()

        return call
