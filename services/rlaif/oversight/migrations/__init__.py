"""Alembic migrations of the ledger; run by `rlaif.oversight.schema`."""
