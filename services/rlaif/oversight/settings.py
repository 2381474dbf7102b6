"""Settings of the oversight service."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, model_validator

from rlaif.runtime.settings import ListenSettings, SettingsModel

DATABASE_URL_VARIABLE = "RLAIF_DATABASE_URL"


class OversightListenSettings(ListenSettings):
    """As every service, but labels with their texts come by the thousand."""

    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, le=1024**3)
    """Largest message received or sent, bytes."""


class LedgerLimits(SettingsModel):
    """Bounds of one request."""

    max_labels: int = Field(default=4096, ge=1, le=4096)
    """Labels recorded, imported or looked up by one call."""
    max_payload_bytes: int = Field(default=1024 * 1024, ge=1024, le=16 * 1024 * 1024)
    """Largest body of one event, bytes of canonical JSON."""
    max_page_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=512 * 1024 * 1024)
    """Largest page of a list, bytes; such a page ends early."""
    num_readers: int = Field(default=4, ge=1, le=64)
    """Threads, and so database connections, that read at once."""


class QualitySettings(SettingsModel):
    """Label quality as metrics: computed again when somebody scrapes and the ledger has grown."""

    refresh_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Least time between two computations; ten times as long as one takes, where that is longer."""
    window_hours: float = Field(default=168.0, gt=0, allow_inf_nan=False)
    """Metrics are over the labels of so many hours."""
    max_labels: int = Field(default=100_000, ge=1)
    """Of these, at most so many, the newest."""


class OversightSettings(SettingsModel):
    """Everything `python -m rlaif.oversight` can be told."""

    listen: OversightListenSettings = OversightListenSettings()
    """How the service is reached."""
    database_url: str = Field(min_length=1)
    """sqlite:////path/to/ledger.sqlite or postgresql+psycopg://user@host/database; RLAIF_DATABASE_URL does the same."""
    migrate: bool
    """Bring the database's schema up to date at start. Unset means yes for SQLite, no for PostgreSQL."""
    limits: LedgerLimits = LedgerLimits()
    """Bounds of one request."""
    quality: QualitySettings = QualitySettings()
    """Label quality as metrics."""
    verify_every_hours: float = Field(default=24.0, gt=0, allow_inf_nan=False)
    """How often the whole ledger is read and every hash of it recomputed; first within half a minute of the start."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        url = values.get("database_url", os.environ.get(DATABASE_URL_VARIABLE))
        if url is None:
            return {"migrate": False, **values}  # the URL alone is what is missing
        return {"migrate": str(url).startswith("sqlite"), **values, "database_url": url}
