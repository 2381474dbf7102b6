"""Page tokens: opaque to callers, and good only for the list they came from."""

from __future__ import annotations

import base64
import json

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError
from rlaif.oversight.ledger import Cursor

_FILTER_DIGITS = 16


def page_token(after: Cursor, *, listing: tuple[str, ...]) -> str:
    """The token that continues `listing` (its name and filters) after that place."""
    body = [digest(listing)[:_FILTER_DIGITS], after.sequence, after.position]
    return base64.urlsafe_b64encode(json.dumps(body).encode()).decode()


def read_page_token(token: str, *, listing: tuple[str, ...]) -> Cursor:
    """The place to go on after; the start for an empty token."""
    if not token:
        return Cursor()
    try:
        filters, sequence, position = json.loads(base64.urlsafe_b64decode(token.encode()))
        cursor = Cursor(sequence=int(sequence), position=int(position))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInputError("page_token is not one of ours", field="page_token") from error
    if filters != digest(listing)[:_FILTER_DIGITS] or not 0 <= cursor.sequence < 2**62 or abs(cursor.position) > 2**30:
        raise InvalidInputError("page_token is of a list with other filters", field="page_token")
    return cursor
