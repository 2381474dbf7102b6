"""An engine that fails for a while makes its service unready; one that is lost has the process replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from rlaif.core.errors import UnavailableError
from rlaif.engine import watch
from rlaif.engine.hf import HfEngine
from rlaif.engine.protocol import ENGINE_LOST
from rlaif.engine.watch import EngineWatch
from rlaif.playground.paths import POLICY_DIR


class Engine:
    """Says of itself what it is told, one answer a question; then the watch is left."""

    def __init__(self, *answers: Exception | None) -> None:
        self._answers: Iterator[Exception | None] = iter(answers)

    async def check_health(self) -> None:
        try:
            answer = next(self._answers)
        except StopIteration:
            raise asyncio.CancelledError from None
        if answer is not None:
            raise answer


async def watched(monkeypatch: pytest.MonkeyPatch, *answers: Exception | None) -> EngineWatch:
    monkeypatch.setattr(watch, "_PAUSE_SECONDS", 0.0)
    found, engine = EngineWatch(), Engine(*answers)
    with pytest.raises(asyncio.CancelledError):
        await found.run(engine)  # type: ignore[arg-type]
    return found


async def test_a_failure_is_told_until_the_engine_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    away = UnavailableError("the server is away")
    assert (await watched(monkeypatch, None)).failure == ""
    failing = await watched(monkeypatch, None, away)
    assert (failing.failure, failing.lost) == ("the server is away", "")
    assert (await watched(monkeypatch, away, None)).failure == ""


async def test_an_engine_that_fails_in_its_own_way_is_not_ready_and_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = RuntimeError("CUDA error")
    failing = await watched(monkeypatch, None, broken)
    assert failing.failure == "the engine cannot say whether it works: RuntimeError('CUDA error')"
    assert (await watched(monkeypatch, broken, None)).failure == ""


async def test_a_lost_engine_stays_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = UnavailableError("the process is gone", reason=ENGINE_LOST)
    found = await watched(monkeypatch, gone, None)
    assert (found.failure, found.lost) == ("", "the process is gone")


async def test_an_engine_whose_thread_has_died_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = HfEngine.load_model(str(POLICY_DIR))
    try:
        await engine.check_health()
        monkeypatch.setattr(type(engine._worker), "alive", False)
        with pytest.raises(UnavailableError) as caught:
            await engine.check_health()
        assert caught.value.reason == ENGINE_LOST
    finally:
        await engine.close()
