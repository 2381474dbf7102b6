"""`python -m rlaif.oversight.migrate [--config FILE]`: brings the ledger's schema up to date, and ends."""

from __future__ import annotations

import sys
import time
from typing import Final

from rlaif.core.errors import RlaifError, SettingsError, UnavailableError
from rlaif.oversight.settings import OversightSettings
from rlaif.runtime.logging import EventLogger, configure_logging
from rlaif.runtime.settings import settings_from_command_line

PATIENCE_SECONDS: Final = 60.0
"""How long a database that is just starting is waited for."""

_PAUSE_SECONDS: Final = 1.0
_log = EventLogger(__name__)


def main() -> int:
    """0 when the schema is what this version needs; 2 for wrong settings, 1 for all else."""
    settings = settings_from_command_line(OversightSettings, program="rlaif.oversight.migrate")
    configure_logging("migrate", level=settings.listen.log_level)
    try:
        migrate(settings.database_url, patience_seconds=PATIENCE_SECONDS)
    except RlaifError as error:
        sys.stderr.write(f"rlaif.oversight.migrate: {error.message}\n")
        return 2 if isinstance(error, SettingsError) else 1
    return 0


def migrate(database_url: str, *, patience_seconds: float) -> None:
    """Runs the migrations that are missing; UnavailableError when the database cannot be reached for that long."""
    from rlaif.oversight.database import open_engine
    from rlaif.oversight.schema import check_schema, upgrade_schema

    engine = open_engine(database_url, num_connections=1)
    deadline = time.monotonic() + patience_seconds
    try:
        while True:
            try:
                upgrade_schema(engine)
                break
            except UnavailableError as error:
                if time.monotonic() >= deadline:
                    raise
                _log.info("waiting for the database", error=error.message)
                time.sleep(_PAUSE_SECONDS)
        check_schema(engine)
        _log.info("schema is up to date")
    finally:
        engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
