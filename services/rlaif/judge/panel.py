"""The other judges of a panel: judge services elsewhere, asked beside the own model. No answer is no vote."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from rlaif.client.judge_aio import AsyncJudgeClient
from rlaif.client.judge_messages import Rules
from rlaif.client.judge_values import JudgeOptions, JudgeState, ResponsePair, Verdict
from rlaif.core.canonical import digest
from rlaif.core.constitution import Constitution
from rlaif.core.errors import (
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    RlaifError,
    UnauthenticatedError,
    UnsupportedError,
)
from rlaif.core.preference import AbstentionReason, JudgeVote
from rlaif.judge.settling import PanelOptions
from rlaif.judge.tasks import Task
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.settings import ClientSettings

_log = EventLogger(__name__)

_REFUSALS = (
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnsupportedError,
    UnauthenticatedError,
    ForbiddenError,
)
_STATE_SECONDS = 30.0
"""For how long it is believed which weights a judge has; its answers are checked against it."""
_ASKING_SECONDS = 5.0
_BATCH_SIZE = 64


class RemoteJudge:
    """One judge service of a panel. Make it inside a running loop; close it."""

    def __init__(self, name: str, settings: ClientSettings) -> None:
        self.name = name
        self._settings = settings
        self._client = AsyncJudgeClient(settings)
        self._state: JudgeState | None = None
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()
        self._known: set[str] = set()

    @property
    def state(self) -> JudgeState | None:
        """What it said of itself last; None when it did not answer."""
        return self._state

    async def fingerprint(self) -> str:
        """Digest of what decides its votes; empty when its weights are unknown or it cannot be asked."""
        async with self._asking:
            if time.monotonic() - self._asked_at > _STATE_SECONDS:
                self._state = await self._ask()
                self._known.clear()
                self._asked_at = time.monotonic()
        if self._state is None or not self._state.fingerprint:
            return ""
        return digest([self.name, self._state.fingerprint])

    async def votes(self, tasks: Sequence[Task]) -> list[JudgeVote]:
        """One vote a task, in order, with a reason where there is none; all choices of principles are asked at once."""
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, task in enumerate(tasks):
            groups[tuple(principle.principle_id for principle in task.principles)].append(index)
        answers = await asyncio.gather(
            *(
                self._ask_votes([tasks[index] for index in indices], principle_ids)
                for principle_ids, indices in groups.items()
            )
        )
        votes = dict(zip(chain.from_iterable(groups.values()), chain.from_iterable(answers), strict=True))
        return [votes[index] for index in range(len(tasks))]

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def _ask(self) -> JudgeState | None:
        try:
            async with asyncio.timeout(min(_ASKING_SECONDS, self._settings.timeout_seconds)):
                return await self._client.get_judge()
        except (RlaifError, TimeoutError) as error:
            _log.warning("a judge of the panel does not say who it is", judge=self.name, error=str(error))
            return None

    async def _ask_votes(self, tasks: Sequence[Task], principle_ids: tuple[str, ...]) -> list[JudgeVote]:
        answers = self._client.compare_each(
            await self._rules(tasks[0].constitution),
            [ResponsePair(task.candidate.conversation, *task.candidate.responses) for task in tasks],
            options=_options(tasks[0], principle_ids),
            batch_size=_BATCH_SIZE,
        )
        return [self._vote(answer) async for answer in answers]

    async def _rules(self, constitution: Constitution) -> Rules:
        """The constitution's name where this judge has the same, else the constitution, under a name that is free."""
        if constitution.sha256 not in self._known:
            try:
                theirs = await self._client.get_constitution(constitution.name)
            except RlaifError:
                return constitution
            if theirs.sha256 != constitution.sha256:
                return _renamed(constitution)
            self._known.add(constitution.sha256)
        return constitution.name

    def _vote(self, answer: Verdict | RlaifError) -> JudgeVote:
        if isinstance(answer, RlaifError):
            _log.warning(
                "a judge of the panel has no vote", judge=self.name, reason=answer.reason, error=answer.message
            )
            return self._missing(_why_missing(answer))
        uri, model_digest = answer.provenance.model_uri, answer.provenance.model_digest
        if self._state is not None and model_digest != self._state.model_digest:
            # It was started anew with other weights: the key under which this label would be kept is not its own.
            self._asked_at = float("-inf")
            return self._missing(AbstentionReason.UNREACHABLE)
        reason = AbstentionReason(answer.abstention_reason) if answer.abstention_reason else None
        if answer.probability_first is None:
            return JudgeVote(self.name, uri, model_digest, abstention_reason=reason or AbstentionReason.UNPARSEABLE)
        when_first, when_second = _orders(answer, probability_first=answer.probability_first)
        return JudgeVote(
            judge=self.name,
            model_uri=uri,
            model_digest=model_digest,
            model_version=answer.provenance.model_version,
            probability_first=answer.probability_first,
            raw_probability_first=answer.raw_probability_first,
            probability_when_first=when_first,
            probability_when_second=when_second,
        )

    def _missing(self, reason: AbstentionReason) -> JudgeVote:
        state = self._state
        return JudgeVote(
            self.name, state.model_uri if state else "", state.model_digest if state else "", abstention_reason=reason
        )


class Panel:
    """The other judges, and how their votes are combined with the own model's."""

    def __init__(self, judges: Sequence[RemoteJudge], *, options: PanelOptions) -> None:
        self.judges = tuple(judges)
        self.options = options

    async def fingerprint(self) -> tuple[str, ...]:
        """The rule, then a digest of each judge: empty where its weights are unknown."""
        rule = f"{self.options.rule} of {self.options.quorum}, {self.options.max_disagreement}"
        return rule, *await asyncio.gather(*(judge.fingerprint() for judge in self.judges))

    async def votes(self, tasks: Sequence[Task]) -> list[tuple[JudgeVote, ...]]:
        """For each task one vote a judge, all asked at the same time."""
        by_judge = await asyncio.gather(*(judge.votes(tasks) for judge in self.judges))
        return list(zip(*by_judge, strict=True))

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(judge.close() for judge in self.judges))


def _why_missing(error: RlaifError) -> AbstentionReason:
    if isinstance(error, DeadlineError):
        return AbstentionReason.TIMED_OUT
    return AbstentionReason.REFUSED if isinstance(error, _REFUSALS) else AbstentionReason.UNREACHABLE


def _renamed(constitution: Constitution) -> Constitution:
    """The same rules under another name: a judge refuses other rules under the name of its own."""
    name = f"{constitution.constitution_id[:40]}-{constitution.sha256[:12]}"
    return replace(constitution, constitution_id=name)


def _orders(verdict: Verdict, *, probability_first: float) -> tuple[float, float]:
    """P(first) when shown first and when shown second; the verdict's own where a panel stands behind it."""
    voting = [vote for vote in verdict.votes if vote.abstention_reason is None]
    if not voting:
        return probability_first, probability_first
    weight = sum(vote.weight for vote in voting)
    return (
        sum(vote.weight * vote.probability_shown_first for vote in voting) / weight,
        sum(vote.weight * vote.probability_shown_second for vote in voting) / weight,
    )


def _options(task: Task, principle_ids: tuple[str, ...]) -> JudgeOptions:
    options = task.options
    return JudgeOptions(
        principle_ids=principle_ids,
        seed=options.seed,
        reasoning=options.reasoning is not None,
        num_reasoning_samples=options.reasoning.num_samples if options.reasoning else 0,
        min_verdict_mass=options.min_verdict_mass,
        record="digests",
        ignore_recorded=options.ignore_recorded,
    )
