"""The direct judge: rewards are the judge's scores, and what has no score has no reward."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from judge_fakes import CONSTITUTION, MemoryLedger, ScriptedEngine, serve_judge
from rlaif.client.channel import open_aio_channel
from rlaif.client.reward import JUDGE, RewardClient, RewardResult
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, NotFoundError, UnavailableError
from rlaif.reward.direct import DirectJudge
from rlaif.reward.process import make_service
from rlaif.reward.scoring import ScoredInput
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings

ASK = (Message("user", "How do I bake bread?"),)


def script(context: str, question: str) -> Sequence[float]:
    if "Reply: Mix" in context:
        return [0.05] * 9 + [0.5]
    if "Reply: Mumble" in context:
        return [0.001] * 10
    if "Reply: Break" in context:
        return [float("nan")] * 10
    return [0.5] + [0.05] * 9


@asynccontextmanager
async def running(ledger: MemoryLedger) -> AsyncIterator[ClientSettings]:
    async with serve_judge(ScriptedEngine(script, context_length=500), ledger) as judge:
        service = make_service(RewardSettings(judge=judge))
        async with serving(service, ListenSettings(metrics_address=None)) as server:
            yield ClientSettings(target=server.address, timeout_seconds=10)


async def score(
    settings: ClientSettings, inputs: Sequence[tuple[Any, str]], *, constitution: str = CONSTITUTION.name
) -> list[RewardResult]:
    return await in_thread(settings, lambda client: client.score(JUDGE, inputs, constitution=constitution))


async def in_thread(settings: ClientSettings, use: Callable[[RewardClient], Any]) -> Any:
    def run() -> Any:
        with RewardClient(settings) as client:
            return use(client)

    return await asyncio.to_thread(run)


async def test_rewards_are_rescaled_scores_recorded_as_one_event():
    ledger = MemoryLedger()
    async with running(ledger) as settings:
        good, bad, empty = await score(settings, [(ASK, "Mix."), (ASK, "No."), (ASK, "")])
    # Expected (0.05 * 45 + 0.5 * 10) / 0.95 = 145 / 19; rescaled 2 * (145 / 19 - 1) / 9 - 1.
    assert good.value == pytest.approx(2 * (145 / 19 - 1) / 9 - 1)
    assert good.components == {"judge": good.value}
    assert bad.value == empty.value == pytest.approx(2 * ((0.5 + 0.05 * 54) / 0.95 - 1) / 9 - 1)
    assert [len(call) for call in ledger.calls] == [3]


async def test_what_the_judge_abstains_from_has_a_reason_and_no_number():
    async with running(MemoryLedger()) as settings:
        results = await score(settings, [(ASK, "Mumble"), (ASK, "Break"), (ASK, "x" * 600), (ASK, "Mix.")])
    assert [result.failure_reason for result in results] == ["ABSTAINED", "NOT_FINITE", "TOO_LONG", ""]
    assert [result.value is None for result in results] == [True, True, True, False]


async def test_the_judges_refusals_come_through():
    async with running(MemoryLedger()) as settings:
        with pytest.raises(InvalidInputError) as caught:
            await score(settings, [(ASK, "Mix.")], constitution="")
        assert caught.value.field == "constitution"
        with pytest.raises(NotFoundError):
            await score(settings, [(ASK, "Mix.")], constitution="constitutions/other")
        state = await in_thread(settings, lambda client: client.get_reward_model(JUDGE))
        assert state.name == JUDGE
        assert state.members == ()


async def test_a_judge_that_is_gone_is_an_error_and_no_reward():
    async with serve_judge(ScriptedEngine(script), MemoryLedger()) as judge:
        gone = judge
    async with open_aio_channel(gone) as channel:
        with pytest.raises(UnavailableError):
            await DirectJudge(channel).score([ScoredInput(ASK, "Mix.")], constitution=CONSTITUTION.name)


def test_the_service_that_only_asks_the_judge_needs_no_torch():
    import subprocess

    program = "import sys, rlaif.reward.process, rlaif.client.judge, rlaif.client.reward; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
