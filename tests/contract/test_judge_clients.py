"""Both judge clients against a server on loopback that answers from the texts it is sent."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.client import AsyncJudgeClient, JudgeClient, JudgeOptions, Message, ResponsePair, ResponseToScore
from rlaif.core.audit import Finding, FindingKind
from rlaif.core.constitution import Constitution, Exemplar, Principle
from rlaif.core.errors import (
    DeadlineError,
    InvalidInputError,
    QuotaExceededError,
    RlaifError,
    UnauthenticatedError,
    UnavailableError,
)
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.v1 import judge_service_pb2 as pb
from text_judge import TextJudge, text_judge_service

NAME = "constitutions/house"
RULES = Constitution(
    "house",
    2,
    "Be good.",
    (
        Principle("kind", "Prefer the kind reply.", 2.0, "kindness", applies_to=("chat",), critique="What is unkind?"),
        Principle("true", "Prefer the true reply.", 1.0, exemplars=(Exemplar("Sky?", "Green.", "Wrong.", "Blue."),)),
    ),
    critique="Find the fault.",
    revision="Mend it.",
)


@pytest.fixture
def judge() -> TextJudge:
    return TextJudge()


@pytest.fixture
async def settings(judge: TextJudge) -> AsyncIterator[ClientSettings]:
    async with serving(text_judge_service(judge), ListenSettings(metrics_address=None)) as server:
        yield ClientSettings(target=server.address, timeout_seconds=10)


async def blocking(settings: ClientSettings, use: Callable[[JudgeClient], Any]) -> Any:
    """Runs blocking client code beside the server's loop."""

    def run() -> Any:
        with JudgeClient(settings) as client:
            return use(client)

    return await asyncio.to_thread(run)


async def both(settings: ClientSettings, method: str, *arguments: Any, **keywords: Any) -> Any:
    """What the blocking client answers, after checking that the awaited one answers the same."""
    answer = await blocking(settings, lambda client: getattr(client, method)(*arguments, **keywords))
    async with AsyncJudgeClient(settings) as client:
        assert _same(await getattr(client, method)(*arguments, **keywords), answer)
    return answer


def _same(one: Any, other: Any) -> bool:
    return bool(_without_trace(one) == _without_trace(other))


def _without_trace(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and hasattr(value, "provenance"):
        return dataclasses.replace(value, provenance=None)  # type: ignore[type-var]
    return [_without_trace(each) for each in value] if isinstance(value, list) else value


def pairs(*firsts: str) -> list[ResponsePair]:
    return [ResponsePair("Why?", first, "12345") for first in firsts]


LENGTHS = pairs(*("x" * n for n in range(1, 12)))
ORDERED = [n / (n + 5) for n in range(1, 12)]


async def test_a_text_stands_for_one_user_turn_and_an_address_for_settings(settings: ClientSettings, judge: TextJudge):
    def use() -> Any:
        with JudgeClient(settings.target) as client:
            return client.compare(NAME, "Why?", first="because", second="no", category="chat")

    verdict = await asyncio.to_thread(use)
    assert verdict.preference == "first"
    assert verdict.probability_first == pytest.approx(7 / 9)
    assert verdict.votes[0].weight == 2
    assert (verdict.judge_votes[0].judge, verdict.judge_votes[0].probability_first) == ("two", 0.25)
    assert verdict.rationale == "longer"
    (request,) = judge.requests
    assert request.constitution == NAME
    assert request.category == "chat"
    assert [turn.content for turn in request.messages] == ["Why?"]
    assert not request.HasField("inline_constitution")
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.preference = "second"


async def test_a_constitution_travels_whole_in_the_request(settings: ClientSettings, judge: TextJudge):
    from rlaif.client.judge_messages import constitution

    await both(settings, "compare", RULES, (Message("user", "Why?"),), first="a", second="bb")
    assert judge.requests[0].constitution == ""
    assert constitution(judge.requests[0].inline_constitution) == RULES
    assert judge.requests[0].inline_constitution.sha256 == RULES.sha256


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_many_comparisons_are_ordered_bounded_and_tell_their_progress(
    settings: ClientSettings, judge: TextJudge, concurrency: int
):
    seen: list[tuple[int, int]] = []
    verdicts = await both(
        settings,
        "compare_many",
        NAME,
        LENGTHS,
        batch_size=2,
        concurrency=concurrency,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [verdict.probability_first for verdict in verdicts] == pytest.approx(ORDERED)
    assert seen == [(done, 11) for done in (2, 4, 6, 8, 10, 11)] * 2
    assert judge.max_in_flight == concurrency


async def test_many_comparisons_raise_the_first_error_with_its_position_in_the_job(settings: ClientSettings):
    wanted = pairs("a", "b", "c", "bad", "d")
    with pytest.raises(InvalidInputError, match="it is bad") as caught:
        await blocking(settings, lambda client: client.compare_many(NAME, wanted, batch_size=2))
    assert (caught.value.field, caught.value.reason) == ("pairs[3].first", "BAD")
    async with AsyncJudgeClient(settings) as client:
        with pytest.raises(InvalidInputError) as caught:
            await client.compare_many(NAME, wanted, batch_size=2, concurrency=2)
    assert caught.value.field == "pairs[3].first"


def outcomes(results: Sequence[Any]) -> list[Any]:
    return [each.field if isinstance(each, RlaifError) else each.preference for each in results]


async def test_each_comparison_yields_its_own_verdict_or_error(settings: ClientSettings):
    wanted = pairs("a", "bad", "123456", "c", "bad", "d", "1234567")
    expected = ["second", "pairs[1].first", "first", "second", "pairs[4].first", "second", "first"]
    results = await blocking(settings, lambda client: list(client.compare_each(NAME, iter(wanted), batch_size=4)))
    assert outcomes(results) == expected
    async with AsyncJudgeClient(settings) as client:
        assert outcomes([each async for each in client.compare_each(NAME, wanted, batch_size=4)]) == expected


async def test_pairs_are_read_only_a_few_batches_ahead(settings: ClientSettings):
    taken: list[int] = []

    def source() -> Any:
        for index in range(1000):
            taken.append(index)
            yield LENGTHS[0]

    def use(client: JudgeClient) -> None:
        results = client.compare_each(NAME, source(), batch_size=5, concurrency=2)
        next(results)
        results.close()  # type: ignore[attr-defined]

    await blocking(settings, use)
    assert len(taken) <= 15


async def test_an_awaited_job_left_early_leaves_no_call_behind(settings: ClientSettings, judge: TextJudge):
    async with AsyncJudgeClient(settings) as client:
        results = client.compare_each(NAME, LENGTHS, batch_size=1, concurrency=3)
        assert (await anext(results)).preference == "second"
        await results.aclose()
        mine = {task for task in asyncio.all_tasks() if "_send_aio" in repr(task)}
    assert mine == set()
    assert len(judge.requests) < len(LENGTHS)


async def test_a_full_queue_is_waited_out_within_the_batch_time(settings: ClientSettings, judge: TextJudge):
    judge.refuse_times = 2
    scores = await both(settings, "score_many", NAME, [("Why?", "abc"), ResponseToScore("Why?", "", "chat")])
    assert [score.expected for score in scores] == [3, 0]
    assert judge.requests[0].responses[1].category == "chat"
    judge.refuse_times, judge.retry_after_seconds = 1, 60.0
    with pytest.raises(QuotaExceededError):
        await blocking(settings, lambda client: client.score_many(NAME, [("Why?", "abc")]))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"concurrency": 0}])
async def test_a_job_cut_in_no_way_is_refused(settings: ClientSettings, wrong: dict[str, int]):
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        await blocking(settings, lambda client: client.compare_many(NAME, LENGTHS, **wrong))


async def test_no_pairs_no_calls(settings: ClientSettings, judge: TextJudge):
    assert await both(settings, "compare_many", NAME, []) == []
    assert judge.requests == []


async def test_critique_and_revision(settings: ClientSettings):
    options = JudgeOptions(principle_ids=("kind",))
    critique = await both(settings, "critique", NAME, "Why?", response="No.", options=options)
    assert (critique.text, critique.principle_ids, critique.abstention_reason) == ("'No.' is curt.", ("kind",), None)
    silent = await both(settings, "critique", NAME, "Why?", response=" ")
    assert (silent.text, silent.abstention_reason) == ("", "empty")
    revision = await both(settings, "revise", NAME, "Why?", response="No.", critique="Curt.", seed=3)
    assert (revision.text, revision.unchanged) == ("No. Curt. 3", False)
    assert (await both(settings, "revise", NAME, "Why?", response="No.", critique="Curt.")).unchanged


async def test_an_audit_holds_findings_and_why_there_is_no_written_one(settings: ClientSettings, judge: TextJudge):
    audit = await both(settings, "audit", RULES, probe_pairs=LENGTHS[:2], written_audit=True)
    assert audit.findings == (Finding(FindingKind.EDGE_CASE, ("kind",), "Open.", "Close."),)
    assert (audit.written_audit, audit.written_audit_abstention_reason) == ("", "truncated")
    assert len(judge.requests[0].probe_pairs) == 2


async def test_who_judges_and_all_pages_of_constitutions(settings: ClientSettings):
    state = await both(settings, "get_judge")
    assert (state.template, state.context_length_tokens, state.panel) == ("compact", 512, ("two",))
    assert [each.name for each in await both(settings, "list_constitutions")] == [
        "constitutions/a",
        "constitutions/b",
        "constitutions/c",
    ]


async def test_a_call_keeps_its_own_deadline(settings: ClientSettings):
    with pytest.raises(DeadlineError):
        await blocking(settings, lambda c: c.compare(NAME, "Why?", first="slow", second="no", timeout_seconds=0.2))


async def test_a_judge_that_is_away_for_a_moment_is_asked_again(settings: ClientSettings, judge: TextJudge):
    judge.away_times = 2
    assert (await blocking(settings, lambda client: client.get_judge())).template == "compact"
    judge.away_times = 2
    async with AsyncJudgeClient(settings) as client:
        assert (await client.get_judge()).template == "compact"
    assert judge.away_times == 0


async def test_both_clients_send_their_token(judge: TextJudge, tmp_path: Path):
    token_path = tmp_path / "token"
    token_path.write_text("s3cret\n")
    listen = ListenSettings(metrics_address=None, token_path=token_path)
    async with serving(text_judge_service(judge), listen) as server:
        known = ClientSettings(target=server.address, token_path=token_path, timeout_seconds=10)
        assert (await both(known, "get_judge")).template == "compact"
        with pytest.raises(UnauthenticatedError):
            await blocking(known.model_copy(update={"token_path": None}), lambda client: client.get_judge())


async def test_a_judge_that_is_not_there_is_unavailable_for_every_item():
    gone = ClientSettings(target="127.0.0.1:1", timeout_seconds=5)
    results = await blocking(gone, lambda client: list(client.compare_each(NAME, LENGTHS[:3], batch_size=2)))
    assert [type(each) for each in results] == [UnavailableError] * 3


def test_every_kind_of_finding_has_a_code_on_the_wire():
    codes = {name.removeprefix("AUDIT_FINDING_KIND_").lower() for name in pb.AuditFindingKind.keys()}  # noqa: SIM118
    assert codes - {"unspecified"} == {kind.value for kind in FindingKind}
