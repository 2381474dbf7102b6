"""The labelling core: candidates in, votes out. Both orders and all principles of a batch reach the engine together.

The prompt puts what the principles share first, so each presentation order is one prefix with one suffix a principle;
the verdict is read from the labels' log-probabilities in one forward pass, nothing is decoded (arXiv 2309.00267 §3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.core.errors import InvalidInputError, UnsupportedError
from rlaif.core.preference import (
    AbstentionReason,
    OrderVote,
    PairLabel,
    PrincipleVote,
    abstain,
    combine_orders,
    combine_principles,
    order_vote,
)
from rlaif.core.reward import ResponseScore, combine_scores, principle_score
from rlaif.core.template import SCORE_LABELS, VERDICT_LABELS, JudgeTemplate
from rlaif.engine.protocol import ChoiceLogprobs, ChoiceRequest, Engine, TokenIds
from rlaif.judge.generation import PlanningThread
from rlaif.judge.reasoning import Reasoner, RunChoices
from rlaif.judge.screening import NOTHING_SUSPECTED, Screen, Screening
from rlaif.judge.tasks import Task

# Requests may bring constitutions of their own, so there is no end to questions.
_MAX_KNOWN_QUESTIONS = 4096


@dataclass(frozen=True)
class Judgement:
    """The decision on one task: its own probabilities, neither clamped nor calibrated."""

    decision: PairLabel | ResponseScore
    screening: Screening = NOTHING_SUSPECTED
    rationale: str = ""


@dataclass(frozen=True)
class _Plan:
    """What one task asks of the engine: no requests when it abstains beforehand."""

    requests: tuple[ChoiceRequest, ...]
    abstention_reason: AbstentionReason | None = None


class LabellingCore:
    """Turns tasks into judgements with one engine; `run_choices` is where the engine's batches are formed.

    Without a reasoner, tasks that ask for a rationale are refused.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        template: JudgeTemplate,
        run_choices: RunChoices,
        plan: PlanningThread | None = None,
        reasoner: Reasoner | None = None,
        screen: Screen | None = None,
    ) -> None:
        self._engine = engine
        self._template = template
        self._run_choices = run_choices
        self._verdict_choices = engine.encode_choices(VERDICT_LABELS)
        self._score_choices = engine.encode_choices(SCORE_LABELS)
        self._suffixes: dict[str, TokenIds] = {}
        self._plan = plan or PlanningThread()
        self._reasoner = reasoner
        self._screen = screen or Screen()

    async def decide(self, tasks: Sequence[Task], *, refuse_too_long: bool) -> list[Judgement]:
        """One judgement a task. A prompt that does not fit is an error with `refuse_too_long`, else an abstention."""
        if tasks and tasks[0].options.reasoning is not None:
            return await self._decide_reasoned(tasks, refuse_too_long=refuse_too_long)
        # One hop to the planning thread: it costs more than what is done there for a short pair.
        screenings, plans = await self._plan(self._screen_and_plan, tasks, refuse_too_long)
        answers = iter(await self._run_choices([request for plan in plans for request in plan.requests]))
        return [
            Judgement(_decide(task, plan, [next(answers) for _ in plan.requests]), screening)
            for task, plan, screening in zip(tasks, plans, screenings, strict=True)
        ]

    async def find_too_long(self, tasks: Sequence[Task]) -> int | None:
        """Position of the first task whose prompt does not fit, without a rationale; None when all fit."""

        def find() -> int | None:
            too_long = AbstentionReason.TOO_LONG
            plans = (self._plan_one(task, refuse_too_long=False) for task in tasks)
            return next((index for index, plan in enumerate(plans) if plan.abstention_reason is too_long), None)

        return await self._plan(find)

    def close(self) -> None:
        """Stop the planning thread."""
        self._plan.close()

    async def _decide_reasoned(self, tasks: Sequence[Task], *, refuse_too_long: bool) -> list[Judgement]:
        if self._reasoner is None:
            raise UnsupportedError("this judge writes no rationales", reason="REASONING_UNSUPPORTED")
        screenings = await self._plan(self._screen, tasks)
        admitted = [task for task, each in zip(tasks, screenings, strict=True) if not _turned_away(task, each)]
        reasoned = iter(await self._reasoner.decide(admitted, refuse_too_long=refuse_too_long))
        judgements = []
        for task, screening in zip(tasks, screenings, strict=True):
            if _turned_away(task, screening):
                judgements.append(Judgement(abstain(AbstentionReason.INJECTION_SUSPECTED), screening))
            else:
                each = next(reasoned)
                judgements.append(Judgement(each.label, screening, each.rationale))
        return judgements

    def _screen_and_plan(self, tasks: Sequence[Task], refuse_too_long: bool) -> tuple[list[Screening], list[_Plan]]:
        screenings = self._screen(tasks)
        plans = [
            _Plan((), AbstentionReason.INJECTION_SUSPECTED)
            if _turned_away(task, screening)
            else self._plan_one(task, refuse_too_long=refuse_too_long)
            for task, screening in zip(tasks, screenings, strict=True)
        ]
        return screenings, plans

    def _plan_one(self, task: Task, *, refuse_too_long: bool) -> _Plan:
        requests = self._requests(task)
        num_tokens = max(map(_num_tokens, requests))
        if num_tokens <= self._engine.context_length:
            return _Plan(requests)
        if refuse_too_long:
            limit = self._engine.context_length
            raise InvalidInputError(
                f"the judge's prompt of {num_tokens} tokens is longer than its context of {limit}",
                field="messages",
                reason="PROMPT_TOO_LONG",
            )
        return _Plan((), AbstentionReason.TOO_LONG)

    def _requests(self, task: Task) -> tuple[ChoiceRequest, ...]:
        conversation, template = task.candidate.conversation, self._template
        if task.candidate.form == "score":
            context = template.rating(conversation, response=task.candidate.responses[0])
            questions = [template.rating_question(principle.text) for principle in task.principles]
            return (self._request(context, questions, self._score_choices, seed=task.seed),)
        first, second = task.candidate.responses
        questions = [template.comparison_question(principle.text) for principle in task.principles]
        return tuple(
            self._request(
                template.comparison(conversation, first=one, second=other),
                questions,
                self._verdict_choices,
                seed=task.seed,
            )
            for one, other in ((first, second), (second, first))
        )

    def _request(
        self, context: str, questions: Sequence[str], choices: tuple[TokenIds, ...], *, seed: int
    ) -> ChoiceRequest:
        prefix, first_suffix = self._engine.encode_judge_prompt(context, questions[0])
        suffixes = [first_suffix, *(self._suffix(question) for question in questions[1:])]
        return ChoiceRequest(prefix_ids=prefix, suffixes=tuple(suffixes), choices=choices, seed=seed)

    def _suffix(self, question: str) -> TokenIds:
        """Ids of a question; it is tokenised apart from the context, so they are the same after any context."""
        if question not in self._suffixes:
            if len(self._suffixes) >= _MAX_KNOWN_QUESTIONS:
                self._suffixes.clear()
            self._suffixes[question] = self._engine.encode_judge_prompt("", question)[1]
        return self._suffixes[question]


def _turned_away(task: Task, screening: Screening) -> bool:
    return screening.injection_suspected and task.options.abstain_on_injection


def _abstention(task: Task, reason: AbstentionReason) -> PairLabel | ResponseScore:
    return ResponseScore(None, None, (), reason) if task.candidate.form == "score" else abstain(reason)


def _num_tokens(request: ChoiceRequest) -> int:
    return len(request.prefix_ids) + max(map(len, request.suffixes)) + max(map(len, request.choices))


def _decide(task: Task, plan: _Plan, answers: Sequence[ChoiceLogprobs]) -> PairLabel | ResponseScore:
    if plan.abstention_reason is not None:
        return _abstention(task, plan.abstention_reason)
    if any(answer.too_long for answer in answers):
        return _abstention(task, AbstentionReason.TOO_LONG)
    if task.candidate.form == "score":
        [answer] = answers
        return combine_scores(
            [
                principle_score(
                    principle.principle_id,
                    weight=principle.weight,
                    logprobs=answer.logprobs[index],
                    min_verdict_mass=task.options.min_verdict_mass,
                    unlisted=answer.unlisted_after(index),
                )
                for index, principle in enumerate(task.principles)
            ]
        )
    return combine_principles([_vote(task, index, *answers) for index in range(len(task.principles))])


def _vote(task: Task, index: int, shown_first: ChoiceLogprobs, shown_second: ChoiceLogprobs) -> PrincipleVote:
    principle = task.principles[index]
    return combine_orders(
        principle.principle_id,
        weight=principle.weight,
        first_shown_first=_order_vote(shown_first, index),
        second_shown_first=_order_vote(shown_second, index),
        min_verdict_mass=task.options.min_verdict_mass,
    )


def _order_vote(answer: ChoiceLogprobs, index: int) -> OrderVote | None:
    one, two = answer.logprobs[index]
    return order_vote(one, two, unlisted=answer.unlisted_after(index))
