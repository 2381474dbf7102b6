"""Trainings that run one after the other in one group of processes: `torchrun training_processes.py CASES.json`."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.client.sampler import PolicyState, SampledBatch, SampledCompletion
from rlaif.core.conversation import Conversation
from rlaif.runtime.artifacts import read_desired
from training_fakes import WORDS, FakeRewards


class WrittenSampler:
    """Answers that seed and prompt alone decide, whichever weights are published: every training sees the same."""

    def __init__(self, root: Path, policy: str) -> None:
        self._root = root
        self._policy = policy

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
        prompt_ids, completions = [], []
        for prompt in prompts:
            key = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
            rng = random.Random(key)
            prompt_ids.append((1, *(rng.randrange(5, 200) for _ in range(4)), 2))
            completions.append(
                tuple(self._completion(rng, min_policy_version, max_tokens) for _ in range(num_completions))
            )
        return SampledBatch(prompt_token_ids=tuple(prompt_ids), completions=tuple(completions))

    def load_policy(self, name: str, *, min_version: int) -> PolicyState:
        desired = read_desired(self._root, self._policy)
        assert desired is not None
        return PolicyState(name, desired.version, desired.digest, desired.uri, min_version, 256)

    def _completion(self, rng: random.Random, version: int, max_tokens: int) -> SampledCompletion:
        ids = tuple(rng.randrange(5, 200) for _ in range(rng.randint(2, max_tokens)))
        logprobs = tuple(-rng.uniform(2.0, 6.0) for _ in ids)
        return SampledCompletion(" ".join(rng.choices(WORDS, k=6)), ids, logprobs, "end_of_turn", version)


def train(verb: str, values: dict[str, Any]) -> dict[str, Any]:
    """Runs one training in this process; a policy is trained on answers of a WrittenSampler."""
    import importlib

    from rlaif_pipelines.training.config.rl import RlTraining
    from rlaif_pipelines.training.config.verbs import SETTINGS

    settings = SETTINGS[verb].model_validate(values)
    training = importlib.import_module(f"rlaif_pipelines.training.{verb}")
    if isinstance(settings, RlTraining):
        sampler = WrittenSampler(Path(settings.publish.artifact_root), settings.publish.policy)
        return dict(training.train(settings, sampler=sampler, rewards=FakeRewards()))
    return dict(training.run(settings))


if __name__ == "__main__":
    for case in json.loads(Path(sys.argv[1]).read_text()):
        train(case["verb"], case["values"])
