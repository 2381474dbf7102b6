"""`python -m rlaif.client.probe ADDRESS SERVICE`: ends with 0 when the service serves, as health checks ask."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from rlaif.client.channel import wait_serving
from rlaif.core.errors import RlaifError
from rlaif.runtime.settings import ClientSettings

_SECONDS: Final = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when it serves; 1, with the reason, when it does not within three seconds."""
    parser = argparse.ArgumentParser(prog="rlaif.client.probe", description=__doc__)
    parser.add_argument("address", help="host:port without TLS: a service's health_address, or its address")
    parser.add_argument("service", help="name of the gRPC service, for example rlaif.v1.JudgeService")
    options = parser.parse_args(arguments)
    try:
        wait_serving(ClientSettings(target=options.address), [options.service], timeout_seconds=_SECONDS)
    except RlaifError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
