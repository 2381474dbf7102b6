"""One reply, criticised and revised by the judge under a principle a round, and all that is to be known of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlaif.core.constitution import Constitution, Principle
from rlaif.core.conversation import parse_conversation
from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.stages.completions import derive_seed
from rlaif_pipelines.stages.journal import Journal

if TYPE_CHECKING:
    from rlaif.client.judge import JudgeClient
    from rlaif.client.judge_values import Critique, Revision


@dataclass(frozen=True)
class Reviser:
    """Asks the judge what the journal does not know."""

    judge: JudgeClient
    constitution: Constitution
    journal: Journal
    num_rounds: int
    seed: int

    def row(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """A row of revisions.jsonl from one of completions.jsonl: original, rounds, last revision or why there is none.

        A judge that abstains drops the reply, and so does one that refuses it as wrong input, such as one too long for
        its context; any other failure is raised.
        """
        [completion] = reply["completions"]
        original: str = completion["text"]
        text, dropped = original, None if original.strip() else "empty_reply"
        rounds: list[dict[str, Any]] = []
        for number, principle in enumerate(self._principles(reply), start=1):
            if dropped is not None:
                break
            found = self._round(reply, text, principle=principle, number=number)
            dropped = found.pop("dropped")
            rounds.append(found)
            if found["unchanged"] is False:
                text = found["revision"]
        if dropped is None and text == original and completion["stop_reason"] == "max_tokens":
            dropped = "truncated_reply"  # half a reply that nobody mended
        return {
            "prompt_id": reply["prompt_id"],
            "messages": reply["messages"],
            "category": reply["category"],
            "policy_version": completion["policy_version"],
            "original": original,
            "rounds": rounds,
            "revised": None if dropped else text,
            "dropped": dropped,
        }

    def _principles(self, reply: Mapping[str, Any]) -> list[Principle]:
        seed = derive_seed("principles", self.seed, reply["prompt_id"])
        return draw_principles(
            self.constitution, category=reply["category"] or "", num_rounds=self.num_rounds, seed=seed
        )

    def _round(self, reply: Mapping[str, Any], text: str, *, principle: Principle, number: int) -> dict[str, Any]:
        from rlaif.client.judge import JudgeOptions

        conversation, category = parse_conversation(reply["messages"]), reply["category"] or ""
        seed = derive_seed("revise", self.seed, reply["prompt_id"], number)
        under = (principle.principle_id,)
        critique = self.journal.answer(
            [reply["prompt_id"], number, "critique"],
            lambda: _answer(
                lambda: self.judge.critique(
                    self.constitution.name,
                    conversation,
                    response=text,
                    category=category,
                    options=JudgeOptions(principle_ids=under, seed=seed),
                )
            ),
        )
        revision: Mapping[str, Any] = {"text": None, "abstention": critique["abstention"]}
        if critique["text"] is not None:
            revision = self.journal.answer(
                [reply["prompt_id"], number, "revision"],
                lambda: _answer(
                    lambda: self.judge.revise(
                        self.constitution.name,
                        conversation,
                        response=text,
                        category=category,
                        critique=critique["text"],
                        principle_ids=under,
                        seed=seed,
                    )
                ),
            )
        failed = "critique" if critique["text"] is None else "revision"
        return {
            "principle_id": principle.principle_id,
            "seed": seed,
            "critique": critique["text"],
            "revision": revision["text"],
            "unchanged": None if revision["text"] is None else revision["text"] == text.strip(),
            "judge_digest": critique["judge_digest"],
            "template_sha256": critique["template_sha256"],
            "dropped": f"{failed}_{revision['abstention']}" if revision["text"] is None else None,
        }


def draw_principles(constitution: Constitution, *, category: str, num_rounds: int, seed: int) -> list[Principle]:
    """The principle of each round: drawn by weight among those that apply, none twice before all have been."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    applying = constitution.select((), category=category)
    left: list[Principle] = []
    drawn = []
    for _ in range(num_rounds):
        left = left or list(applying)
        [chosen] = rng.choices(left, weights=[principle.weight for principle in left])
        left.remove(chosen)
        drawn.append(chosen)
    return drawn


def _answer(ask: Callable[[], Critique | Revision]) -> dict[str, Any]:
    """What the judge wrote as plain values, or why it wrote nothing."""
    try:
        written = ask()
    except InvalidInputError as refused:
        return {"text": None, "abstention": refused.reason.lower(), "judge_digest": None, "template_sha256": None}
    return {
        "text": None if written.abstention_reason else written.text,
        "abstention": written.abstention_reason,
        "judge_digest": written.provenance.model_digest,
        "template_sha256": written.provenance.template_sha256,
    }
