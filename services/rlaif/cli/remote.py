"""How the command reaches services elsewhere: TLS by environment variables, as the token is by RLAIF_TOKEN."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.runtime.settings import ClientSettings

TLS_VARIABLES: Mapping[str, str] = {
    "tls_ca_path": "RLAIF_TLS_CA",
    "tls_certificate_path": "RLAIF_TLS_CERTIFICATE",
    "tls_key_path": "RLAIF_TLS_KEY",
    "tls_server_name": "RLAIF_TLS_SERVER_NAME",
}
"""Variables by the settings of a client that they stand for."""


def remote_settings(target: str, **given: Any) -> ClientSettings:
    """Settings of a client of a service that an option named: what is given, else what the variables say.

    InvalidInputError when the target has no port, or, naming setting and variable, when these do not fit together.
    Services that the command started itself are not asked for by this: they speak no TLS.
    """
    from pydantic import ValidationError

    from rlaif.core.errors import InvalidInputError
    from rlaif.runtime.settings import ClientSettings

    if ":" not in target:
        raise InvalidInputError(f"{target}: must be HOST:PORT, such as 127.0.0.1:50052")
    values = {key: os.environ[variable] for key, variable in TLS_VARIABLES.items() if os.environ.get(variable)}
    values |= {key: value for key, value in given.items() if value is not None}
    try:
        return ClientSettings(target=target, **values)
    except ValidationError as error:
        sentence = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidInputError(f"{sentence} ({', '.join(TLS_VARIABLES.values())})") from error
