"""A sampler and a judge at the client boundary, for stages without services: playground texts, verdicts by gold."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from rlaif.client.judge import ResponsePair
from rlaif.client.judge_values import Critique, JudgeOptions, PrincipleVote, Provenance, Revision, Verdict
from rlaif.core.canonical import digest
from rlaif.core.conversation import Conversation
from rlaif.core.errors import NotFoundError
from rlaif.playground import gold, lexicon, world

REFUSAL = lexicon.REFUSALS[0]


def answer_steps(prompt_text: str) -> str:
    """The right answer, harmful or not."""
    prompt = world.prompts_by_text()[prompt_text]
    if prompt.category == "fact":
        return f"It is {world.facts()[prompt.key].value}."
    return " ".join(f"{step[0].upper()}{step[1:]}." for step in world.tasks()[prompt.key][1])


def always_helps(prompt_text: str, rng: random.Random) -> str:
    """A policy that answers or refuses by a coin, whatever is asked."""
    return answer_steps(prompt_text) if rng.random() < 0.7 else REFUSAL


def refuses_harm(prompt_text: str, rng: random.Random) -> str:
    """A policy that does as gold wants."""
    del rng
    harmful = world.prompts_by_text()[prompt_text].category == "harmful"
    return REFUSAL if harmful else answer_steps(prompt_text)


class _Client:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


@dataclass
class FakeSampler(_Client):
    """Answers by `speak` at one version of the policy."""

    speak: Callable[[str, random.Random], str] = always_helps
    version: int = 0
    digest: str = "p" * 64
    serves: str = ""
    """Name of its only policy; empty for any."""
    requests: list[dict[str, Any]] = field(default_factory=list)

    def get_policy(self, name: str) -> Any:
        if self.serves not in ("", name):
            raise NotFoundError(f"there is no {name}")
        return SimpleNamespace(version=self.version, digest=self.digest)

    def sample(
        self, policy: str, prompts: Sequence[Conversation], *, num_completions: int, seed: int, **more: Any
    ) -> Any:
        self.requests.append({"policy": policy, "num_prompts": len(prompts), "seed": seed, **more})
        rows = []
        for index, prompt in enumerate(prompts):
            texts = [
                self.speak(prompt[-1].content, random.Random(f"{seed} {index} {completion}"))
                for completion in range(num_completions)
            ]
            rows.append(
                tuple(
                    SimpleNamespace(
                        text=text,
                        token_ids=(7, 8),
                        logprobs=(-0.5, -0.25),
                        stop_reason="end_of_turn",
                        policy_version=self.version,
                    )
                    for text in texts
                )
            )
        return SimpleNamespace(prompt_token_ids=tuple((1, 2, 3) for _ in prompts), completions=tuple(rows))


@dataclass
class FakeJudge(_Client):
    """Prefers what gold prefers, or the contrary, or the longer text; `abstains` makes it say nothing.

    `fails` says why the n-th critique or revision is none; it may raise.
    """

    digest: str = "a" * 64
    rules: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of its constitutions, by name."""
    contrary: bool = False
    by_length: bool = False
    abstains: bool = False
    batches: list[int] = field(default_factory=list)
    fails: Callable[[str, int], str | None] = lambda step, number: None
    asked: list[tuple[str, str]] = field(default_factory=list)

    def get_judge(self) -> Any:
        return SimpleNamespace(model_digest=self.digest, fingerprint=f"of {self.digest[:4]}")

    def get_constitution(self, name: str) -> Any:
        if name not in self.rules:
            raise NotFoundError(f"there is no {name}")
        return SimpleNamespace(sha256=self.rules[name])

    def compare_many(
        self,
        constitution: str,
        pairs: Sequence[ResponsePair],
        *,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        del constitution
        self.batches += [len(pairs[start : start + batch_size]) for start in range(0, len(pairs), batch_size)]
        if progress is not None:
            progress(len(pairs), len(pairs))
        return list(map(self._verdict, pairs))

    def critique(
        self, constitution: str, conversation: Conversation, *, response: str, category: str, options: JudgeOptions
    ) -> Critique:
        """Names the prompt and the principle."""
        del constitution, category
        self.asked.append(("critique", conversation[-1].content))
        why = self.fails("critique", len(self.asked))
        text = "" if why else f"{options.principle_ids[0]} of {response!r} to {conversation[-1].content!r}"
        return Critique(text, options.principle_ids, why, self._provenance())

    def revise(
        self, constitution: str, conversation: Conversation, *, response: str, critique: str, **more: Any
    ) -> Revision:
        """Refuses what is harmful, helps with what was refused, and leaves everything else."""
        del constitution, more
        prompt = conversation[-1].content
        self.asked.append(("revision", prompt))
        assert critique.endswith(f"{response!r} to {prompt!r}")
        why = self.fails("revision", len(self.asked))
        text = "" if why else refuses_harm(prompt, random.Random(0))
        return Revision(text, text == response, why, self._provenance())

    def _provenance(self) -> Provenance:
        return Provenance("judge", self.digest, 0, "constitutions/playground", "", "t" * 64, 0, "", "")

    def _verdict(self, pair: ResponsePair) -> Verdict:
        probability = self._probability(pair)
        if self.contrary:
            probability = 1 - probability
        preference = "tie" if probability == 0.5 else ("first" if probability > 0.5 else "second")
        vote = PrincipleVote("harmless", probability, probability, probability, 1.0, 6.0, None)
        return Verdict(
            preference="abstain" if self.abstains else preference,  # type: ignore[arg-type]
            probability_first=None if self.abstains else probability,
            raw_probability_first=None if self.abstains else probability,
            order_consistent=not self.abstains,
            votes=() if self.abstains else (vote,),
            panel_disagreement=0.0,
            abstention_reason="low_verdict_mass" if self.abstains else None,
            injection_suspected=False,
            calibration="",
            label=f"labels/{digest([pair.conversation[-1].content, pair.first, pair.second])}",
            recorded_before=False,
            provenance=self._provenance(),
        )

    def _probability(self, pair: ResponsePair) -> float:
        prompt = pair.conversation[-1].content
        if self.by_length:
            return 0.9 if len(pair.first) > len(pair.second) else 0.1
        wanted = gold.prefers_by("harmless", gold.evaluate(prompt, pair.first), gold.evaluate(prompt, pair.second))
        return {1.0: 0.9, 0.5: 0.5, 0.0: 0.1}[wanted]
