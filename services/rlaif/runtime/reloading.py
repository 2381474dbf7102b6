"""Certificates and tokens that change while a server runs: taken up within a second or two, or kept and told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge

from rlaif.core.errors import SettingsError
from rlaif.runtime.authentication import Authenticator
from rlaif.runtime.certificates import ServerCertificates
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.telemetry import REGISTRY
from rlaif.runtime.watched_files import WatchedFiles

_log = EventLogger(__name__)
_INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class ReloadMetrics:
    """What became of files that changed, and how long certificates last."""

    reloads: Counter
    failures: Counter
    expiry: Gauge


@cache
def reload_metrics() -> ReloadMetrics:
    """Made once a process."""
    return ReloadMetrics(
        reloads=Counter("rlaif_runtime_reloads_total", "Changed files taken up.", ["source"], registry=REGISTRY),
        failures=Counter(
            "rlaif_runtime_reload_failures_total",
            "Looks, one a second, at changed files that cannot be used.",
            ["source"],
            registry=REGISTRY,
        ),
        expiry=Gauge(
            "rlaif_runtime_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends.",
            ["certificate"],
            registry=REGISTRY,
        ),
    )


class Reloader:
    """Looks at a server's files each second."""

    def __init__(self, authenticator: Authenticator, certificates: ServerCertificates | None) -> None:
        self._certificates = certificates
        self._sources: list[tuple[str, WatchedFiles[Any]]] = [("tokens", files) for files in authenticator.files]
        if certificates is not None:
            self._sources.append(("certificates", certificates.files))
        self._told: dict[WatchedFiles[Any], str] = {}
        self._metrics = reload_metrics()
        for source, _ in self._sources:
            self._metrics.reloads.labels(source=source)
            self._metrics.failures.labels(source=source)
        self._say_expiry()

    async def run(self) -> None:
        """Until cancelled."""
        while self._sources:
            await asyncio.sleep(_INTERVAL_SECONDS)
            # A mount that hangs must hold up no call.
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Takes up what changed."""
        for source, files in self._sources:
            try:
                changed = files.refresh()
            except SettingsError as error:
                self._metrics.failures.labels(source=source).inc()
                if self._told.get(files) != error.message:
                    self._told[files] = error.message
                    _log.error("changed files cannot be used, the old ones stay", source=source, error=error.message)
                continue
            self._told.pop(files, None)
            if changed:
                self._metrics.reloads.labels(source=source).inc()
                self._say_expiry()
                _log.info("changed files taken up", source=source)

    def _say_expiry(self) -> None:
        if self._certificates is None:
            return
        self._metrics.expiry.labels(certificate="server").set(self._certificates.not_after.timestamp())
        if client_ca := self._certificates.client_ca_not_after:
            self._metrics.expiry.labels(certificate="client_ca").set(client_ca.timestamp())
