"""How a decision comes about: looked up in the ledger, else made by the labelling core and recorded, then answered."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rlaif.core.calibration import Calibration
from rlaif.core.canonical import sha256_hex
from rlaif.core.constitution import Constitution
from rlaif.core.conversation import Conversation
from rlaif.core.errors import InvalidInputError, UnsupportedError
from rlaif.core.preference import TRANSIENT_REASONS, AbstentionReason, JudgeVote, PairLabel
from rlaif.core.reward import ResponseScore
from rlaif.core.template import JudgeTemplate
from rlaif.engine.protocol import Engine
from rlaif.judge.calibrating import CalibrationKey
from rlaif.judge.labelling import Judgement, LabellingCore
from rlaif.judge.metrics import JudgeMetrics
from rlaif.judge.panel import Panel
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
from rlaif.judge.settling import own_vote, settle
from rlaif.judge.tasks import Candidate, JudgeFingerprint, JudgingOptions, Task, make_tasks
from rlaif.judge.wire import label_message
from rlaif.v1 import judge_service_pb2, ledger_service_pb2, provenance_pb2

MakeProvenance = Callable[[Task], provenance_pb2.Provenance]


@dataclass(frozen=True)
class Decision:
    """A label as the ledger holds it, or as it was made when there is no ledger (`label.name` is then empty)."""

    label: ledger_service_pb2.Label
    recorded_before: bool
    rationale: str = ""
    """What was written for it now, whether it was recorded or not."""

    @property
    def verdict(self) -> judge_service_pb2.Verdict:
        """The answer to a comparison."""
        verdict = judge_service_pb2.Verdict()
        verdict.CopyFrom(self.label.verdict)
        verdict.label, verdict.recorded_before = self.label.name, self.recorded_before
        verdict.rationale = self.rationale or verdict.rationale
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
    """Decides candidates under a constitution. Without a recorder nothing is remembered.

    `num_verdict_samples` is what the core estimates each verdict from; 0 when it reads log-probabilities.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        core: LabellingCore,
        template: JudgeTemplate,
        recorder: Recorder | None,
        make_provenance: MakeProvenance,
        metrics: JudgeMetrics,
        calibrations: Mapping[CalibrationKey, Calibration] | None = None,
        panel: Panel | None = None,
        num_verdict_samples: int = 0,
    ) -> None:
        self._engine = engine
        self._core = core
        self._template = template
        self._recorder = recorder
        self._make_provenance = make_provenance
        self._metrics = metrics
        self._calibrations = dict(calibrations or {})
        self._panel = panel
        self._num_verdict_samples = num_verdict_samples

    async def decide(
        self,
        candidates: Sequence[Candidate],
        *,
        constitution: Constitution,
        options: JudgingOptions,
        refuse_too_long: bool = False,
    ) -> list[Decision]:
        """One decision a candidate, in order; equal candidates get one label."""
        self._check_form(candidates, options)
        fingerprint = await self._deciding(constitution, options)
        tasks = make_tasks(candidates, constitution=constitution, options=options, fingerprint=fingerprint)
        distinct = {task.request_sha256: task for task in reversed(tasks)}
        pending = list(reversed(distinct.values()))
        repeatable = fingerprint.repeatable and not options.ignore_recorded
        decisions = await self._recorded(pending) if repeatable else {}
        missing = [task for task in pending if task.request_sha256 not in decisions]
        if missing:
            decisions |= await self._make(missing, refuse_too_long=refuse_too_long)
        answers = [decisions[task.request_sha256] for task in tasks]
        if refuse_too_long and any(_too_long(answer.label) for answer in answers):
            raise self._prompt_too_long(field="messages")
        return answers

    def _prompt_too_long(self, *, field: str) -> InvalidInputError:
        return InvalidInputError(
            f"the judge's prompt is longer than its context of {self._engine.context_length} tokens",
            field=field,
            reason="PROMPT_TOO_LONG",
        )

    async def fingerprint(self) -> JudgeFingerprint:
        """What of this judge decides a label, its calibrations aside."""
        return JudgeFingerprint(
            model_digest=self._engine.identity.digest,
            template_sha256=self._template.sha256,
            context_length=self._engine.context_length,
            panel=await self._panel.fingerprint() if self._panel is not None else (),
            num_verdict_samples=self._num_verdict_samples,
        )

    async def try_out(
        self, candidates: Sequence[Candidate], *, constitution: Constitution, options: JudgingOptions
    ) -> list[PairLabel]:
        """What the own model says of pairs, for looking at the constitution: no label is made of it or recorded.

        InvalidInputError names the probe pair that is too long.
        """
        tasks = make_tasks(
            candidates,
            constitution=constitution,
            options=options,
            fingerprint=JudgeFingerprint(
                self._engine.identity.digest,
                self._template.sha256,
                num_verdict_samples=self._num_verdict_samples,
            ),
        )
        too_long = await self._core.find_too_long(tasks)
        if too_long is not None:
            raise self._prompt_too_long(field=f"probe_pairs[{too_long}].messages")
        judgements = await self._core.decide(tasks, refuse_too_long=True)
        return [each.decision for each in judgements if isinstance(each.decision, PairLabel)]

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
        if self._recorder is None:
            return {}
        found = await self._recorder.find([task.request_sha256 for task in tasks])
        for task in tasks:
            if task.request_sha256 in found:
                self._metrics.ledger_hits.labels(form=task.candidate.form).inc()
        return {digest: Decision(label, recorded_before=True) for digest, label in found.items()}

    def _check_form(self, candidates: Sequence[Candidate], options: JudgingOptions) -> None:
        if candidates[0].form == "compare":
            return
        if options.reasoning is not None:
            raise UnsupportedError(
                "scores are read without a rationale", reason="REASONING_UNSUPPORTED", field="options.reasoning"
            )
        if self._panel is not None:
            raise UnsupportedError("this judge is a panel, and panels compare but do not score", reason="PANEL_SCORES")

    async def _deciding(self, constitution: Constitution, options: JudgingOptions) -> JudgeFingerprint:
        calibration = self._calibration(constitution, options)
        return replace(
            await self.fingerprint(),
            template_sha256=self._template_sha256(options),
            calibration=calibration.calibration_id if calibration is not None else "",
        )

    def _template_sha256(self, options: JudgingOptions) -> str:
        return self._template.reasoning_sha256 if options.reasoning is not None else self._template.sha256

    def _calibration(self, constitution: Constitution, options: JudgingOptions) -> Calibration | None:
        return self._calibrations.get((self._template_sha256(options), constitution.sha256))

    async def _make(self, tasks: Sequence[Task], *, refuse_too_long: bool) -> dict[str, Decision]:
        """New decisions by the digest under which they were asked for."""
        judgements, votes = await self._ask(tasks, refuse_too_long=refuse_too_long)
        labels = [
            self._label(task, judgement, vote) for task, judgement, vote in zip(tasks, judgements, votes, strict=True)
        ]
        for label in labels:
            self._metrics.count_label(label)
        kept = await self._record(tasks, labels)
        decisions = {}
        for task, made, stored in zip(tasks, labels, kept, strict=True):
            recorded_before = _provenance(stored) != _provenance(made)
            rationale = "" if recorded_before else made.verdict.rationale
            decisions[task.request_sha256] = Decision(stored, recorded_before=recorded_before, rationale=rationale)
        return decisions

    async def _ask(
        self, tasks: Sequence[Task], *, refuse_too_long: bool
    ) -> tuple[list[Judgement], list[tuple[JudgeVote, ...]]]:
        """The own model's judgements and, at the same time, the votes of the panel's other judges."""
        deciding = self._core.decide(tasks, refuse_too_long=refuse_too_long)
        if self._panel is None:
            return await deciding, [()] * len(tasks)
        voting = asyncio.create_task(self._panel.votes(tasks))
        try:
            return await deciding, await voting
        finally:
            voting.cancel()

    def _label(self, task: Task, judgement: Judgement, votes: tuple[JudgeVote, ...]) -> ledger_service_pb2.Label:
        decision = judgement.decision
        if isinstance(decision, ResponseScore):
            return label_message(task, decision, screening=judgement.screening, provenance=self._make_provenance(task))
        calibration = self._calibration(task.constitution, task.options)
        own = own_vote(
            decision,
            identity=self._engine.identity,
            reasoned=task.options.reasoning is not None,
            calibration=calibration,
        )
        turned_away = own.abstention_reason is AbstentionReason.INJECTION_SUSPECTED
        pair = settle(
            decision,
            own,
            calibration=calibration,
            others=() if turned_away else votes,
            panel=self._panel.options if self._panel is not None and not turned_away else None,
        )
        if any(vote.abstention_reason in TRANSIENT_REASONS for vote in pair.judge_votes):
            # A vote that is missing today may be there tomorrow: this label must not answer then.
            task = replace(task, request_sha256=sha256_hex(f"{task.request_sha256} {uuid.uuid4().hex}".encode()))
        return label_message(
            task,
            pair,
            screening=judgement.screening,
            provenance=self._make_provenance(task),
            rationale=judgement.rationale,
        )

    async def _record(
        self, tasks: Sequence[Task], labels: Sequence[ledger_service_pb2.Label]
    ) -> list[ledger_service_pb2.Label]:
        """The labels as the ledger holds them; a rationale may quote the texts, so it is kept where they are."""
        if self._recorder is None:
            for label in labels:
                label.ClearField("name")
            return list(labels)
        return await self._recorder.record(
            [
                _without_rationale(label) if label.verdict.rationale and not task.options.keep_texts else label
                for task, label in zip(tasks, labels, strict=True)
            ]
        )


def _without_rationale(label: ledger_service_pb2.Label) -> ledger_service_pb2.Label:
    copy = ledger_service_pb2.Label()
    copy.CopyFrom(label)
    copy.verdict.ClearField("rationale")
    return copy


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
