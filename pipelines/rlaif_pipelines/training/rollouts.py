"""Rollouts: completions from the sampler service with rewards from the reward service. A failure is never a number."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Protocol, TypeVar

from rlaif.client.judge_values import ResponseToScore
from rlaif.client.reward import RewardResult
from rlaif.client.sampler import PolicyState, SampledBatch
from rlaif.core.conversation import Conversation
from rlaif.core.errors import DeadlineError, PreconditionError, QuotaExceededError, UnavailableError
from rlaif_pipelines.training.config.common import FailureSettings
from rlaif_pipelines.training.config.rl import RewardSource, RlTraining
from rlaif_pipelines.training.data import StratifiedPrompts, TrainingPrompt, sampling_seed, split_dev_prompts
from rlaif_pipelines.training.errors import PausedError

Answer = TypeVar("Answer")

_MIN_DEV_PROMPTS = 8
_PROMPTS_PER_DEV_PROMPT = 8
_DEV_STEP = -1
_PASSING = (UnavailableError, DeadlineError, QuotaExceededError)


class Sampler(Protocol):
    """What training asks of the sampler service: `rlaif.client.sampler.SamplerClient`."""

    def sample(
        self,
        policy: str,
        prompts: Sequence[Conversation],
        *,
        num_completions: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        min_policy_version: int,
    ) -> SampledBatch:
        """Completions of the prompts."""

    def load_policy(self, name: str, *, min_version: int) -> PolicyState:
        """Has the sampler look at what is published."""


class Rewards(Protocol):
    """What training asks of the reward service: `rlaif.client.reward.RewardClient`."""

    def score(self, reward_model: str, inputs: Sequence[ResponseToScore], *, constitution: str) -> list[RewardResult]:
        """One reward an input."""


@dataclass(frozen=True)
class Rollouts:
    """One batch: Q prompts, G completions of each. Everything is plain data, so that a checkpoint can hold it."""

    step: int
    policy_version: int
    prompt_ids: list[list[int]]
    token_ids: list[list[list[int]]]
    logprobs: list[list[list[float]]]
    rewards: list[list[float | None]]
    """None where there is no reward; `failures` counts why."""
    failures: dict[str, int]
    gold: float | None
    """Mean gold score, where there is a gold evaluator."""
    components: dict[str, float]
    """Mean of each component of the reward."""
    num_cut_off: int
    """Completions that ended because their token budget did."""
    held_out: list[float | None] | None
    """The second opinion's mean score of each prompt set apart, at the steps that ask for it."""
    sample_seconds: float
    reward_seconds: float
    held_out_seconds: float

    @property
    def num_tokens(self) -> int:
        """Of all completions."""
        return sum(len(tokens) for group in self.token_ids for tokens in group)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; floats come back bit by bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Rollouts:
        """What `to_json` wrote."""
        return cls(**values)


class RolloutMaker:
    """Makes the batch of any step: which prompts, and with which seed, the step alone decides."""

    def __init__(
        self, settings: RlTraining, *, prompts: Sequence[TrainingPrompt], sampler: Sampler, rewards: Rewards
    ) -> None:
        self._settings = settings
        train, self._dev, self.held_out_off = _dev_split(settings, prompts)
        self._prompts = StratifiedPrompts(train, seed=settings.seed)
        self._sampler = sampler
        self._rewards = rewards
        self._evaluate = _gold_evaluator() if settings.gold == "playground" else None

    def make(self, step: int, *, version: int) -> Rollouts:
        """The batch of a step, counted from 0, sampled from exactly that version of the policy.

        PausedError when a service stays away or too many rewards fail.
        """
        began = time.perf_counter()
        prompts = self._prompts.draw(step, num_prompts=self._settings.prompts_per_step)
        group_size = self._settings.group_size
        batch = self._sample(prompts, num_completions=group_size, step=step, version=version)
        sampled = time.perf_counter()
        inputs = [
            ResponseToScore(prompt.conversation, completion.text, prompt.category or "")
            for prompt, completions in zip(prompts, batch.completions, strict=True)
            for completion in completions
        ]
        results = self._score(inputs)
        scored = time.perf_counter()
        held_out = self._held_out(version) if step % self._settings.watch_every == 0 else None
        ended = time.perf_counter()
        values = [result.value for result in results]
        return Rollouts(
            step=step,
            policy_version=version,
            prompt_ids=[list(ids) for ids in batch.prompt_token_ids],
            token_ids=[[list(completion.token_ids) for completion in group] for group in batch.completions],
            logprobs=[[list(completion.logprobs) for completion in group] for group in batch.completions],
            rewards=[values[start : start + group_size] for start in range(0, len(values), group_size)],
            failures=dict(Counter(result.failure_reason or "MISSING" for result in results if result.value is None)),
            gold=self._gold(inputs),
            components=_component_means(results),
            num_cut_off=sum(
                completion.stop_reason == "max_tokens" for group in batch.completions for completion in group
            ),
            held_out=held_out,
            sample_seconds=sampled - began,
            reward_seconds=scored - sampled,
            held_out_seconds=ended - scored,
        )

    def _sample(
        self, prompts: Sequence[TrainingPrompt], *, num_completions: int, step: int, version: int
    ) -> SampledBatch:
        settings = self._settings
        policy = settings.publish.policy

        def sample() -> SampledBatch:
            try:
                return self._sampler.sample(
                    policy,
                    [prompt.conversation for prompt in prompts],
                    num_completions=num_completions,
                    max_tokens=settings.max_tokens,
                    temperature=settings.temperature,
                    seed=sampling_seed(settings.seed, step=step),
                    min_policy_version=version,
                )
            except PreconditionError:
                # A sampler that was started again is behind until it has looked.
                self._sampler.load_policy(policy, min_version=version)
                raise UnavailableError(f"the sampler is behind version {version} of {policy}") from None

        batch = patiently(sample, failures=settings.failures, who=f"the sampler at {settings.sampler.target}")
        versions = {completion.policy_version for group in batch.completions for completion in group}
        if versions != {version}:
            raise PausedError(
                f"{policy} was sampled at version {', '.join(map(str, sorted(versions)))} instead of {version}: "
                "something else publishes versions of it"
            )
        return batch

    def _score(self, inputs: Sequence[ResponseToScore]) -> list[RewardResult]:
        failures = self._settings.failures
        for attempt in range(failures.attempts):
            if attempt:
                time.sleep(failures.pause_seconds)
            results = self._ask(self._settings.reward, inputs)
            failed = [result for result in results if result.value is None]
            if len(failed) <= failures.max_failed_fraction * len(results):
                return results
        reasons = Counter(result.failure_reason for result in failed)
        raise PausedError(
            f"{len(failed)} of {len(results)} rewards failed {failures.attempts} times in a row "
            f"({', '.join(f'{reason}: {count}' for reason, count in reasons.most_common())}); training stopped before "
            "this step, and goes on from its last checkpoint when it is started again"
        )

    def _held_out(self, version: int) -> list[float | None] | None:
        """What the second opinion says of that version; the same random streams at every version."""
        watch, num_completions = self._settings.watch, self._settings.watch_completions
        if watch is None or not self._dev:
            return None
        batch = self._sample(self._dev, num_completions=num_completions, step=_DEV_STEP, version=version)
        inputs = [
            ResponseToScore(prompt.conversation, completion.text, prompt.category or "")
            for prompt, completions in zip(self._dev, batch.completions, strict=True)
            for completion in completions
        ]
        values = [result.value for result in self._ask(watch, inputs)]
        starts = range(0, len(values), num_completions)
        return [_mean([v for v in values[start : start + num_completions] if v is not None]) for start in starts]

    def _ask(self, source: RewardSource, inputs: Sequence[ResponseToScore]) -> list[RewardResult]:
        results = patiently(
            lambda: self._rewards.score(source.name, inputs, constitution=source.constitution),
            failures=self._settings.failures,
            who=f"the reward service at {self._settings.rewards.target}",
        )
        return [_without_nonsense(result) for result in results]

    def _gold(self, inputs: Sequence[ResponseToScore]) -> float | None:
        if self._evaluate is None:
            return None
        return _mean(
            [
                self._evaluate(asked if isinstance(asked, str) else asked[-1].content, response)
                for asked, response, _ in inputs
            ]
        )


def patiently(call: Callable[[], Answer], *, failures: FailureSettings, who: str) -> Answer:
    """The call's answer; while its service is away, the call is made again until `outage_seconds` are over."""
    deadline = time.monotonic() + failures.outage_seconds
    while True:
        try:
            return call()
        except _PASSING as error:
            if time.monotonic() + failures.pause_seconds > deadline:
                raise PausedError(
                    f"{who} has not answered for {failures.outage_seconds:g} s ({error.message}); training goes on "
                    "from its last checkpoint when it is started again"
                ) from error
            time.sleep(failures.pause_seconds)


def _dev_split(
    settings: RlTraining, prompts: Sequence[TrainingPrompt]
) -> tuple[Sequence[TrainingPrompt], Sequence[TrainingPrompt], str | None]:
    """(to train on, set apart for the second opinion, why there are none)."""
    if settings.watch is None:
        return prompts, (), "there is no second opinion"
    num_dev = min(settings.watch_prompts, len(prompts) // _PROMPTS_PER_DEV_PROMPT)
    if num_dev < _MIN_DEV_PROMPTS:
        return prompts, (), f"{num_dev} prompts could be set apart for it; it needs {_MIN_DEV_PROMPTS}"
    return *split_dev_prompts(prompts, num_dev=num_dev, seed=settings.seed), None


def _without_nonsense(result: RewardResult) -> RewardResult:
    """A value that is no number is a failure like any other."""
    if result.value is None or math.isfinite(result.value):
        return result
    return RewardResult(None, {}, 0.0, "NOT_FINITE")


def _component_means(results: Sequence[RewardResult]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for name, value in result.components.items():
            if math.isfinite(value):
                values[name].append(value)
    return {name: fmean(each) for name, each in sorted(values.items())}


def _gold_evaluator() -> Callable[[str, str], float]:
    from rlaif.playground.gold import evaluate

    return lambda prompt_text, answer_text: evaluate(prompt_text, answer_text).overall


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
