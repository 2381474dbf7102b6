"""What lies under our channels: how a target is connected to, and a new connection when certificates change."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from rlaif.core.errors import SettingsError
from rlaif.runtime.pem import load_pair
from rlaif.runtime.settings import ClientSettings
from rlaif.runtime.watched_files import FreshFiles, WatchedFiles

_METHODS = {
    "name": [{}],
    "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        # A server that stops cuts off with CANCELLED what it had received and not begun.
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    },
}


def channel_options(settings: ClientSettings) -> list[tuple[str, str | int]]:
    """Options of a gRPC channel to the target."""
    chosen: list[tuple[str, str | int]] = [
        ("grpc.service_config", json.dumps(_service_config(settings))),
        ("grpc.enable_retries", 1),
        # A request that is larger than this is not sent again.
        ("grpc.per_rpc_retry_buffer_size", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A service that starts later than its caller is found soon after it does, under a new address too.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 2_000),
        # Proxies from the environment are for the internet; our services are beside us.
        ("grpc.enable_http_proxy", 0),
    ]
    if settings.tls_server_name is not None:
        chosen.append(("grpc.ssl_target_name_override", settings.tls_server_name))
    return chosen


def _service_config(settings: ClientSettings) -> Mapping[str, Any]:
    config: dict[str, Any] = {
        # Where a name stands for several replicas, each gets its share of the calls; a retry goes to another one.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [_METHODS | {"waitForReady": settings.wait_for_ready}],
    }
    if settings.target.startswith("dns:") or "," in settings.target:
        # Each replica's health is watched ("" is the whole process): one that loads or drains gets no calls. Not where
        # there is but one: a refusal that says why is worth more than none.
        config["healthCheckConfig"] = {"serviceName": ""}
    return config


@dataclass(eq=False)
class Connection:
    """A gRPC channel, and the calls on it."""

    channel: Any
    credentials: grpc.ChannelCredentials | None
    num_calls: int = 0
    _callables: dict[Callable[[Any], Any], Any] = field(default_factory=dict)

    def callable_of(self, make: Callable[[Any], Any]) -> Any:
        """What `make` makes of the channel, made once."""
        found = self._callables.get(make)
        return self._callables.setdefault(make, make(self.channel)) if found is None else found


class Connections:
    """The connection in use: another one after the files of certificates have changed, and then for new calls only.

    Thread-safe. A connection that was replaced is given to `close` once its last call has ended.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        open_: Callable[[grpc.ChannelCredentials | None], Any],
        close: Callable[[Any], None],
    ) -> None:
        self._credentials = _credentials(settings)
        self._open, self._close = open_, close
        # Reentrant: a stream that nobody reads any more may be collected, and so ended, at any point.
        self._lock = threading.RLock()
        self._replaced: set[Connection] = set()
        self.current = self._connect()

    @property
    def channels(self) -> list[Any]:
        """All gRPC channels that are open."""
        with self._lock:
            return [each.channel for each in (self.current, *self._replaced)]

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """The connection for one call, which stays open for as long as the block runs."""
        connection = self._begin()
        try:
            yield connection
        finally:
            self._end(connection)

    def _begin(self) -> Connection:
        with self._lock:
            if self._credentials and self._credentials.value() is not self.current.credentials:
                replaced, self.current = self.current, self._connect()
                self._replaced.add(replaced)
                self._close_if_done(replaced)
            self.current.num_calls += 1
            return self.current

    def _end(self, connection: Connection) -> None:
        with self._lock:
            connection.num_calls -= 1
            self._close_if_done(connection)

    def _close_if_done(self, connection: Connection) -> None:
        if connection in self._replaced and not connection.num_calls:
            self._replaced.remove(connection)
            self._close(connection.channel)

    def _connect(self) -> Connection:
        credentials = self._credentials.value() if self._credentials else None
        return Connection(self._open(credentials), credentials)


def _credentials(settings: ClientSettings) -> FreshFiles[grpc.ChannelCredentials] | None:
    keys = ("tls_ca_path", "tls_certificate_path", "tls_key_path")
    paths = {key: path for key in keys if (path := getattr(settings, key)) is not None}

    def load(contents: Mapping[str, bytes]) -> grpc.ChannelCredentials:
        # gRPC takes whatever it is given and then fails every handshake.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=contents["tls_ca_path"].decode("ascii", "replace"))
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"tls_ca_path: {settings.tls_ca_path} holds no PEM certificates", field="tls_ca_path"
            ) from error
        if "tls_key_path" in paths:
            load_pair(context, paths["tls_certificate_path"], paths["tls_key_path"], field="tls_certificate_path")
        return grpc.ssl_channel_credentials(
            contents["tls_ca_path"], contents.get("tls_key_path"), contents.get("tls_certificate_path")
        )

    return FreshFiles(WatchedFiles(paths, load)) if "tls_ca_path" in paths else None
