"""Certificates and their keys in PEM files, checked before gRPC has them: it takes anything, then fails handshakes."""

from __future__ import annotations

import ssl
from pathlib import Path

from rlaif.core.errors import SettingsError


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path, *, field: str) -> None:
    """Has the context show this certificate; SettingsError, naming the setting `field`, when the two are no pair."""
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{field}: {certificate} and {key} are no PEM certificate and its key without a password", field=field
        ) from error


def _no_password() -> str:
    # Without this, OpenSSL would ask for it on the terminal.
    raise ValueError("the key has a password")
