"""What training tests share: tiny inputs, and the services at the client boundary."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.client.judge_values import ResponseToScore
from rlaif.client.reward import RewardResult
from rlaif.client.sampler import PolicyState, SampledBatch, SampledCompletion
from rlaif.core.conversation import Conversation

GUARDS_OFF: dict[str, Any] = {name: {"limit": None} for name in ("kl", "held_out", "length", "entropy", "repetition")}
WORDS = ("water", "egg", "boil", "minutes", "hot", "reply", "rather", "not")


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def label(number: int, **changes: Any) -> dict[str, Any]:
    """A label whose better response is the one that says "good"."""
    rng = random.Random(number)
    words = [" ".join(rng.choices(WORDS, k=rng.randint(2, 5))) for _ in range(2)]
    first_is_good = rng.random() < 0.5
    good, bad = f"good {words[0]}", f"bad {words[1]}"
    return {
        "label": f"labels/{number}",
        "prompt_id": f"prompt-{number % 20}",
        "messages": [{"role": "user", "content": f"How do I boil {rng.choice(WORDS)}?"}],
        "category": None,
        "first": good if first_is_good else bad,
        "second": bad if first_is_good else good,
        "probability_first": 0.9 if first_is_good else 0.1,
        "weight": 1.0,
    } | changes


def prompt(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "prompt_id": f"prompt-{number}",
        "messages": [{"role": "user", "content": f"Tell me about {WORDS[number % len(WORDS)]} {number}"}],
        "category": ("fact", "howto")[number % 2],
        "split": "train",
    } | changes


@dataclass
class FakeRewards:
    """Rewards texts by `value`; `fails` says which calls and inputs fail, and why."""

    value: Callable[[str], float] = lambda text: min(1.0, text.count("e") / 10)
    fails: Callable[[int, int], str] = lambda call, index: ""
    calls: list[str] = field(default_factory=list)

    def score(
        self, reward_model: str, inputs: Sequence[ResponseToScore], *, constitution: str = ""
    ) -> list[RewardResult]:
        self.calls.append(reward_model)
        results = []
        for index, (_, text, _) in enumerate(inputs):
            reason = self.fails(len(self.calls), index)
            results.append(RewardResult(None if reason else self.value(text), {}, 0.0, reason))
        return results


@dataclass
class FakeSampler:
    """Says the prompt's number back, at the version it was told to load."""

    version: int = 0
    fails: Callable[[int], Exception | None] = lambda call: None
    calls: list[dict[str, Any]] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)

    def sample(
        self, policy: str, prompts: Sequence[Conversation], *, num_completions: int, **more: Any
    ) -> SampledBatch:
        self.calls.append({"policy": policy, "prompts": prompts, **more})
        error = self.fails(len(self.calls))
        if error is not None:
            raise error
        completions = tuple(
            tuple(
                SampledCompletion(f"e{'e' * index}", (5, 3), (-1.0, -0.5), "end_of_turn", self.version)
                for index in range(num_completions)
            )
            for _ in prompts
        )
        return SampledBatch(prompt_token_ids=tuple((1, 4) for _ in prompts), completions=completions)

    def load_policy(self, name: str, *, min_version: int) -> PolicyState:
        self.loads.append(min_version)
        self.version = min_version
        return PolicyState(name, min_version, "", "", min_version, 256)
