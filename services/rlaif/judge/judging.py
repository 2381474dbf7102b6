"""How a decision comes about: looked up in the ledger, else made by the labelling core and recorded, then answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlaif.core.constitution import Constitution
from rlaif.core.conversation import Conversation
from rlaif.core.errors import InvalidInputError
from rlaif.core.template import JudgeTemplate
from rlaif.engine.protocol import Engine
from rlaif.judge.labelling import LabellingCore
from rlaif.judge.metrics import JudgeMetrics
from rlaif.judge.ranking import (
    MAX_ALL_PAIRS,
    Comparison,
    Pairing,
    all_pairs,
    linking_pairs,
    num_swiss_rounds,
    swiss_round,
)
from rlaif.judge.recording import Recorder
from rlaif.judge.tasks import Candidate, JudgeFingerprint, JudgingOptions, Task, make_tasks
from rlaif.judge.wire import label_message
from rlaif.v1 import judge_service_pb2, ledger_service_pb2, provenance_pb2

MakeProvenance = Callable[[Task], provenance_pb2.Provenance]


@dataclass(frozen=True)
class Decision:
    """A label as the ledger holds it, or as it was made when there is no ledger (`label.name` is then empty)."""

    label: ledger_service_pb2.Label
    recorded_before: bool

    @property
    def verdict(self) -> judge_service_pb2.Verdict:
        """The answer to a comparison."""
        verdict = judge_service_pb2.Verdict()
        verdict.CopyFrom(self.label.verdict)
        verdict.label, verdict.recorded_before = self.label.name, self.recorded_before
        return verdict

    @property
    def score(self) -> judge_service_pb2.Score:
        """The answer to a score."""
        score = judge_service_pb2.Score()
        score.CopyFrom(self.label.score)
        score.label, score.recorded_before = self.label.name, self.recorded_before
        return score


@dataclass(frozen=True)
class RankedPair:
    """One comparison of a ranking."""

    pairing: Pairing
    decision: Decision

    @property
    def comparison(self) -> Comparison | None:
        """The outcome; None when the judge abstained."""
        verdict = self.decision.label.verdict
        if not verdict.HasField("probability_first"):
            return None
        return Comparison(*self.pairing, probability_first=verdict.probability_first)


class Judge:
    """Decides candidates under a constitution. Without a recorder nothing is remembered."""

    def __init__(
        self,
        engine: Engine,
        *,
        core: LabellingCore,
        template: JudgeTemplate,
        recorder: Recorder | None,
        make_provenance: MakeProvenance,
        metrics: JudgeMetrics,
    ) -> None:
        self._engine = engine
        self._core = core
        self._template = template
        self._recorder = recorder
        self._make_provenance = make_provenance
        self._metrics = metrics

    async def decide(
        self,
        candidates: Sequence[Candidate],
        *,
        constitution: Constitution,
        options: JudgingOptions,
        refuse_too_long: bool = False,
    ) -> list[Decision]:
        """One decision a candidate, in order; equal candidates get one label."""
        tasks = make_tasks(
            candidates,
            constitution=constitution,
            options=options,
            fingerprint=JudgeFingerprint(self._engine.identity.digest, self._template.sha256),
        )
        distinct = {task.request_sha256: task for task in reversed(tasks)}
        pending = list(reversed(distinct.values()))
        decisions = await self._recorded(pending)
        missing = [task for task in pending if task.request_sha256 not in decisions]
        if missing:
            decisions |= await self._make(missing, refuse_too_long=refuse_too_long)
        answers = [decisions[task.request_sha256] for task in tasks]
        if refuse_too_long and any(_too_long(answer.label) for answer in answers):
            raise InvalidInputError(
                f"the judge's prompt is longer than its context of {self._engine.context_length} tokens",
                field="messages",
                reason="PROMPT_TOO_LONG",
            )
        return answers

    async def rank(
        self,
        conversation: Conversation,
        responses: Sequence[str],
        *,
        constitution: Constitution,
        options: JudgingOptions,
        category: str = "",
    ) -> list[RankedPair]:
        """The comparisons of a ranking: all pairs, or a Swiss tournament and what it takes to connect all responses."""
        played: list[RankedPair] = []

        async def play(pairings: Sequence[Pairing]) -> None:
            candidates = [Candidate(conversation, (responses[i], responses[j]), category) for i, j in pairings]
            decisions = await self.decide(candidates, constitution=constitution, options=options, refuse_too_long=True)
            played.extend(map(RankedPair, pairings, decisions))

        size = len(responses)
        if size <= MAX_ALL_PAIRS:
            await play(all_pairs(size))
            return played
        for _ in range(num_swiss_rounds(size)):
            if pairings := swiss_round(size, outcomes(played), played={pair.pairing for pair in played}):
                await play(pairings)
        while links := linking_pairs(size, outcomes(played), played={pair.pairing for pair in played}):
            await play(links)
        return played

    async def _recorded(self, tasks: Sequence[Task]) -> dict[str, Decision]:
        # A task that can have no twin (a nonce is in its digest) is not looked for.
        if self._recorder is None or not self._repeatable(tasks):
            return {}
        found = await self._recorder.find([task.request_sha256 for task in tasks])
        for task in tasks:
            if task.request_sha256 in found:
                self._metrics.ledger_hits.labels(form=task.candidate.form).inc()
        return {digest: Decision(label, recorded_before=True) for digest, label in found.items()}

    def _repeatable(self, tasks: Sequence[Task]) -> bool:
        return bool(self._engine.identity.digest) and not tasks[0].options.ignore_recorded

    async def _make(self, tasks: Sequence[Task], *, refuse_too_long: bool) -> dict[str, Decision]:
        judgements = await self._core.decide(tasks, refuse_too_long=refuse_too_long)
        labels = [
            label_message(task, judgement, provenance=self._make_provenance(task))
            for task, judgement in zip(tasks, judgements, strict=True)
        ]
        for label in labels:
            self._metrics.count_label(label)
        if self._recorder is None:
            for label in labels:
                label.ClearField("name")
            return {label.request_sha256: Decision(label, recorded_before=False) for label in labels}
        stored = await self._recorder.record(labels)
        return {
            made.request_sha256: Decision(kept, recorded_before=_provenance(kept) != _provenance(made))
            for made, kept in zip(labels, stored, strict=True)
        }


def outcomes(pairs: Sequence[RankedPair]) -> list[Comparison]:
    """The comparisons that have a verdict."""
    return [pair.comparison for pair in pairs if pair.comparison is not None]


def _provenance(label: ledger_service_pb2.Label) -> tuple[str, int]:
    """Tells one making of a label from another: a concurrent call may have recorded its own first."""
    decision = label.verdict if label.HasField("verdict") else label.score
    return decision.provenance.trace_id, decision.provenance.create_time.ToMicroseconds()


def _too_long(label: ledger_service_pb2.Label) -> bool:
    decision = label.verdict if label.HasField("verdict") else label.score
    return decision.abstention_reason == judge_service_pb2.ABSTENTION_REASON_TOO_LONG
