"""One way to serve: bind, announce, load, serve until told to stop, drain."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rlaif.core.errors import InvalidInputError, RlaifError, SettingsError
from rlaif.runtime.addresses import cannot_listen, check_free, is_loopback, join_address, split_address
from rlaif.runtime.artifacts import atomic_write_text
from rlaif.runtime.authentication import Authenticator
from rlaif.runtime.certificates import ServerCertificates
from rlaif.runtime.health import Health, Probes
from rlaif.runtime.interceptors import CallInterceptor
from rlaif.runtime.logging import EventLogger, configure_logging
from rlaif.runtime.metrics_endpoint import serve_metrics
from rlaif.runtime.reloading import Reloader
from rlaif.runtime.settings import ListenSettings
from rlaif.runtime.telemetry import request_metrics

_log = EventLogger(__name__)

# Time for the last answers to leave, and for the last calls to begin, once no call is in flight.
_FLUSH_SECONDS = 0.5
# When those who watch health are taken to have stopped calling, and how long that is waited for.
_QUIET_SECONDS, _LAME_SECONDS = 0.1, 2.0
# How often a service is asked whether it should get calls.
_READINESS_SECONDS = 1.0
# Calls at a time on the port for probes, which anyone who reaches it may make, and their size.
_MAX_PROBES, _MAX_PROBE_BYTES = 32, 1024


@dataclass(frozen=True)
class Service:
    """What one process serves."""

    name: str
    """Short name in logs and metrics, for example "judge"."""
    grpc_services: tuple[str, ...]
    """Full names of the gRPC services, for example ("rlaif.v1.JudgeService",)."""
    register: Callable[[grpc.aio.Server], None]
    """Adds the servicers. Methods a servicer does not override answer UNIMPLEMENTED with reason NOT_SERVED."""
    start: Callable[[], Awaitable[None]]
    """Loads what is needed to serve; health says SERVING, and calls are let in, only once it has returned."""
    stop: Callable[[], Awaitable[None]]
    """Frees it; also called when `start` failed."""
    unready: Callable[[], str] | None = None
    """Why it should get no calls now, "" when it should; asked each second while it serves. Health says so."""
    lost: Callable[[], str] | None = None
    """Why only another process can serve, "" while this one can; asked likewise. Health says it as `liveness`."""


def run(service: Service, listen: ListenSettings) -> int:
    """Serves until SIGTERM or SIGINT, drains, and gives the exit code.

    0 after a drain; 2 when settings are wrong or a port is in use; 1 when the service could not start. A second
    signal ends the process at once.
    """
    configure_logging(service.name, level=listen.log_level)
    try:
        asyncio.run(_run(service, listen))
    except (SettingsError, InvalidInputError) as error:
        return _fail(f"{service.name}: {error.message}", code=2)
    except RlaifError as error:
        _log.exception("service cannot serve")
        return _fail(f"{service.name}: {error.message}", code=1)
    except Exception as error:  # noqa: BLE001 - the last resort of a process
        _log.exception("service crashed")
        return _fail(f"{service.name}: cannot serve: {error}", code=1)
    return 0


@asynccontextmanager
async def serving(service: Service, listen: ListenSettings) -> AsyncIterator[Server]:
    """The service, ready, for as long as the block runs; drained at its end."""
    server = Server(service, listen)
    try:
        await server.bind()
        await server.start()
        yield server
    finally:
        await server.stop()


class Server:
    """A service bound to its ports. `address`, `metrics_address` and `health_address` are set by `bind`."""

    def __init__(self, service: Service, listen: ListenSettings) -> None:
        self._service = service
        self._listen = listen
        self._grpc: grpc.aio.Server | None = None
        self._probed: grpc.aio.Server | None = None
        self._metrics: asyncio.Server | None = None
        self._health = Health(service.grpc_services)
        self._watches: list[asyncio.Task[None]] = []
        self._reloading: asyncio.Task[None] | None = None
        self._authenticator = Authenticator(listen)
        self._certificates = ServerCertificates(listen.tls) if listen.tls else None
        self._calls = CallInterceptor(
            service.name,
            authenticator=self._authenticator,
            default_deadline_seconds=listen.default_deadline_seconds,
            max_in_flight=listen.max_calls_in_flight,
        )
        self.address = ""
        self.metrics_address: str | None = None
        self.health_address: str | None = None

    async def bind(self) -> None:
        """Takes the ports and announces them; health answers NOT_SERVING from here on."""
        listen, names = self._listen, self._service.grpc_services
        server = grpc.aio.server(
            interceptors=[self._calls], options=_options(listen, max_message_bytes=listen.max_message_bytes)
        )
        self._service.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)
        credentials = self._certificates.for_grpc() if self._certificates else None
        self.address = _bind(server, listen.address, key="listen.address", credentials=credentials)
        self._grpc = server
        health = self._health
        # Not of `self`: a metric lives as long as the process, and would keep the server.
        request_metrics(self._service.name).ready.set_function(lambda: float(health.serving))
        if listen.metrics_address:
            self.metrics_address = await self._bind_metrics(listen.metrics_address)
        if listen.health_address:
            self.health_address = await self._bind_health(listen.health_address)
        await server.start()
        self._announce()
        self._reloading = asyncio.create_task(Reloader(self._authenticator, self._certificates).run())
        self._warn_if_open()

    async def start(self) -> None:
        """Loads the service, then lets calls in."""
        await self._service.start()
        self._calls.accepting = True
        await self._health.set_serving(serving=True)
        _log.info("serving", address=self.address, metrics_address=self.metrics_address)
        if self._service.unready is not None:
            self._watches.append(asyncio.create_task(self._watch_readiness(self._service.unready)))
        if self._service.lost is not None:
            self._watches.append(asyncio.create_task(self._watch_loss(self._service.lost)))

    async def _watch_readiness(self, unready: Callable[[], str]) -> None:
        """Keeps health at what the service says of itself. Calls that come all the same are still answered."""
        told = ""
        while True:
            cause = _cause(unready)
            if bool(cause) != bool(told):
                await self._health.set_serving(serving=not cause)
                if cause:
                    _log.error("service is not ready", cause=cause)
                else:
                    _log.info("service is ready again")
                told = cause
            await asyncio.sleep(_READINESS_SECONDS)

    async def _watch_loss(self, lost: Callable[[], str]) -> None:
        """Lets health say that this process is of no more use, for whoever can start another one."""
        while True:
            if cause := lost():
                _log.error("service is lost", cause=cause)
                await self._health.give_up()
                return
            await asyncio.sleep(_READINESS_SECONDS)

    async def stop(self) -> None:
        """Refuses new calls, lets those in flight finish within the drain time, frees everything."""
        for watch in self._watches:
            watch.cancel()
        has_watchers = await self._health.close()
        if has_watchers:
            # They send calls elsewhere once they know. gRPC cuts off what it has not handed over when it is stopped.
            await self._calls.wait_quiet(_QUIET_SECONDS, at_most=_LAME_SECONDS)
        if self._grpc is not None:
            await self._drain(self._grpc)
        await self._service.stop()
        if self._reloading is not None:
            self._reloading.cancel()
        if self._probed is not None:
            # Last, so that probes read "not serving" while calls in flight finish.
            await self._probed.stop(0)
        if self._metrics is not None:
            self._metrics.close()
        if self._listen.announce_path is not None and self.address:
            self._listen.announce_path.unlink(missing_ok=True)

    async def _drain(self, server: grpc.aio.Server) -> None:
        stopping = asyncio.ensure_future(server.stop(self._listen.drain_seconds))
        while not stopping.done():
            idle = asyncio.ensure_future(self._calls.wait_idle())
            await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            # The last answers leave; calls that were let in at the last moment begin.
            await asyncio.wait({stopping}, timeout=_FLUSH_SECONDS)
            if self._calls.is_idle:
                # What is left are reflection streams, which may never end by themselves.
                break
        await server.stop(0)
        await stopping

    async def _bind_metrics(self, address: str) -> str:
        host, port = split_address(address)
        try:
            bound, self._metrics = await serve_metrics(
                host=host,
                port=port,
                context=self._certificates.for_http() if self._certificates and self._listen.metrics_tls else None,
                readers=self._authenticator if self._listen.metrics_token else None,
            )
        except OSError as error:
            raise cannot_listen(address, key="listen.metrics_address", error=error) from error
        return join_address(host, bound)

    async def _bind_health(self, address: str) -> str:
        options = _options(self._listen, max_message_bytes=_MAX_PROBE_BYTES)
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MAX_PROBES)
        health_pb2_grpc.add_HealthServicer_to_server(Probes(self._health), server)
        bound = _bind(server, address, key="listen.health_address", credentials=None)
        self._probed = server
        await server.start()
        return bound

    def _warn_if_open(self) -> None:
        listen = self._listen
        is_reachable = not is_loopback(split_address(listen.address)[0])
        if is_reachable and self._authenticator.is_open and not (listen.tls and listen.tls.client_ca_path):
            _log.warning("anyone who reaches the address may call", address=listen.address, service=self._service.name)

    def _announce(self) -> None:
        if self._listen.announce_path is None:
            return
        announcement = {
            "service": self._service.name,
            "address": self.address,
            "metrics_address": self.metrics_address,
            "health_address": self.health_address,
            "pid": os.getpid(),
        }
        atomic_write_text(self._listen.announce_path, json.dumps(announcement) + "\n")


async def _run(service: Service, listen: ListenSettings) -> None:
    told_to_stop = _watch_signals()
    server = Server(service, listen)
    try:
        await server.bind()
        starting = asyncio.ensure_future(server.start())
        stopping = asyncio.ensure_future(told_to_stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            await _abandon(server, starting)
        starting.result()
        await stopping
        _log.info("draining", seconds=listen.drain_seconds)
    finally:
        await server.stop()
    _log.info("stopped")


async def _abandon(server: Server, starting: asyncio.Future[None]) -> None:
    starting.cancel()
    await server.stop()
    _log.info("stopped before it served")
    # A model that is still loading in a thread cannot be interrupted, and nothing it does matters any more.
    logging.shutdown()
    os._exit(0)


def _cause(unready: Callable[[], str]) -> str:
    try:
        return unready()
    except Exception as error:  # noqa: BLE001 - a service that cannot tell is not ready
        return f"its readiness check failed: {error}"


def _watch_signals() -> asyncio.Event:
    told_to_stop = asyncio.Event()

    def stop(number: int) -> None:
        if told_to_stop.is_set():
            os._exit(128 + number)
        told_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return told_to_stop


def _bind(server: grpc.aio.Server, address: str, *, key: str, credentials: grpc.ServerCredentials | None) -> str:
    check_free(address, key=key)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on {address} ({key})", reason="CANNOT_LISTEN", field=key) from error
    return join_address(split_address(address)[0], port)


def _options(listen: ListenSettings, *, max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # None but the identity. gRPC unpacks a message before it looks at its size, and before we look at its sender.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Two processes on one port would share its calls silently.
        ("grpc.so_reuseport", 0),
        # Clients come back after this, perhaps to a replica that is new, and show certificates that are current.
        ("grpc.max_connection_age_ms", _milliseconds(listen.max_connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(listen.max_connection_grace_seconds)),
        # Connections whose client vanished without a word are given up.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Our clients ping every 30 s; the default of 300 s would have the server hang up on them.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _milliseconds(seconds: float) -> int:
    # gRPC takes its largest number for "never".
    return min(round(seconds * 1000), 2**31 - 1)


def _fail(sentence: str, *, code: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code
