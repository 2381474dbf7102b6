"""What the judge is asked to decide, checked and free of wire types, and the digest that names each decision."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rlaif.core.canonical import canonical_json, digest, sha256_hex
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.conversation import Conversation, to_json
from rlaif.core.errors import InvalidInputError
from rlaif.judge.generation import Decoding

_SCHEMA = 1
"""Raise it when the meaning of a recorded label changes, so that old labels no longer answer new requests."""


@dataclass(frozen=True)
class Candidate:
    """A conversation and what is to be judged: one response (score) or two (comparison).

    `category` is the caller's; principles that do not apply to it are left out. `language` is only recorded.
    """

    conversation: Conversation
    responses: tuple[str, ...]
    category: str = ""
    language: str = ""

    @property
    def form(self) -> str:
        """ "compare" or "score"."""
        return "compare" if len(self.responses) == 2 else "score"

    @cached_property
    def conversation_sha256(self) -> str:
        """Digest of the conversation's canonical JSON."""
        return digest(to_json(self.conversation))

    @cached_property
    def response_sha256s(self) -> tuple[str, ...]:
        """Digest of each response's UTF-8 bytes."""
        return tuple(sha256_hex(response.encode()) for response in self.responses)


@dataclass(frozen=True)
class Reasoning:
    """How rationales are drawn before a verdict: so many of each principle and order, averaged."""

    num_samples: int
    decoding: Decoding


@dataclass(frozen=True)
class JudgingOptions:
    """How to judge, with the server's defaults filled in."""

    principle_ids: tuple[str, ...] = ()
    num_sampled_principles: int = 0
    seed: int = 0
    min_verdict_mass: float = 0.0
    abstain_on_injection: bool = False
    keep_texts: bool = False
    ignore_recorded: bool = False
    reasoning: Reasoning | None = None


@dataclass(frozen=True)
class Task:
    """One decision to make. `seed` is 0 when nothing is drawn."""

    candidate: Candidate
    constitution: Constitution
    principles: tuple[Principle, ...]
    seed: int
    options: JudgingOptions
    request_sha256: str


@dataclass(frozen=True)
class JudgeFingerprint:
    """What of the judge itself decides a label.

    `context_length`, in tokens, decides what is too long. `num_verdict_samples` is 0 where verdicts are read from
    log-probabilities, else the draws from which each is estimated. `panel` holds the rule, then a digest for each other
    judge. An empty digest, of the model or of such a judge, makes every label its own.
    """

    model_digest: str
    template_sha256: str
    context_length: int = 0
    calibration: str = ""
    panel: tuple[str, ...] = ()
    num_verdict_samples: int = 0

    @property
    def repeatable(self) -> bool:
        """Whether all weights that decide are known, so that equal requests have equal labels."""
        return bool(self.model_digest) and all(self.panel)


def make_tasks(
    candidates: Sequence[Candidate],
    *,
    constitution: Constitution,
    options: JudgingOptions,
    fingerprint: JudgeFingerprint,
) -> list[Task]:
    """One task a candidate; a task does not depend on its neighbours, so a batch decides as single calls do."""
    chosen = constitution.select(options.principle_ids)
    sampled = 0 < options.num_sampled_principles < len(chosen)
    repeatable = fingerprint.repeatable and not options.ignore_recorded
    drawn = sampled or options.reasoning is not None or fingerprint.num_verdict_samples > 0
    seed = options.seed if drawn else 0
    common = {
        "schema": _SCHEMA,
        "judge": fingerprint.model_digest,
        "panel": list(fingerprint.panel),
        "calibration": fingerprint.calibration,
        "template": fingerprint.template_sha256,
        "context_length": fingerprint.context_length,
        "constitution": constitution.sha256,
        "seed": seed,
        "min_verdict_mass": options.min_verdict_mass,
        "abstain_on_injection": options.abstain_on_injection,
        "reasoning": False if options.reasoning is None else asdict(options.reasoning),
        "nonce": "" if repeatable else uuid.uuid4().hex,
    }
    if fingerprint.num_verdict_samples:
        common["verdict_samples"] = fingerprint.num_verdict_samples
    tasks = []
    for index, candidate in enumerate(candidates):
        try:
            principles = draw_principles(candidate, constitution=constitution, options=options)
        except InvalidInputError as error:
            if error.field == "category" and len(candidates) > 1:
                error.field = f"{'pairs' if candidate.form == 'compare' else 'responses'}[{index}].category"
            raise
        request: dict[str, Any] = {
            **common,
            "principles": [principle.principle_id for principle in principles],
            "category": candidate.category,
            "language": candidate.language,
            "messages": to_json(candidate.conversation),
            "responses": list(candidate.responses),
        }
        tasks.append(
            Task(
                candidate=candidate,
                constitution=constitution,
                principles=principles,
                seed=seed,
                options=options,
                request_sha256=sha256_hex(canonical_json(request)),
            )
        )
    return tasks


def draw_principles(
    candidate: Candidate, *, constitution: Constitution, options: JudgingOptions
) -> tuple[Principle, ...]:
    """The principles that decide on a candidate: those asked for that apply to it, and of them the sample."""
    available = constitution.select(options.principle_ids)
    num_sampled = options.num_sampled_principles
    if num_sampled > len(available):
        raise InvalidInputError(
            f"{num_sampled} principles cannot be drawn from {len(available)}", field="options.num_sampled_principles"
        )
    sampled = 0 < num_sampled < len(available)
    if not sampled and not candidate.category:
        return available
    return constitution.select(
        options.principle_ids,
        num_sampled=num_sampled,
        seed=_draw_seed(options.seed, constitution, candidate) if sampled else 0,
        category=candidate.category,
    )


def _draw_seed(seed: int, constitution: Constitution, candidate: Candidate) -> int:
    """Every candidate draws its own principles, the same in whichever order its responses stand."""
    key = [seed, constitution.sha256, candidate.conversation_sha256, sorted(candidate.response_sha256s)]
    return int.from_bytes(hashlib.sha256(canonical_json(key)).digest()[:8], "big")
