"""Fitting a component's normalisation on reference inputs that a running reward service scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.cli.inputs import read_text_file
from rlaif.cli.judge_texts import row_conversation, row_text
from rlaif.client.judge_values import ResponseToScore
from rlaif.client.reward import RewardClient, RewardComponentState, RewardResult, RewardTerm
from rlaif.core.canonical import digest
from rlaif.core.conversation import to_json
from rlaif.core.errors import InvalidInputError, PreconditionError
from rlaif.core.reward_normalisation import Normalisation, check_enough, fit_normalisation

_NORMALISED = ("reward_model", "judge")


@dataclass(frozen=True)
class Reference:
    """Inputs to score, and the digest that identifies them."""

    inputs: tuple[ResponseToScore, ...]
    sha256: str


def read_reference(path: Path) -> Reference:
    """The inputs of a file of JSON lines; InvalidInputError names the line that is none."""
    inputs, identity = [], []
    for number, line in enumerate(read_text_file(path, "REFERENCE").splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{place}: not valid JSON: {error.msg}", field="REFERENCE") from error
        if not isinstance(row, dict):
            raise InvalidInputError(f"{place}: must be an object", field="REFERENCE")
        conversation = row_conversation(row, place=place)
        response = row_text(row, "response", place=place)
        category = row_text({"category": row.get("category") or ""}, "category", place=place)
        inputs.append(ResponseToScore(conversation, response, category))
        identity.append([to_json(conversation), response, category])
    return Reference(tuple(inputs), digest(identity))


def fit(
    client: RewardClient,
    reward_model: str,
    reference: Reference,
    *,
    component: str,
    constitution: str,
    concurrency: int,
) -> Normalisation:
    """The normalisation of the component's raw values over these inputs; those that have none are left out.

    PreconditionError when fewer than 50 are left, they do not vary, or what they come from cannot be identified or
    changed meanwhile.
    """
    state = _component(client, reward_model, component)
    results = client.score_many(reward_model, reference.inputs, constitution=constitution, concurrency=concurrency)
    terms = [term for result in results for term in result.terms if term.component == state.component]
    try:
        check_enough(len(terms))
        return fit_normalisation(
            [term.raw_value for term in terms],
            source_sha256=_source(terms, state.component),
            reference_sha256=reference.sha256,
            component=state.kind,
        )
    except PreconditionError as error:
        raise PreconditionError(f"{error.message}{_failures(results)}", reason=error.reason) from error


def _component(client: RewardClient, reward_model: str, component: str) -> RewardComponentState:
    found = client.get_reward_model(reward_model).components
    possible = [state for state in found if state.kind in _NORMALISED]
    chosen = [state for state in possible if not component or state.component == component]
    if len(chosen) != 1:
        raise InvalidInputError(
            f"--component {component or '(none given)'}: name one of {reward_model}'s "
            f"{', '.join(state.component for state in possible) or 'components: it has none that is normalised'}",
            field="--component",
        )
    return chosen[0]


def _source(terms: Sequence[RewardTerm], component: str) -> str:
    sources = {term.source_sha256 for term in terms}
    if len(sources) > 1:
        raise PreconditionError(
            f"{component}: the values come from {len(sources)} different sources: it was reloaded meanwhile",
            reason="SOURCE_CHANGED",
        )
    (source,) = sources
    if not source:
        raise PreconditionError(
            f"{component}: the weights behind it cannot be identified, so a normalisation could not be told stale",
            reason="SOURCE_UNKNOWN",
        )
    return source


def _failures(results: Sequence[RewardResult]) -> str:
    failed = Counter(result.failure_reason for result in results if result.failure_reason)
    told = ", ".join(f"{reason}: {number}" for reason, number in failed.most_common())
    return f" ({told})" if told else ""
