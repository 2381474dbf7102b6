from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from rlaif.runtime.context import trace
from rlaif.runtime.logging import EventLogger, configure_logging


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("judge", stream=stream)
    yield stream
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_an_event_is_one_json_line_with_its_fields_and_trace(lines: io.StringIO) -> None:
    log = EventLogger("rlaif.judge")
    with trace() as trace_id:
        log.info("100 % of labels\nrecorded", num_labels=3)
    log.warning("outside")
    first, second = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert first["event"] == "100 % of labels\nrecorded"
    assert (first["service"], first["severity"], first["num_labels"]) == ("judge", "INFO", 3)
    assert first["trace_id"] == trace_id
    assert second["trace_id"] == ""


def test_a_traceback_stays_on_its_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        EventLogger("rlaif").exception("crashed", path=object())
    (line,) = lines.getvalue().splitlines()
    assert "ValueError: wrong" in json.loads(line)["exception"]
