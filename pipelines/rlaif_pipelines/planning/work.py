"""How much a run has to compute: labels and tokens of each stage, from its settings and the lengths of its texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from rlaif.core.constitution import Constitution
from rlaif.core.conversation import Message
from rlaif.core.template import JudgeTemplate
from rlaif.playground import world
from rlaif_pipelines.settings import RunSettings

Role = Literal["sampler", "judge", "reward", "evaluator", "trainer", "pipeline"]
"""Whose processors a stage keeps busy; `pipeline` is the pod of the task itself, without a GPU."""

NUM_ORDERS: Final = 2
_WATCH_COMPLETIONS: Final = 2  # of each prompt set apart, as training's own default is
_PROMPTS_PER_WATCHED: Final = 8


@dataclass(frozen=True)
class Lengths:
    """Mean lengths, tokens."""

    prompt: float
    completion: float
    comparison: float
    """What the judge is told around the texts that it compares."""
    rating: float
    """The same around one text that it scores."""
    writing: float
    """The same around one text that it criticises or revises, with the question."""
    comparison_question: float
    """A principle and the question by it, of a comparison."""
    rating_question: float
    """The same of a score."""
    critique: float

    @classmethod
    def measure(
        cls,
        constitution: Constitution,
        *,
        template: JudgeTemplate,
        prompt: float,
        completion: float,
        critique: float,
        characters_per_token: float,
    ) -> Lengths:
        """From the constitution's and the template's own words, at so many characters a token."""
        nothing = (Message("user", ""),)
        texts = [principle.text for principle in constitution.principles]

        def tokens(*parts: str) -> float:
            return sum(map(len, parts)) / characters_per_token

        def mean(questions: list[str]) -> float:
            return tokens(*questions) / len(questions)

        return cls(
            prompt=prompt,
            completion=completion,
            comparison=tokens(template.comparison(nothing, first="", second="")),
            rating=tokens(template.rating(nothing, response="")),
            writing=tokens(template.revision(nothing, response=""))
            + mean([template.revision_question(text, critique="") for text in texts]),
            comparison_question=mean([template.comparison_question(text) for text in texts]),
            rating_question=mean([template.rating_question(text) for text in texts]),
            critique=critique,
        )


@dataclass(frozen=True)
class Load:
    """What one stage has a role do. Tokens; `sequence` is the mean length at which they stand."""

    stage: str
    role: Role
    prefill: float = 0.0
    """Read in whole passes: prompts of a sampler, questions to a judge, texts that a reward model scores."""
    decode: float = 0.0
    """Written one by one."""
    training: float = 0.0
    """Forward and backward."""
    sequence: float = 0.0
    written: float = 0.0
    """Tokens of a sequence that are written, not read."""
    num_sequences: float = 0.0
    """That can be written side by side."""
    num_labels: int = 0
    steps: int = 0
    """Turns that this work is cut into, each waiting for the one before; 0 where it is all at once."""


def num_pairs(settings: RunSettings) -> int:
    """Pairs that a round labels, one label each."""
    sampling = settings.sampling
    return sampling.num_prompts * min(sampling.pairs_per_prompt, math.comb(sampling.num_completions, 2))


def num_held_out(settings: RunSettings) -> int:
    """Prompts of the evaluation."""
    sizes = settings.evaluation
    if not settings.playground:
        return sizes.num_other
    return len(world.evaluation_prompts(num_harmful=sizes.num_harmful, num_other=sizes.num_other))


def loads(settings: RunSettings, *, lengths: Lengths, num_principles: int, second_judge: bool) -> Iterator[Load]:
    """Everything that a run of the pipelines rlaif, label-only or evaluate-only computes, in its order."""
    if settings.pipeline != "label-only":
        yield _held_out(settings, lengths, stage="baseline")
    if settings.pipeline == "evaluate-only":
        yield from _evaluation(settings, lengths, num_principles, second_judge=second_judge, suffix="")
        return
    if settings.constitutional_stage != "none":
        yield from _constitutional(settings, lengths)
    if settings.constitutional_stage == "only":
        yield from _evaluation(settings, lengths, num_principles, second_judge=second_judge, suffix="")
        return
    for number in range(1, (settings.rounds if settings.pipeline == "rlaif" else 1) + 1):
        suffix = "" if number == 1 else f"-{number}"
        yield from _labelling(settings, lengths, num_principles, suffix=suffix)
        if settings.pipeline == "label-only":
            return
        yield from _training(settings, lengths, num_principles, suffix=suffix)
        yield from _evaluation(settings, lengths, num_principles, second_judge=second_judge, suffix=suffix)


def comparison_tokens(lengths: Lengths, *, num_principles: int) -> float:
    """Tokens of one label: in each order one prefix, which all principles share, and each principle's question."""
    prefix = lengths.comparison + lengths.prompt + 2 * lengths.completion
    return NUM_ORDERS * (prefix + num_principles * lengths.comparison_question)


def rating_tokens(lengths: Lengths, *, num_principles: int) -> float:
    """Tokens that one score costs: one prefix, shared by all principles, and each principle's question."""
    return lengths.rating + lengths.prompt + lengths.completion + num_principles * lengths.rating_question


def _labelling(settings: RunSettings, lengths: Lengths, num_principles: int, *, suffix: str) -> Iterator[Load]:
    sampling = settings.sampling
    completions = sampling.num_prompts * sampling.num_completions
    yield Load(
        f"sample{suffix}",
        "sampler",
        prefill=sampling.num_prompts * lengths.prompt,  # a prompt is read once for all its completions
        decode=completions * lengths.completion,
        sequence=lengths.prompt + lengths.completion,
        written=lengths.completion,
        num_sequences=completions,
    )
    labels = num_pairs(settings)
    yield _comparisons(f"judge{suffix}", "judge", labels, lengths, num_principles)


def _comparisons(stage: str, role: Role, labels: int, lengths: Lengths, num_principles: int) -> Load:
    return Load(
        stage,
        role,
        prefill=labels * comparison_tokens(lengths, num_principles=num_principles),
        sequence=lengths.comparison + lengths.prompt + 2 * lengths.completion + lengths.comparison_question,
        num_labels=labels if role == "judge" else 0,
    )


def _training(settings: RunSettings, lengths: Lengths, num_principles: int, *, suffix: str) -> Iterator[Load]:
    pair, labels = lengths.prompt + 2 * lengths.completion, num_pairs(settings)
    single = lengths.prompt + lengths.completion
    if settings.algorithm == "dpo":
        yield Load(
            f"train{suffix}",
            "trainer",
            # What the policy says before it is trained, once.
            prefill=labels * pair if settings.dpo.loss != "simpo" else 0.0,
            training=settings.dpo.epochs * labels * pair,
            sequence=single,
        )
        return
    if settings.trains_reward_model:
        sizes = settings.reward_model
        yield Load(
            f"reward_model{suffix}",
            "trainer",
            training=sizes.num_members * sizes.epochs * labels * pair,
            sequence=single,
        )
    yield from _reinforcement(settings, lengths, num_principles, suffix=suffix)


def _reinforcement(settings: RunSettings, lengths: Lengths, num_principles: int, *, suffix: str) -> Iterator[Load]:
    rl, single = settings.rl, lengths.prompt + lengths.completion
    group = rl.prompts_per_step * rl.completions_per_prompt
    watched = 0
    if settings.trains_reward_model:
        num_watched = min(rl.watch_prompts, settings.sampling.num_prompts // _PROMPTS_PER_WATCHED)
        watched = math.ceil(rl.steps / rl.watch_every) * num_watched * _WATCH_COMPLETIONS
    batch = rl.steps * rl.prompts_per_step * (lengths.prompt + rl.completions_per_prompt * lengths.completion)
    yield Load(
        f"train{suffix}",
        "sampler",
        prefill=rl.steps * rl.prompts_per_step * lengths.prompt + watched / _WATCH_COMPLETIONS * lengths.prompt,
        decode=(rl.steps * group + watched) * lengths.completion,
        sequence=single,
        written=lengths.completion,
        num_sequences=group,
        steps=rl.steps,
    )
    by_judge = settings.reward == "judge"
    scored = {"judge": rl.steps * group if by_judge else watched, "reward": watched if by_judge else rl.steps * group}
    yield Load(
        f"train{suffix}",
        "judge",
        prefill=scored["judge"] * rating_tokens(lengths, num_principles=num_principles),
        sequence=lengths.rating + single + lengths.rating_question,
        steps=rl.steps,
    )
    if settings.trains_reward_model:
        yield Load(
            f"train{suffix}",
            "reward",
            prefill=scored["reward"] * settings.reward_model.num_members * single,
            sequence=single,
            steps=rl.steps,
        )
    yield Load(
        f"train{suffix}",
        "trainer",
        # What the reference says, and with several updates a batch what the policy said before the first.
        prefill=batch * (1 + (rl.updates_per_batch > 1)),
        training=batch,
        sequence=single,
        steps=rl.steps,
    )


def _constitutional(settings: RunSettings, lengths: Lengths) -> Iterator[Load]:
    sizes, single = settings.constitutional, lengths.prompt + lengths.completion
    yield Load(
        "revise",
        "sampler",
        prefill=sizes.num_prompts * lengths.prompt,
        decode=sizes.num_prompts * lengths.completion,
        sequence=single,
        written=lengths.completion,
        num_sequences=sizes.num_prompts,
    )
    rounds = sizes.num_prompts * sizes.rounds
    yield Load(
        "revise",
        "judge",
        prefill=rounds * (2 * (lengths.writing + single) + lengths.critique),
        decode=rounds * (lengths.critique + lengths.completion),
        sequence=lengths.writing + single + lengths.critique,
        written=(lengths.critique + lengths.completion) / 2,
        num_sequences=min(sizes.concurrency, sizes.num_prompts),
    )
    yield Load("sft", "trainer", training=sizes.epochs * sizes.num_prompts * single, sequence=single)


def _held_out(settings: RunSettings, lengths: Lengths, *, stage: str) -> Load:
    prompts = num_held_out(settings)
    return Load(
        stage,
        "sampler",
        prefill=prompts * lengths.prompt,
        decode=prompts * lengths.completion,
        sequence=lengths.prompt + lengths.completion,
        written=lengths.completion,
        num_sequences=prompts,
    )


def _evaluation(
    settings: RunSettings, lengths: Lengths, num_principles: int, *, second_judge: bool, suffix: str
) -> Iterator[Load]:
    stage, prompts = f"evaluate{suffix}", num_held_out(settings)
    yield _held_out(settings, lengths, stage=stage)
    single = lengths.prompt + lengths.completion
    # What the base says of the new policy's replies, in float32.
    yield Load(stage, "pipeline", prefill=prompts * single, sequence=single)
    if second_judge:
        yield _comparisons(stage, "evaluator", prompts, lengths, num_principles)
