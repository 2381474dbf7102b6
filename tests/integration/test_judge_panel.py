"""A panel of judges on loopback: how votes are combined, and what a judge that fails, lags or changes does to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from judge_fakes import CONSTITUTION, DECODING, QUESTION, MemoryLedger, Script, ScriptedEngine, make_judge, serve_judge
from rlaif.client.judge_aio import AsyncJudgeClient
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.errors import InvalidInputError, UnsupportedError
from rlaif.engine.protocol import ChoiceLogprobs, ChoiceRequest, ModelIdentity
from rlaif.judge.judging import Judge
from rlaif.judge.panel import Panel, RemoteJudge
from rlaif.judge.settling import PanelOptions
from rlaif.judge.tasks import Candidate, JudgingOptions, Reasoning
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import judge_service_pb2

PAIR = Candidate(QUESTION, ("Mix.", "No."))
OPTIONS = JudgingOptions()
MEAN = PanelOptions("mean", 2, 0.5)


def sure(probability: float) -> Script:
    """Prefers "Mix." with that probability, wherever it stands."""

    def script(context: str, question: str) -> Sequence[float]:
        first = probability if "Reply 1: Mix" in context else 1 - probability
        return (first, 1 - first)

    return script


class Other(ScriptedEngine):
    """A judge of the panel; with `stuck` it never answers."""

    def __init__(self, script: Script, *, digest: str = "", stuck: bool = False) -> None:
        super().__init__(script, digest=digest, write=lambda prompt, index: "Mixing is good.")
        self._stuck = stuck

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        if self._stuck:
            await asyncio.Event().wait()
        return await super().choice_logprobs(requests)


@dataclass(frozen=True)
class Sitting:
    """A judge with its panel, and what is behind it."""

    judge: Judge
    engine: ScriptedEngine
    ledger: MemoryLedger
    others: Sequence[Other]

    async def decide(self, candidate: Candidate = PAIR, options: JudgingOptions = OPTIONS):
        return (await self.judge.decide([candidate], constitution=CONSTITUTION, options=options))[0]


@asynccontextmanager
async def sitting(
    own: Script, *others: Other, options: PanelOptions = MEAN, timeout_seconds: float = 5.0
) -> AsyncIterator[Sitting]:
    async with AsyncExitStack() as stack:
        judges = []
        for index, engine in enumerate(others):
            address = await stack.enter_async_context(serve_judge(engine, MemoryLedger()))
            settings = ClientSettings(target=address.target, timeout_seconds=timeout_seconds)
            judges.append(RemoteJudge(f"other-{index + 1}", settings))
        panel = Panel(judges, options=options)
        stack.push_async_callback(panel.close)
        engine = ScriptedEngine(own, write=lambda prompt, index: "Mixing is good.")
        ledger = MemoryLedger()
        yield Sitting(make_judge(engine, ledger, panel=panel), engine, ledger, others)


async def test_votes_are_averaged_and_kept():
    async with sitting(sure(0.9), Other(sure(0.6), digest="a" * 64), Other(sure(0.3), digest="b" * 64)) as panel:
        verdict = (await panel.decide()).verdict
    assert verdict.probability_first == pytest.approx(0.6)
    assert verdict.raw_probability_first == pytest.approx(0.6)
    # Deviations 0.3, 0, -0.3: sqrt(0.18 / 3) = 0.2449.
    assert verdict.panel_disagreement == pytest.approx(0.2449, abs=1e-4)
    votes = [(vote.judge, vote.model.digest, round(vote.probability_first, 6)) for vote in verdict.judge_votes]
    assert votes == [("", "d" * 64, 0.9), ("other-1", "a" * 64, 0.6), ("other-2", "b" * 64, 0.3)]
    assert verdict.order_consistent


@pytest.mark.parametrize(
    ("options", "probability"),
    [(PanelOptions("median", 2, 0.5), 0.6), (PanelOptions("majority", 2, 0.5), 2 / 3)],
)
async def test_median_and_majority(options: PanelOptions, probability: float):
    others = Other(sure(0.6), digest="a" * 64), Other(sure(0.3), digest="b" * 64)
    async with sitting(sure(0.9), *others, options=options) as panel:
        assert (await panel.decide()).verdict.probability_first == pytest.approx(probability)


@pytest.mark.parametrize("options", [PanelOptions("majority", 3, 0.5), PanelOptions("mean", 2, 0.2)])
async def test_a_split_panel_abstains(options: PanelOptions):
    others = Other(sure(0.6), digest="a" * 64), Other(sure(0.3), digest="b" * 64)
    async with sitting(sure(0.9), *others, options=options) as panel:
        verdict = (await panel.decide()).verdict
    assert verdict.preference == judge_service_pb2.PREFERENCE_ABSTAIN
    assert verdict.abstention_reason == judge_service_pb2.ABSTENTION_REASON_PANEL_SPLIT
    assert not verdict.HasField("probability_first")
    assert len(verdict.judge_votes) == 3


async def test_a_judge_that_is_late_has_no_vote_and_its_label_answers_nobody_later():
    late = Other(sure(0.3), digest="b" * 64, stuck=True)
    async with sitting(sure(0.9), Other(sure(0.7), digest="a" * 64), late, timeout_seconds=0.5) as panel:
        verdict = (await panel.decide()).verdict
        assert verdict.probability_first == pytest.approx(0.8)
        assert verdict.judge_votes[2].abstention_reason == judge_service_pb2.ABSTENTION_REASON_TIMED_OUT
        late._stuck = False
        again = await panel.decide()
    assert not again.recorded_before
    assert again.verdict.probability_first == pytest.approx((0.9 + 0.7 + 0.3) / 3)
    assert len(panel.ledger.labels) == 2


async def test_without_a_quorum_there_is_no_label():
    late = Other(sure(0.3), digest="b" * 64, stuck=True)
    async with sitting(sure(0.9), late, timeout_seconds=0.5) as panel:
        verdict = (await panel.decide()).verdict
    assert verdict.abstention_reason == judge_service_pb2.ABSTENTION_REASON_PANEL_SPLIT
    assert not verdict.HasField("probability_first")


async def test_a_judge_that_is_gone_has_no_vote():
    async with sitting(sure(0.9), Other(sure(0.7), digest="a" * 64)) as panel:
        gone = RemoteJudge("gone", ClientSettings(target="127.0.0.1:1", timeout_seconds=0.5))
        panel.judge._panel.judges += (gone,)  # type: ignore[union-attr]
        verdict = (await panel.decide()).verdict
        await gone.close()
    assert verdict.probability_first == pytest.approx(0.8)
    missing = verdict.judge_votes[2]
    assert missing.judge == "gone"
    assert missing.abstention_reason in (
        judge_service_pb2.ABSTENTION_REASON_UNREACHABLE,
        judge_service_pb2.ABSTENTION_REASON_TIMED_OUT,
    )


class Refusing(Other):
    """A judge of the panel that takes no such request."""

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        raise InvalidInputError("too long for this judge", field="pairs[0].first")


async def test_a_judge_that_refuses_the_request_is_told_from_one_that_is_gone():
    async with sitting(sure(0.9), Refusing(sure(0.7), digest="a" * 64), options=PanelOptions("mean", 1, 0.5)) as panel:
        verdict = (await panel.decide()).verdict
        again = await panel.decide()
    assert verdict.probability_first == pytest.approx(0.9)
    assert verdict.judge_votes[1].abstention_reason == judge_service_pb2.ABSTENTION_REASON_REFUSED
    assert not again.recorded_before


async def test_an_abstention_elsewhere_is_kept_with_its_reason():
    unsure = Other(lambda context, question: (0.01, 0.01), digest="a" * 64)
    async with sitting(sure(0.9), unsure, options=PanelOptions("mean", 1, 0.5)) as panel:
        verdict = (await panel.decide(options=replace(OPTIONS, min_verdict_mass=0.5))).verdict
    assert verdict.probability_first == pytest.approx(0.9)
    assert verdict.judge_votes[1].abstention_reason == judge_service_pb2.ABSTENTION_REASON_LOW_VERDICT_MASS


async def test_known_panels_are_answered_from_the_ledger_and_are_part_of_the_label():
    async with sitting(sure(0.9), Other(sure(0.6), digest="a" * 64)) as panel:
        first, again = await panel.decide(), await panel.decide()
        assert again.recorded_before
        assert len(panel.others[0].batches) == 1
    async with sitting(sure(0.9), Other(sure(0.6), digest="b" * 64)) as other:
        assert (await other.decide()).label.name != first.label.name
    alone = make_judge(ScriptedEngine(sure(0.9)), MemoryLedger())
    decisions = await alone.decide([PAIR], constitution=CONSTITUTION, options=OPTIONS)
    assert decisions[0].label.name != first.label.name


async def test_a_judge_of_unknown_weights_is_never_answered_from_the_ledger():
    async with sitting(sure(0.9), Other(sure(0.6))) as panel:
        await panel.decide()
        assert not (await panel.decide()).recorded_before
        assert len(panel.others[0].batches) == 2


async def test_a_judge_that_changed_its_weights_has_no_vote_under_the_old_ones():
    async with sitting(sure(0.9), Other(sure(0.6), digest="a" * 64), options=PanelOptions("mean", 1, 0.5)) as panel:
        await panel.decide()
        await panel.others[0].load(ModelIdentity(uri="scripted", digest="c" * 64))
        other = Candidate(QUESTION, ("Mix.", "Never."))
        verdict = (await panel.decide(other)).verdict
        assert verdict.judge_votes[1].abstention_reason == judge_service_pb2.ABSTENTION_REASON_UNREACHABLE
        known = await panel.decide(other)
    assert not known.recorded_before
    assert known.verdict.judge_votes[1].model.digest == "c" * 64


async def test_sampled_principles_and_reasoning_are_the_same_for_all_judges():
    async with sitting(sure(0.9), Other(sure(0.7), digest="a" * 64)) as panel:
        pairs = [Candidate(QUESTION, (f"Mix. {i}", "No.")) for i in range(6)]
        options = replace(OPTIONS, num_sampled_principles=1, seed=5, reasoning=Reasoning(1, DECODING))
        decisions = await panel.judge.decide(pairs, constitution=CONSTITUTION, options=options)
        drawn = [decision.verdict.principle_votes[0].principle_id for decision in decisions]
        asked = [text for request in panel.others[0].written if "Principle: " in (text := _text(request.prompt_ids))]
    assert set(drawn) == {"helpful", "harmless"}
    for decision, principle_id, pair in zip(decisions, drawn, pairs, strict=True):
        assert decision.verdict.probability_first == 0.6
        theirs = [text for text in asked if f"{pair.responses[0]}\n" in text]
        assert len(theirs) == 2
        assert all(f"the {principle_id} reply" in text for text in theirs)


class MeetingEngine(Other):
    """Answers when two requests are there, not before."""

    def __init__(self, script: Script) -> None:
        super().__init__(script, digest="a" * 64)
        self._meeting = asyncio.Barrier(2)

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        await self._meeting.wait()
        return await super().choice_logprobs(requests)


async def test_pairs_with_other_principles_do_not_wait_for_each_other():
    pairs = [Candidate(QUESTION, (f"Mix. {i}", "No.")) for i in range(6)]
    options = replace(OPTIONS, num_sampled_principles=1, seed=5)
    async with sitting(sure(0.9), MeetingEngine(sure(0.7)), timeout_seconds=2.0) as panel:
        decisions = await panel.judge.decide(pairs, constitution=CONSTITUTION, options=options)
    assert {decision.verdict.principle_votes[0].principle_id for decision in decisions} == {"helpful", "harmless"}
    assert [decision.verdict.probability_first for decision in decisions] == pytest.approx([0.8] * 6)


async def test_a_constitution_that_the_others_do_not_have_is_sent_along():
    rules = Constitution("mine", 1, "", (Principle("kind", "Be kind."),))
    async with sitting(sure(0.9), Other(sure(0.7), digest="a" * 64)) as panel:
        decisions = await panel.judge.decide([PAIR], constitution=rules, options=OPTIONS)
    assert decisions[0].verdict.probability_first == pytest.approx(0.8)


async def test_another_version_of_the_constitution_is_sent_along():
    rules = replace(CONSTITUTION, version=2, principles=(Principle("kind", "Be kind."),))
    async with sitting(sure(0.9), Other(sure(0.7), digest="a" * 64)) as panel:
        verdict = (await panel.judge.decide([PAIR], constitution=rules, options=OPTIONS))[0].verdict
        assert "Be kind." in "".join(map(chr, panel.others[0].batches[0][0].suffixes[0]))
    assert verdict.probability_first == pytest.approx(0.8)
    assert [vote.abstention_reason for vote in verdict.judge_votes] == [0, 0]


async def test_a_panel_does_not_score():
    async with sitting(sure(0.9), Other(sure(0.7), digest="a" * 64)) as panel:
        with pytest.raises(UnsupportedError, match="panel"):
            await panel.decide(Candidate(QUESTION, ("Mix.",)))


async def test_a_service_says_who_sits_on_its_panel():
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(serve_judge(Other(sure(0.7), digest="a" * 64), MemoryLedger()))
        panel = Panel([RemoteJudge("other", other)], options=MEAN)
        stack.push_async_callback(panel.close)
        address = await stack.enter_async_context(serve_judge(ScriptedEngine(sure(0.9)), MemoryLedger(), panel=panel))
        client = await stack.enter_async_context(AsyncJudgeClient(address))
        verdict = await client.compare(CONSTITUTION.name, QUESTION, first="Mix.", second="No.")
        state = await client.get_judge()
    assert [vote.judge for vote in verdict.judge_votes] == ["", "other"]
    assert state.panel == ("other",)
    assert len(state.fingerprint) == 64


def _text(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))
