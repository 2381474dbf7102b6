"""Audit of a constitution as a rubric: what can be found without a model, from its wording and from its votes.

The questions are those of a rubric review: vague standards, missing criteria, conflicts between principles, bias
risks, edge cases left open, and how people should check the labels. Findings are advice: a constitution with findings
still judges. Wording is checked by English word lists; other languages get the structural findings only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import Final

from rlaif.core import audit_words as say
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.preference import PrincipleVote, combine_principles

DUPLICATE_SIMILARITY: Final = 0.6
"""Principles that share at least this part of their content words say the same."""
LEAST_WEIGHT_SHARE: Final = 0.02
"""A principle with less than this part of the weight can hardly change a verdict."""
DECIDED_MARGIN: Final = 0.1
"""A vote at least this far from one half takes a side."""
CONFLICT_SHARE: Final = 2 / 3
"""Two principles conflict when they take opposite sides on more than this part of the pairs that both decide."""
LEAST_CONFLICT_PAIRS: Final = 4
ORDER_SHARE: Final = 1 / 3
"""A principle follows the position when its side turns with the order shown on more than this part of the pairs."""
ENOUGH_PROBE_PAIRS: Final = 30
_LEAST_WORDS: Final = 4
_LEAST_REVIEWS: Final = 50


class FindingKind(Enum):
    """What a finding is about."""

    DUPLICATE = "duplicate"
    VAGUE = "vague"
    MISSING_CRITERION = "missing_criterion"
    CONFLICT = "conflict"
    BIAS_RISK = "bias_risk"
    EDGE_CASE = "edge_case"
    INERT = "inert"
    VALIDATION = "validation"


@dataclass(frozen=True)
class Finding:
    """One finding: the principles concerned, what is the matter and what to change, a sentence each."""

    kind: FindingKind
    principle_ids: tuple[str, ...]
    description: str
    suggestion: str


def audit_constitution(constitution: Constitution) -> list[Finding]:
    """Findings from the wording and the weights alone; the last say how people should validate the labels."""
    principles = constitution.principles
    return [
        *_repeated(principles),
        *_vague(principles),
        *_missing(principles, description=constitution.description),
        *_bias_risks(principles),
        *_edge_cases(principles),
        *_weightless(principles),
        *_validation(constitution),
    ]


def audit_votes(constitution: Constitution, votes_by_pair: Sequence[Sequence[PrincipleVote]]) -> list[Finding]:
    """Findings from probe votes: `votes_by_pair` holds, for each probe pair, one vote of each principle applied."""
    if not votes_by_pair:
        return []
    ids = [principle.principle_id for principle in constitution.principles]
    votes = [{vote.principle_id: vote for vote in pair} for pair in votes_by_pair]
    return [
        *_conflicts(ids, votes),
        *_never_decisive(ids, votes_by_pair),
        *_order_bound(ids, votes),
        *_few_probes(len(votes_by_pair)),
    ]


def _repeated(principles: Sequence[Principle]) -> Iterator[Finding]:
    for one, other in combinations(principles, 2):
        opposite = say.opposed(one.text, other.text)
        if say.similarity(one.text, other.text, apart_from=opposite or ()) < DUPLICATE_SIMILARITY:
            continue
        ids = (one.principle_id, other.principle_id)
        if opposite:
            yield Finding(
                FindingKind.CONFLICT,
                ids,
                f"These two are worded alike but ask for the opposite: {say.quoted(opposite)}.",
                "Say in each when it applies, or keep one of them.",
            )
        else:
            yield Finding(
                FindingKind.DUPLICATE,
                ids,
                "These two say nearly the same, so what they ask for counts with both weights.",
                "Keep one of them with the weight that is meant, or say what tells them apart.",
            )


def _vague(principles: Sequence[Principle]) -> Iterator[Finding]:
    for principle in principles:
        num_content = len(say.content_stems(principle.text))
        unmeasurable = say.found(say.VAGUE, say.FRAME.sub(" ", principle.text) if num_content else principle.text)
        if unmeasurable and 3 * len(unmeasurable) >= num_content:
            yield Finding(
                FindingKind.VAGUE,
                (principle.principle_id,),
                f"{say.quoted(unmeasurable)} cannot be measured: two people, or two judges, will read it in two ways.",
                "Name what a reader can see in the response that makes it so, or give an example of each side.",
            )
        elif len(say.words(principle.text)) < _LEAST_WORDS:
            yield Finding(
                FindingKind.VAGUE,
                (principle.principle_id,),
                f"{principle.text!r} does not say what a reader should look for in the response.",
                "Write a sentence that says what is preferred and by what sign.",
            )


_EXPECTED: Final = (
    ("helpfulness", say.HELPFULNESS, "whether the response does what was asked"),
    ("harmlessness", say.HARMLESSNESS, "whether the response helps anyone do harm"),
    ("honesty", say.HONESTY, "whether what the response states is true"),
)


def _missing(principles: Sequence[Principle], *, description: str) -> Iterator[Finding]:
    for name, pattern, question in _EXPECTED:
        if not _about(principles, pattern) and not say.left_to_others(name, description):
            yield Finding(
                FindingKind.MISSING_CRITERION,
                (),
                f"No principle asks for {name}: {question}.",
                f"Add a principle of {name}, or say in the description that {name} is left to others.",
            )
    harmless = _about(principles, say.HARMLESSNESS)
    if not harmless:
        return
    if not _about(principles, say.REFUSAL):
        yield Finding(
            FindingKind.MISSING_CRITERION,
            harmless,
            "Harmlessness has no counter-weight: nothing says that refusing a harmless request is a fault, so what is "
            "trained on these labels learns to refuse.",
            "Add a principle that prefers real help over refusing or evading what does no harm.",
        )
    if not _about(principles, say.PREACHINESS):
        yield Finding(
            FindingKind.MISSING_CRITERION,
            harmless,
            "Nothing speaks against preaching: lectures, repeated warnings and moralising look harmless and will win.",
            "Add a principle that prefers a response without lectures and warnings that nobody asked for.",
        )


_RISKS: Final = (
    (
        say.LENGTH,
        "can be met by length alone",
        "Ask for the content that is wanted, and watch the verbosity slope of the labels.",
    ),
    (
        say.STYLE,
        "favours a style over what is said",
        "Ask for what the style is meant to achieve, or say that style does not count.",
    ),
    (
        say.POSITION,
        "speaks of the position in which a response is shown, which the judge swaps",
        "Say what is preferred in any order.",
    ),
)


def _bias_risks(principles: Sequence[Principle]) -> Iterator[Finding]:
    for principle in principles:
        text = say.without_negated(principle.text)
        for pattern, risk, suggestion in _RISKS:
            if words := say.found(pattern, text):
                yield Finding(
                    FindingKind.BIAS_RISK, (principle.principle_id,), f"{say.quoted(words)} {risk}.", suggestion
                )
        groups = say.found(say.GROUPS, text)
        if groups and not say.found(say.FAIRNESS, principle.text):
            yield Finding(
                FindingKind.BIAS_RISK,
                (principle.principle_id,),
                f"{say.quoted(groups)} names a group of people, whose mere mention a judge may prefer or avoid.",
                "Say what treatment is meant and that it holds for everyone, or leave the group out.",
            )


def _edge_cases(principles: Sequence[Principle]) -> Iterator[Finding]:
    harmless, honest = _about(principles, say.HARMLESSNESS), _about(principles, say.HONESTY)
    helpful = _about(principles, say.HELPFULNESS)
    if harmless and not _about(principles, say.DUAL_USE):
        yield Finding(
            FindingKind.EDGE_CASE,
            harmless,
            "Left open: a request that sounds alarming and does no harm, such as fiction, history or safety advice.",
            "Say that it counts what the response enables, not what its topic is.",
        )
    if honest and not _about(principles, say.UNCERTAINTY):
        yield Finding(
            FindingKind.EDGE_CASE,
            honest,
            "Left open: what the response should do when it does not know.",
            "Say whether admitting a doubt is better than a confident guess.",
        )
    only_harmless, only_helpful = _only(harmless, helpful), _only(helpful, harmless)
    if only_harmless and only_helpful:
        weight = {principle.principle_id: principle.weight for principle in principles}
        if math.isclose(sum(weight[i] for i in only_harmless), sum(weight[i] for i in only_helpful)):
            yield Finding(
                FindingKind.EDGE_CASE,
                (*only_harmless, *only_helpful),
                "Left open: which wins when a harmful request is answered helpfully; both sides weigh the same.",
                "Give the side that should win the greater weight.",
            )
    if all(principle.applies_to for principle in principles):
        categories = sorted({category for principle in principles for category in principle.applies_to})
        yield Finding(
            FindingKind.EDGE_CASE,
            tuple(principle.principle_id for principle in principles),
            f"Left open: whatever is not of the categories {say.quoted(categories)}; no principle applies to it.",
            "Let at least one principle apply to everything.",
        )


def _weightless(principles: Sequence[Principle]) -> Iterator[Finding]:
    total = sum(principle.weight for principle in principles)
    for principle in principles:
        if principle.weight < LEAST_WEIGHT_SHARE * total:
            yield Finding(
                FindingKind.INERT,
                (principle.principle_id,),
                f"Its weight of {principle.weight:g} is {principle.weight / total:.1%} of all, too little to change a "
                "verdict unless the others are split evenly.",
                "Raise the weight or leave the principle out.",
            )


def _validation(constitution: Constitution) -> Iterator[Finding]:
    principles = constitution.principles
    yield Finding(
        FindingKind.VALIDATION,
        (),
        "Only people can say whether labels made by these principles are right.",
        f"Have two people, who do not see the judge's verdict, decide the same {_LEAST_REVIEWS} pairs or more; compare "
        "their agreement with each other (Cohen's kappa) to the judge's agreement with them, overall and by category.",
    )
    if len(principles) > 1:
        yield Finding(
            FindingKind.VALIDATION,
            tuple(principle.principle_id for principle in principles),
            f"The combined verdict hides which of the {len(principles)} principles was right.",
            "Choose review pairs on which the principles disagree, and ask for a verdict on each principle by itself.",
        )
    if risky := _about(principles, say.HARMLESSNESS):
        yield Finding(
            FindingKind.VALIDATION,
            risky,
            "Mistakes about harm are rare and cost most, so a random sample of labels will miss them.",
            "Add pairs with harmful requests and with harmless ones that sound alarming; count both kinds of mistake.",
        )


def _conflicts(ids: Sequence[str], votes: Sequence[dict[str, PrincipleVote]]) -> Iterator[Finding]:
    for one, other in combinations(ids, 2):
        sides = [(_side(pair.get(one)), _side(pair.get(other))) for pair in votes]
        decided = [(first, second) for first, second in sides if first and second]
        num_opposite = sum(first != second for first, second in decided)
        if len(decided) >= LEAST_CONFLICT_PAIRS and num_opposite > CONFLICT_SHARE * len(decided):
            yield Finding(
                FindingKind.CONFLICT,
                (one, other),
                f"They take opposite sides on {num_opposite} of the {len(decided)} probe pairs that both decide.",
                "Say in each when it gives way to the other, or make sure that the weights do.",
            )


def _never_decisive(ids: Sequence[str], votes_by_pair: Sequence[Sequence[PrincipleVote]]) -> Iterator[Finding]:
    for principle_id in ids:
        own = [vote for pair in votes_by_pair for vote in pair if vote.principle_id == principle_id]
        voted = [vote for vote in own if vote.abstention_reason is None]
        if not own:
            continue
        if not voted:
            yield Finding(
                FindingKind.INERT,
                (principle_id,),
                f"The judge gave no vote by it on any of the {len(own)} probe pairs.",
                "Reword it so that it asks which of two responses is to be preferred, or leave it out.",
            )
        elif len(ids) > 1 and not any(_changes(principle_id, pair) for pair in votes_by_pair):
            yield Finding(
                FindingKind.INERT,
                (principle_id,),
                f"Left out, it would have changed none of the verdicts on the {len(own)} probe pairs.",
                "Probe it with pairs that it should decide; if it still changes nothing, raise its weight or drop it.",
            )


def _changes(principle_id: str, votes: Sequence[PrincipleVote]) -> bool:
    """Whether the verdict on one pair is another without the principle."""
    others = [vote for vote in votes if vote.principle_id != principle_id]
    if len(others) == len(votes):
        return False
    if not others:  # it was the only one asked
        return True
    return combine_principles(votes).preference is not combine_principles(others).preference


def _order_bound(ids: Sequence[str], votes: Sequence[dict[str, PrincipleVote]]) -> Iterator[Finding]:
    """Votes that take opposite sides in the two orders; an undecided vote that wavers about one half is none."""
    for principle_id in ids:
        own = [vote for vote in (pair.get(principle_id) for pair in votes) if vote and vote.abstention_reason is None]
        sides = [(_side_of(vote.probability_when_first), _side_of(vote.probability_when_second)) for vote in own]
        decided = [(first, second) for first, second in sides if first and second]
        num_turned = sum(first != second for first, second in decided)
        if len(decided) >= LEAST_CONFLICT_PAIRS and num_turned > ORDER_SHARE * len(decided):
            yield Finding(
                FindingKind.BIAS_RISK,
                (principle_id,),
                f"On {num_turned} of the {len(decided)} probe pairs that it decides, its side turns with the order.",
                "Word it so that the difference can be seen in the text, or give the judge an example.",
            )


def _few_probes(num_pairs: int) -> Iterator[Finding]:
    if num_pairs < ENOUGH_PROBE_PAIRS:
        yield Finding(
            FindingKind.VALIDATION,
            (),
            f"{num_pairs} probe pairs are few: that nothing was found on them proves little.",
            f"Probe with at least {ENOUGH_PROBE_PAIRS} pairs from the traffic that the judge will see.",
        )


def _about(principles: Sequence[Principle], pattern: re.Pattern[str]) -> tuple[str, ...]:
    """Ids of the principles whose wording or dimension matches."""
    return tuple(
        principle.principle_id
        for principle in principles
        if pattern.search(principle.text) or pattern.search(principle.dimension.replace("_", " "))
    )


def _only(ids: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in ids if each not in others)


def _side(vote: PrincipleVote | None) -> int:
    """The side of a vote, 0 for none."""
    return 0 if vote is None or vote.abstention_reason is not None else _side_of(vote.probability_first)


def _side_of(probability_first: float) -> int:
    """1 for the first response, -1 for the second, 0 for neither."""
    if abs(probability_first - 0.5) < DECIDED_MARGIN:
        return 0
    return 1 if probability_first > 0.5 else -1
