"""Comparisons with a rationale: written first, for each principle and order, then the verdict is read after it.

Every rationale of one presentation continues the same prefix, and so does every verdict; only what differs is computed
anew. Verdicts are log-probabilities of the labels, never searched for in the rationale (arXiv 2212.08073 §4.1).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlaif.core.errors import InvalidInputError
from rlaif.core.preference import (
    AbstentionReason,
    OrderVote,
    PairLabel,
    PrincipleVote,
    abstain,
    average_samples,
    combine_orders,
    combine_principles,
    order_vote,
)
from rlaif.core.template import VERDICT_LABELS, JudgeTemplate
from rlaif.engine.protocol import ChoiceLogprobs, ChoiceRequest, Engine, GenerateRequest, Generation, TokenIds
from rlaif.judge.generation import PlanningThread, RunGenerate, read_text, text_request
from rlaif.judge.tasks import Reasoning, Task

# A rationale read back as text may take a few tokens more than when it was drawn, and so may its delimiters.
_SPARE_TOKENS = 32

RunChoices = Callable[[Sequence[ChoiceRequest]], Awaitable[Sequence[ChoiceLogprobs]]]


@dataclass(frozen=True)
class Reasoned:
    """The label, unclamped, and the first usable rationale of each principle and order, a paragraph each."""

    label: PairLabel
    rationale: str


@dataclass(frozen=True)
class _Presentation:
    """One order of one pair: what stands before every question about it."""

    prefix: TokenIds
    rationale_requests: tuple[GenerateRequest, ...]
    """One a principle."""
    seed: int


@dataclass(frozen=True)
class _Reasons:
    """The usable rationales of one presentation under one principle, and for each what asks for the verdict."""

    texts: tuple[str, ...]
    suffixes: tuple[TokenIds, ...]


class Reasoner:
    """Decides tasks by rationale with one engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        template: JudgeTemplate,
        run_generate: RunGenerate,
        run_choices: RunChoices,
        plan: PlanningThread,
    ) -> None:
        self._engine = engine
        self._template = template
        self._run_generate = run_generate
        self._run_choices = run_choices
        self._plan = plan
        self._choices = engine.encode_choices(VERDICT_LABELS)

    async def decide(self, tasks: Sequence[Task], *, refuse_too_long: bool) -> list[Reasoned]:
        """One decision a task, which must be a comparison with reasoning asked for."""
        presentations = await self._plan(self._presentations, tasks, refuse_too_long)
        asked = [request for each in _present(presentations) for request in each.rationale_requests]
        written = iter(await self._run_generate(asked))
        generations = [
            [next(written) for _ in each.rationale_requests] if each is not None else [] for each in presentations
        ]
        reasons = await self._plan(self._reasons, tasks, presentations, generations)
        requests = [self._verdict_request(*each) for each in zip(presentations, reasons, strict=True)]
        answers = iter(await self._run_choices([request for request in requests if request is not None]))
        votes = [
            _order_votes(each, next(answers) if request is not None else None)
            for each, request in zip(reasons, requests, strict=True)
        ]
        return [
            self._decision(task, presentations[2 * i : 2 * i + 2], reasons[2 * i : 2 * i + 2], votes[2 * i : 2 * i + 2])
            for i, task in enumerate(tasks)
        ]

    def _presentations(self, tasks: Sequence[Task], refuse_too_long: bool) -> list[_Presentation | None]:
        """Two a task, in the order given and swapped; None where a prompt does not fit."""
        found: list[_Presentation | None] = []
        for task in tasks:
            pair = [self._presentation(task, *task.candidate.responses)]
            pair.append(self._presentation(task, *task.candidate.responses[::-1]))
            if refuse_too_long and None in pair:
                limit, reserve = self._engine.context_length, _reasoning(task).decoding.max_tokens
                raise InvalidInputError(
                    f"the judge's prompt and a rationale of {reserve} tokens are longer than its context of {limit}",
                    field="messages",
                    reason="PROMPT_TOO_LONG",
                )
            found += pair if None not in pair else [None, None]
        return found

    def _presentation(self, task: Task, first: str, second: str) -> _Presentation | None:
        template, reasoning = self._template, _reasoning(task)
        context = template.comparison(task.candidate.conversation, first=first, second=second)
        requests = []
        for principle in task.principles:
            prefix, suffix = self._engine.encode_judge_prompt(context, template.rationale(principle.text))
            after = template.reasoned_comparison_question(principle.text, rationale="")
            _, verdict_suffix = self._engine.encode_judge_prompt("", after)
            longest = len(prefix) + max(len(suffix), len(verdict_suffix)) + reasoning.decoding.max_tokens
            if longest + _SPARE_TOKENS > self._engine.context_length:
                return None
            requests.append(
                text_request(
                    prefix + suffix,
                    decoding=reasoning.decoding,
                    seed=task.seed,
                    num_completions=reasoning.num_samples,
                )
            )
        return _Presentation(prefix, tuple(requests), task.seed)

    def _reasons(
        self,
        tasks: Sequence[Task],
        presentations: Sequence[_Presentation | None],
        generations: Sequence[Sequence[Sequence[Generation]]],
    ) -> list[list[_Reasons]]:
        """For each presentation one a principle; none where the presentation is missing."""
        return [
            [
                self._usable(presentation, principle.text, written)
                for principle, written in zip(tasks[index // 2].principles, each, strict=True)
            ]
            if presentation is not None
            else []
            for index, (presentation, each) in enumerate(zip(presentations, generations, strict=True))
        ]

    def _usable(self, presentation: _Presentation, principle: str, generations: Sequence[Generation]) -> _Reasons:
        """Whole rationales whose verdict fits the context: read back, a text may have more tokens than when drawn."""
        found = []
        for text in map(read_text, generations):
            question = self._template.reasoned_comparison_question(principle, rationale=text.content)
            _, suffix = self._engine.encode_judge_prompt("", question)
            longest = len(presentation.prefix) + len(suffix) + max(map(len, self._choices))
            if text.content and longest <= self._engine.context_length:
                found.append((text.content, suffix))
        return _Reasons(tuple(text for text, _ in found), tuple(suffix for _, suffix in found))

    def _verdict_request(self, presentation: _Presentation | None, reasons: Sequence[_Reasons]) -> ChoiceRequest | None:
        """A suffix for every usable rationale; None where there is none."""
        suffixes = tuple(suffix for each in reasons for suffix in each.suffixes)
        if presentation is None or not suffixes:
            return None
        return ChoiceRequest(presentation.prefix, suffixes, self._choices, seed=presentation.seed)

    def _decision(
        self,
        task: Task,
        presentations: Sequence[_Presentation | None],
        reasons: Sequence[Sequence[_Reasons]],
        votes: Sequence[Sequence[OrderVote | None]],
    ) -> Reasoned:
        if None in presentations:
            return Reasoned(abstain(AbstentionReason.TOO_LONG), "")
        label = combine_principles(
            [
                _vote(
                    task,
                    index,
                    *(vote[index] for vote in votes),
                    written=all(each[index].texts for each in reasons),
                )
                for index in range(len(task.principles))
            ]
        )
        paragraphs = [
            f"[{principle.principle_id}, {order} response shown first] {each[index].texts[0]}"
            for index, principle in enumerate(task.principles)
            for order, each in zip(("first", "second"), reasons, strict=True)
            if each[index].texts
        ]
        return Reasoned(label, "\n\n".join(paragraphs))


def _present(presentations: Iterable[_Presentation | None]) -> Iterator[_Presentation]:
    return (each for each in presentations if each is not None)


def _reasoning(task: Task) -> Reasoning:
    assert task.options.reasoning is not None
    return task.options.reasoning


def _order_votes(reasons: Sequence[_Reasons], answer: ChoiceLogprobs | None) -> list[OrderVote | None]:
    """The vote of each principle, averaged over its rationales; None where no rationale gave one."""
    cast_votes = iter(_cast_votes(answer) if answer is not None else ())
    votes: list[OrderVote | None] = []
    for each in reasons:
        cast = [next(cast_votes) for _ in each.texts]
        finite = [vote for vote in cast if vote is not None]
        votes.append(average_samples(finite) if finite else None)
    return votes


def _cast_votes(answer: ChoiceLogprobs) -> list[OrderVote | None]:
    return [
        order_vote(one, two, unlisted=answer.unlisted_after(index)) for index, (one, two) in enumerate(answer.logprobs)
    ]


def _vote(task: Task, index: int, first: OrderVote | None, second: OrderVote | None, *, written: bool) -> PrincipleVote:
    principle = task.principles[index]
    return combine_orders(
        principle.principle_id,
        weight=principle.weight,
        first_shown_first=first,
        second_shown_first=second,
        min_verdict_mass=task.options.min_verdict_mass,
        missing_reason=AbstentionReason.NOT_FINITE if written else AbstentionReason.UNPARSEABLE,
    )
