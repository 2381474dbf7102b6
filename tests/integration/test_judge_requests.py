"""The judge on loopback with a scripted engine: what it answers, and how it refuses what it cannot answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
import pytest

from judge_fakes import CONSTITUTION, MemoryLedger, ScriptedEngine, serve_judge
from rlaif.client.channel import open_aio_channel
from rlaif.client.judge import JudgeClient, JudgeOptions, ResponsePair
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.conversation import Message
from rlaif.core.errors import DeadlineError, InvalidInputError, NotFoundError, RlaifError, UnsupportedError
from rlaif.core.template import COMPACT
from rlaif.runtime.settings import ClientSettings
from rlaif.runtime.status import from_rpc_error
from rlaif.v1 import conversation_pb2, judge_service_pb2, judge_service_pb2_grpc

NAME = CONSTITUTION.name
ASK = (Message("user", "How do I bake bread?"),)
TURN = conversation_pb2.Message(role=conversation_pb2.ROLE_USER, content="How do I bake bread?")
REPLY = conversation_pb2.Message(role=conversation_pb2.ROLE_ASSISTANT, content="Mix.")


def prefers_mix(context: str, question: str) -> Sequence[float]:
    if context.startswith("Rate"):
        return [0.05] * 9 + [0.5] if "Reply: Mix" in context else [0.5] + [0.05] * 9
    return (0.8, 0.1) if "Reply 1: Mix" in context else (0.1, 0.8)


@pytest.fixture
async def settings() -> AsyncIterator[ClientSettings]:
    async with serve_judge(ScriptedEngine(prefers_mix, context_length=1500), MemoryLedger()) as address:
        yield address


async def ask(settings: ClientSettings, use: Callable[[JudgeClient], object]) -> object:
    """Runs blocking client code beside the server's loop."""

    def run() -> object:
        with JudgeClient(settings) as client:
            return use(client)

    return await asyncio.to_thread(run)


async def test_a_comparison_comes_back_as_a_frozen_verdict(settings: ClientSettings):
    verdict = await ask(settings, lambda c: c.compare(NAME, ASK, first="Mix.", second="No."))
    assert verdict.preference == "first"
    assert verdict.probability_first == pytest.approx(8 / 9)
    assert verdict.order_consistent
    assert [vote.principle_id for vote in verdict.votes] == ["helpful", "harmless"]
    assert verdict.abstention_reason is None
    assert verdict.label.startswith("labels/")
    assert verdict.provenance.constitution_sha256 == CONSTITUTION.sha256
    assert len(verdict.provenance.trace_id) == 32


async def test_batches_are_ordered_and_report_progress(settings: ClientSettings):
    seen: list[tuple[int, int]] = []
    pairs = [
        ResponsePair(ASK, f"Mix {i}", f"No {i}") if i % 2 else ResponsePair(ASK, f"No {i}", f"Mix {i}")
        for i in range(5)
    ]
    verdicts = await ask(
        settings,
        lambda c: c.compare_many(NAME, pairs, batch_size=2, progress=lambda done, total: seen.append((done, total))),
    )
    assert [verdict.preference for verdict in verdicts] == ["second", "first", "second", "first", "second"]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    again = await ask(settings, lambda c: c.compare_many(NAME, pairs, batch_size=2))
    assert [verdict.probability_first for verdict in again] == [verdict.probability_first for verdict in verdicts]
    assert all(verdict.recorded_before for verdict in again)


async def test_a_score_and_an_empty_response_in_a_batch(settings: ClientSettings):
    score = await ask(settings, lambda c: c.score(NAME, ASK, response="Mix."))
    # (0.05 * 45 + 0.5 * 10) / 0.95 = 7.6316
    assert score.expected == pytest.approx(7.6316, abs=1e-4)
    assert score.reward == pytest.approx(2 * (score.expected - 1) / 9 - 1)
    good, empty = await ask(settings, lambda c: c.score_many(NAME, [(ASK, "Mix."), (ASK, "")]))
    assert good.recorded_before
    assert good.expected == score.expected
    assert empty.expected == pytest.approx((0.5 + 0.05 * 54) / 0.95)


async def test_a_ranking_puts_the_preferred_first(settings: ClientSettings):
    ranking = await ask(settings, lambda c: c.rank(NAME, ASK, responses=["No.", "Mix.", "Never."]))
    assert ranking.ranking[0].index == 1
    assert ranking.ranking[0].strength > ranking.ranking[1].strength
    assert len(ranking.comparisons) == 3
    assert ranking.cycles == ()
    assert ranking.abstention_reason is None


async def test_constitutions_are_read_and_listed(settings: ClientSettings):
    assert await ask(settings, lambda c: c.get_constitution(NAME)) == CONSTITUTION
    assert await ask(settings, lambda c: c.list_constitutions()) == [CONSTITUTION]


COMPARE = judge_service_pb2.CompareResponsesRequest
SCORE = judge_service_pb2.ScoreResponseRequest
RANK = judge_service_pb2.RankResponsesRequest
PAIRS = judge_service_pb2.BatchCompareResponsesRequest
Options = judge_service_pb2.JudgeOptions


def pair(**changes: object) -> judge_service_pb2.CompareResponsesRequest:
    return COMPARE(**{"constitution": NAME, "messages": [TURN], "first": "Mix.", "second": "No.", **changes})


def pairs(*changes: dict[str, object]) -> judge_service_pb2.BatchCompareResponsesRequest:
    items = [
        judge_service_pb2.Pair(**{"messages": [TURN], "first": "Mix.", "second": "No.", **change}) for change in changes
    ]
    return PAIRS(constitution=NAME, pairs=items)


def score(**changes: object) -> judge_service_pb2.ScoreResponseRequest:
    return SCORE(**{"constitution": NAME, "messages": [TURN], "response": "Mix.", **changes})


def critique(**changes: object) -> judge_service_pb2.CritiqueResponseRequest:
    fields = {"constitution": NAME, "messages": [TURN], "response": "No.", **changes}
    return judge_service_pb2.CritiqueResponseRequest(**fields)


def revise(**changes: object) -> judge_service_pb2.ReviseResponseRequest:
    fields = {"constitution": NAME, "messages": [TURN], "response": "No.", "critique": "Short.", **changes}
    return judge_service_pb2.ReviseResponseRequest(**fields)


def audit(**changes: object) -> judge_service_pb2.AuditConstitutionRequest:
    return judge_service_pb2.AuditConstitutionRequest(**{"constitution": NAME, **changes})


PAIR = judge_service_pb2.Pair(messages=[TURN], first="a", second="b")
SYSTEM = conversation_pb2.Message(role=conversation_pb2.ROLE_SYSTEM, content="Be brief.")
RULES = judge_service_pb2.Constitution(principles=[judge_service_pb2.Principle(principle_id="kind", text="Be kind.")])
FOR_CHAT = judge_service_pb2.Constitution(
    principles=[judge_service_pb2.Principle(principle_id="kind", text="Be kind.", applies_to=["chat"])]
)
NO_RULES = judge_service_pb2.Constitution(description="none")

WRONG = [
    (pair(constitution=""), InvalidInputError, "constitution", "required"),
    (pair(constitution="constitutions/other"), NotFoundError, None, "constitutions/test"),
    (pair(messages=[]), InvalidInputError, "messages", "at least one"),
    (pair(messages=[REPLY]), InvalidInputError, "messages[0].role", "user"),
    (pair(messages=[TURN, TURN]), InvalidInputError, "messages[1].role", "assistant"),
    (pair(messages=[TURN, REPLY]), InvalidInputError, "messages[1].role", "last turn"),
    (pair(messages=[TURN, REPLY, TURN, REPLY, TURN]), InvalidInputError, "messages", "limit of 3"),
    (pair(messages=[conversation_pb2.Message(content="hi")]), InvalidInputError, "messages[0].role", "role"),
    (pair(messages=[conversation_pb2.Message(role=2, content=" ")]), InvalidInputError, "messages[0].content", "empty"),
    (pair(first=""), InvalidInputError, "first", "empty"),
    (pair(second="  \n"), InvalidInputError, "second", "empty"),
    (pair(first="x" * 1001), InvalidInputError, "first", "limit of 1000"),
    (pair(second="é" * 501), InvalidInputError, "second", "limit of 1000"),
    (pair(second="Mix."), InvalidInputError, "second", "same"),
    (pair(first="x" * 900, second="y" * 900), InvalidInputError, "messages", "context of 1500"),
    (pair(options=Options(min_verdict_mass=math.nan)), InvalidInputError, "options.min_verdict_mass", "nan"),
    (pair(options=Options(min_verdict_mass=1.5)), InvalidInputError, "options.min_verdict_mass", "1.5"),
    (pair(options=Options(principle_ids=["kind"])), InvalidInputError, "options.principle_ids[0]", "'kind'"),
    (
        pair(options=Options(principle_ids=["helpful", "helpful"])),
        InvalidInputError,
        "options.principle_ids[1]",
        "twice",
    ),
    (pair(options=Options(num_sampled_principles=3)), InvalidInputError, "options.num_sampled_principles", "from 2"),
    (pair(options=Options(record=9)), InvalidInputError, "options.record", "9"),
    (pair(options=Options(num_reasoning_samples=2)), InvalidInputError, "options.num_reasoning_samples", "reasoning"),
    (
        pair(options=Options(reasoning=True, num_reasoning_samples=17)),
        InvalidInputError,
        "options.num_reasoning_samples",
        "limit of 16",
    ),
    (pair(category="x" * 65), InvalidInputError, "category", "limit of 64"),
    (pair(category="a\tb"), InvalidInputError, "category", "printable"),
    (pair(constitution="", inline_constitution=FOR_CHAT, category="code"), InvalidInputError, "category", "'code'"),
    (pair(first="x" * 2**20), InvalidInputError, "first", "limit of 1000"),
    (pair(messages=[TURN, SYSTEM]), InvalidInputError, "messages[1].role", "system"),
    (pair(messages=[REPLY, TURN]), InvalidInputError, "messages[0].role", "user"),
    (pair(inline_constitution=RULES), InvalidInputError, "inline_constitution", "not both"),
    (pair(constitution="", inline_constitution=NO_RULES), InvalidInputError, "inline_constitution.principles", "least"),
    (pairs(), InvalidInputError, "pairs", "1 to 4"),
    (pairs(*[{}] * 5), InvalidInputError, "pairs", "1 to 4"),
    (pairs({}, {"second": "Mix."}), InvalidInputError, "pairs[1].second", "same"),
    (pairs({}, {"messages": [REPLY]}), InvalidInputError, "pairs[1].messages[0].role", "user"),
    (pairs(*[{"first": "x" * 990}] * 4), InvalidInputError, "pairs", "limit of 3000"),
    (RANK(constitution=NAME, messages=[TURN], responses=["a"]), InvalidInputError, "responses", "2 to 16"),
    (RANK(constitution=NAME, messages=[TURN], responses="abcdefghijklmnopq"), InvalidInputError, "responses", "17"),
    (RANK(constitution=NAME, messages=[TURN], responses=["a", "b", "a"]), InvalidInputError, "responses[2]", "[0]"),
    (SCORE(constitution=NAME, messages=[TURN]), InvalidInputError, "response", "empty"),
    (judge_service_pb2.GetConstitutionRequest(name="constitutions/no"), NotFoundError, None, "constitutions/test"),
    (judge_service_pb2.ListConstitutionsRequest(page_token="!"), InvalidInputError, "page_token", "token"),
    (judge_service_pb2.ListConstitutionsRequest(page_size=-1), InvalidInputError, "page_size", "-1"),
    (SCORE(constitution=NAME, messages=[TURN], response="x" * 2**20), InvalidInputError, "response", "limit of 1000"),
    (score(options=Options(reasoning=True)), UnsupportedError, None, "rationale"),
    (score(options=Options(min_verdict_mass=-math.inf)), InvalidInputError, "options.min_verdict_mass", "inf"),
    (critique(response=""), InvalidInputError, "response", "empty"),
    (critique(response="x" * 1001), InvalidInputError, "response", "limit of 1000"),
    (critique(messages=[]), InvalidInputError, "messages", "at least one"),
    (critique(constitution="constitutions/other"), NotFoundError, None, "constitutions/test"),
    (critique(options=Options(principle_ids=["kind"])), InvalidInputError, "options.principle_ids[0]", "'kind'"),
    (critique(options=Options(num_sampled_principles=3)), InvalidInputError, "options.num_sampled_principles", "2"),
    (critique(options=Options(reasoning=True)), InvalidInputError, "options.reasoning", "verdict"),
    (critique(options=Options(min_verdict_mass=math.nan)), InvalidInputError, "options.min_verdict_mass", "nan"),
    (revise(critique=" "), InvalidInputError, "critique", "empty"),
    (revise(critique="x" * 1001), InvalidInputError, "critique", "limit of 1000"),
    (revise(response=""), InvalidInputError, "response", "empty"),
    (revise(principle_ids=["kind"]), InvalidInputError, "principle_ids[0]", "'kind'"),
    (revise(principle_ids=["helpful"] * 2), InvalidInputError, "principle_ids[1]", "twice"),
    (audit(constitution=""), InvalidInputError, "constitution", "required"),
    (audit(written_audit=True), UnsupportedError, None, "compact template writes no audit"),
    (audit(probe_pairs=[PAIR] * 257), InvalidInputError, "probe_pairs", "limit of 256"),
    (
        audit(probe_pairs=[PAIR, judge_service_pb2.Pair(messages=[TURN], first="x" * 1000, second="y" * 1000)]),
        InvalidInputError,
        "probe_pairs[1].messages",
        "context of 1500",
    ),
    (audit(probe_pairs=[judge_service_pb2.Pair()]), InvalidInputError, "probe_pairs[0].messages", "at least one"),
]


async def test_bad_input_is_refused_by_field_and_limit():
    engine, ledger = ScriptedEngine(prefers_mix, context_length=1500), MemoryLedger()
    problems = []
    async with serve_judge(engine, ledger) as settings, open_aio_channel(settings) as channel:
        stub = judge_service_pb2_grpc.JudgeServiceStub(channel)
        for request, error_class, field, words in WRONG:
            method = getattr(stub, type(request).__name__.removesuffix("Request"))
            try:
                await method(request)
            except RlaifError as error:
                if type(error) is not error_class or error.field != field or words not in error.message:
                    problems.append(f"{request!s} gave {error!r} field {error.field} reason {error.reason}")
            else:
                problems.append(f"{request!s} was answered")
    assert problems == []
    assert engine.batches == []
    assert ledger.labels == {}


async def test_options_reach_the_judge(settings: ClientSettings):
    options = JudgeOptions(principle_ids=("harmless",), min_verdict_mass=0.95)
    verdict = await ask(settings, lambda c: c.compare(NAME, ASK, first="Mix.", second="No.", options=options))
    assert verdict.preference == "abstain"
    assert verdict.abstention_reason == "low_verdict_mass"
    assert [vote.principle_id for vote in verdict.votes] == ["harmless"]


async def raw(settings: ClientSettings, request: bytes, method: str = "CompareResponses") -> grpc.aio.AioRpcError:
    """The refusal of bytes that no stub would send."""
    async with grpc.aio.insecure_channel(settings.target) as channel:
        call = channel.unary_unary(f"/rlaif.v1.JudgeService/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, timeout=5)
    return caught.value


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [("first", b"M\xffx.", b"Mix."), ("messages[0].content", b"How \xc3( I bake bread?", b"How do I bake bread?")],
)
async def test_text_that_is_not_utf8_is_named_by_its_field(
    settings: ClientSettings, field: str, bad: bytes, good: bytes
):
    request = pair().SerializeToString().replace(good, bad)
    refusal = await raw(settings, request)
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(refusal, target="judge")
    assert (error.field, error.reason) == (field, "INVALID_UTF8")
    assert "UTF-8" in error.message


async def test_bytes_that_are_no_message_are_wrong_input(settings: ClientSettings):
    refusal = await raw(settings, pair().SerializeToString()[:-3])
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "rlaif.v1.CompareResponsesRequest" in (refusal.details() or "")


async def test_a_deadline_that_is_too_short_is_said_so(settings: ClientSettings):
    with pytest.raises(DeadlineError):
        await ask(settings, lambda c: c.compare(NAME, ASK, first="Mix.", second="No.", timeout_seconds=1e-4))


async def test_a_critique_and_a_revision_come_back_with_what_made_them():
    def write(prompt: str, index: int) -> str:
        return "It refuses." if prompt.startswith("Find") else "No."

    async with serve_judge(ScriptedEngine(prefers_mix, write=write), MemoryLedger()) as settings:
        options = JudgeOptions(num_sampled_principles=1, seed=3)
        critique = await ask(settings, lambda c: c.critique(NAME, ASK, response="No.", options=options))
        assert critique.text == "It refuses."
        assert len(critique.principle_ids) == 1
        assert critique.abstention_reason is None
        assert critique.provenance.seed == 3
        assert critique.provenance.template_sha256 == COMPACT.writing_sha256
        revision = await ask(settings, lambda c: c.revise(NAME, ASK, response="No.", critique=critique.text))
        assert (revision.text, revision.unchanged) == ("No.", True)


async def test_a_constitution_in_the_request_decides_and_is_part_of_the_label(settings: ClientSettings):
    rules = Constitution("mine", 1, "", (Principle("kind", "Be kind."),))
    verdict = await ask(settings, lambda c: c.compare(rules, ASK, first="Mix.", second="No."))
    assert [vote.principle_id for vote in verdict.votes] == ["kind"]
    assert verdict.provenance.constitution_sha256 == rules.sha256
    named = await ask(settings, lambda c: c.compare(NAME, ASK, first="Mix.", second="No."))
    assert named.label != verdict.label


async def test_the_judge_says_who_it_is(settings: ClientSettings):
    state = await ask(settings, lambda c: c.get_judge())
    assert (state.model_digest, state.template, state.panel) == ("d" * 64, "compact", ())
    assert state.template_sha256 == COMPACT.sha256
    assert state.context_length_tokens == 1500
    assert len(state.fingerprint) == 64
    async with serve_judge(ScriptedEngine(prefers_mix, digest=""), MemoryLedger()) as unknown:
        assert (await ask(unknown, lambda c: c.get_judge())).fingerprint == ""


async def test_an_audit_finds_what_is_wrong_in_wording_and_votes(settings: ClientSettings):
    rules = Constitution(
        "mine",
        1,
        "",
        (
            Principle("good", "Prefer the good one."),
            Principle("mix", "Prefer the reply that says how to mix the dough."),
            Principle("mixing", "Prefer the reply that says how to mix the dough well."),
        ),
    )
    pairs = [ResponsePair(ASK, f"Mix {i}", f"No {i}") for i in range(8)]
    audit = await ask(settings, lambda c: c.audit(rules, probe_pairs=pairs))
    kinds = {finding.kind.value for finding in audit.findings}
    assert {"duplicate", "vague", "validation"} <= kinds
    assert {"inert"} <= kinds
    assert audit.written_audit == ""
    assert audit.provenance.constitution_sha256 == rules.sha256
    plain = await ask(settings, lambda c: c.audit(rules))
    assert "inert" not in {finding.kind.value for finding in plain.findings}
