"""Builds the playground from nothing: world, tokenizer, policy, judge, and the record of how it went.

Every part is scheduled by steps, so the clock plays no role: world and tokenizer come out the same everywhere, weights
the same on the same type of processor with the same number of threads. A part whose inputs and result are already in
the folder is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError, NotFoundError
from rlaif.core.template import COMPACT
from rlaif.playground.answers import compose, sample_kind
from rlaif.playground.world import evaluation_prompts, prompt_row, prompts
from rlaif.runtime.artifacts import atomic_write_folder, atomic_write_text, folder_digest
from rlaif_pipelines.playground.progress import Progress, print_progress

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

RECORD_NAME: Final = "playground.json"
_SAMPLE_SEED: Final = 99


@dataclass(frozen=True)
class BuildSteps:
    """Optimiser steps of the two models, and the size of the closing measurement."""

    policy: int = 1400
    judge: int = 3000
    num_pairs: int = 800
    num_writings: int = 400
    num_harmful: int = 240
    num_other: int = 80


def build(
    out_dir: Path,
    *,
    seed: int = 0,
    threads: int = 2,
    steps: BuildSteps | None = None,
    progress: Progress = print_progress,
) -> dict[str, Any]:
    """Fills `out_dir` with `policy/`, `judge/` and playground.json; returns what the latter holds.

    Takes about 20 minutes on two cores. Started again after a stop it goes on with the first part not yet there.
    """
    # Read when torch is loaded. Threads that spin while they wait make a build on shared cores many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

    from rlaif_pipelines.playground.judge import train_judge
    from rlaif_pipelines.playground.models import deterministic, load_model, save_model
    from rlaif_pipelines.playground.policy import train_policy
    from rlaif_pipelines.playground.tokenizer import build_tokenizer

    steps = steps or BuildSteps()
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    world = {"seed": seed, "threads": threads, "world": world_digest(), "tokenizer": tokenizer_digest(tokenizer)}
    parts = _Parts(out_dir)
    with deterministic(seed=seed, threads=threads):
        policy = parts.make(
            "policy",
            inputs={**world, "steps": steps.policy},
            write=lambda folder: save_model(
                train_policy(tokenizer, seed=seed, num_steps=steps.policy, progress=progress), tokenizer, folder
            ),
        )
        # From the saved weights, bf16 as they are, so that a build that was stopped here ends the same.
        judge = parts.make(
            "judge",
            inputs={
                **world,
                "steps": steps.judge,
                "policy": policy,
                "template": COMPACT.sha256,
                "writing_template": COMPACT.writing_sha256,
            },
            write=lambda folder: save_model(
                train_judge(
                    load_model(out_dir / "policy"), tokenizer, seed=seed, num_steps=steps.judge, progress=progress
                ),
                tokenizer,
                folder,
            ),
        )
        figures = parts.measure(
            inputs={"policy": policy, "judge": judge, **asdict(steps)},
            measure=lambda: _figures(
                load_model(out_dir / "policy"), load_model(out_dir / "judge"), tokenizer, seed=seed, steps=steps
            ),
        )
    return {**parts.record, "figures": figures}


def world_digest() -> str:
    """SHA-256 of every prompt and of one composed answer to each: the same on every machine."""
    rng = random.Random(_SAMPLE_SEED)  # noqa: S311 - not for secrets
    answers = [compose(rng, prompt, sample_kind(rng, prompt.category)).text for prompt in prompts()]
    return digest({"prompts": [prompt_row(prompt) for prompt in prompts()], "answers": answers})


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the tokenizer's vocabulary, merges and chat template."""
    body = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return hashlib.sha256(body.encode()).hexdigest()


def _figures(
    policy: LlamaForCausalLM,
    judge: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    steps: BuildSteps,
) -> dict[str, Any]:
    from rlaif_pipelines.playground.held_out import judge_figures, policy_figures
    from rlaif_pipelines.playground.inference import sample_texts

    chosen = evaluation_prompts(num_harmful=steps.num_harmful, num_other=steps.num_other)
    texts = sample_texts(policy, tokenizer, chosen, seed=seed)
    return {
        "policy": policy_figures(list(zip(chosen, texts, strict=True))),
        "judge": judge_figures(
            judge,
            policy,
            tokenizer,
            num_pairs=steps.num_pairs,
            num_sampled=steps.num_other,
            num_writings=steps.num_writings,
        ),
    }


def _holds(folder: Path, wanted: str) -> bool:
    try:
        return folder_digest(folder) == wanted
    except (NotFoundError, InvalidInputError):
        return False  # gone or without weights: to be made again


class _Parts:
    """The record on disk: which part was made from which inputs, and what came out."""

    def __init__(self, out_dir: Path) -> None:
        self._out_dir = out_dir
        self._path = out_dir / RECORD_NAME
        self.record: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {"parts": {}}

    def make(self, name: str, *, inputs: Mapping[str, Any], write: Callable[[Path], None]) -> str:
        """Digest of the part's folder, made now unless it is there already, from the same inputs and unharmed."""
        folder = self._out_dir / name
        known = self.record["parts"].get(name)
        if known and known["inputs"] == dict(inputs) and _holds(folder, known["digest"]):
            return str(known["digest"])
        atomic_write_folder(folder, write)
        made = folder_digest(folder)
        self.record["parts"][name] = {"inputs": dict(inputs), "digest": made}
        self._save()
        return made

    def measure(self, *, inputs: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The held-out figures, measured now unless these models were already."""
        if self.record.get("measured") != dict(inputs):
            self.record["figures"] = measure()
            self.record["measured"] = dict(inputs)
            self._save()
        figures: dict[str, Any] = self.record["figures"]
        return figures

    def _save(self) -> None:
        atomic_write_text(self._path, json.dumps(self.record, indent=1, sort_keys=True) + "\n")
