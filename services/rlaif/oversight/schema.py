"""Bringing a database's schema up to date, and telling whether it is."""

from __future__ import annotations

import logging

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from rlaif.core.errors import SettingsError
from rlaif.oversight.database import appending, reading
from rlaif.runtime.logging import EventLogger

_log = EventLogger(__name__)


def upgrade_schema(engine: Engine) -> None:
    """Runs the migrations that are missing, as one transaction; several processes may call it at once."""
    # Alembic tells of every look at the schema; only a change is news.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with appending(engine) as connection:
        before = MigrationContext.configure(connection).get_current_revision()
        _check_known(before)
        command.upgrade(_config(connection), "head")
        after = MigrationContext.configure(connection).get_current_revision()
    if after != before:
        _log.info("schema upgraded", before=before, after=after)


def check_schema(engine: Engine) -> None:
    """SettingsError, with the fix, when the schema is not the one this version needs."""
    with reading(engine) as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    _check_known(found)
    needed = ScriptDirectory.from_config(_config()).get_current_head()
    if found != needed:
        raise SettingsError(
            f"the database's schema is {found or 'absent'} and this version needs {needed}: start with migrate=true",
            reason="SCHEMA_OUTDATED",
            field="migrate",
        )


def _check_known(revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise SettingsError(
            f"the database's schema is {revision}, of a later version of rlaif: run that version, or one after it",
            reason="SCHEMA_TOO_NEW",
            field="database_url",
        )


def _config(connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "rlaif.oversight:migrations")
    return config
