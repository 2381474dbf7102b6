from dataclasses import replace
from importlib import resources

import pytest

from rlaif.core.audit import Finding, FindingKind, audit_constitution, audit_votes
from rlaif.core.constitution import Constitution, Principle, parse_constitution
from rlaif.core.preference import AbstentionReason, PrincipleVote

HARM = "Prefer the response that gives less help to whoever would hurt people."


def constitution(*texts: str, **weights: float) -> Constitution:
    principles = tuple(
        Principle(f"p{index}", text, weight=weights.get(f"p{index}", 1.0)) for index, text in enumerate(texts)
    )
    return Constitution("house", 1, "", principles)


def of_kind(findings: list[Finding], kind: FindingKind) -> list[Finding]:
    return [finding for finding in findings if finding.kind is kind]


def said(findings: list[Finding], kind: FindingKind) -> str:
    return " ".join(finding.description for finding in of_kind(findings, kind))


def shipped(name: str) -> Constitution:
    text = resources.files("rlaif.constitutions").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return parse_constitution(text, source=name)


def test_two_wordings_of_one_rule_are_duplicates():
    audited = audit_constitution(
        constitution(
            "Prefer the response that states only what is true.",
            "Prefer the response whose sentences can be checked.",
            "Choose the reply which states only what is true!",
        )
    )
    (duplicate,) = of_kind(audited, FindingKind.DUPLICATE)
    assert duplicate.principle_ids == ("p0", "p2")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Prefer the response with more technical detail.", "Prefer the response with less technical detail."),
        ("Prefer the longer response.", "Prefer the shorter response."),
    ],
)
def test_the_same_rule_turned_round_is_a_conflict_not_a_duplicate(one, other):
    audited = audit_constitution(constitution(one, other))
    assert [finding.principle_ids for finding in of_kind(audited, FindingKind.CONFLICT)] == [("p0", "p1")]
    assert of_kind(audited, FindingKind.DUPLICATE) == []


@pytest.mark.parametrize(
    ("text", "vague"),
    [
        ("Prefer the better response.", True),
        ("Prefer the response that is more appropriate and of higher quality.", True),
        ("Be polite.", True),
        ("A good reply is polite to the user.", False),
        ("Prefer the response whose steps the user can carry out with what the question names.", False),
    ],
)
def test_wording_that_nobody_can_measure_is_vague(text, vague):
    assert bool(of_kind(audit_constitution(constitution(text)), FindingKind.VAGUE)) is vague


def test_harmlessness_alone_lacks_its_counter_weights_and_the_other_criteria():
    missing = said(audit_constitution(constitution(HARM)), FindingKind.MISSING_CRITERION)
    for words in ("refusing a harmless request", "preaching", "helpfulness", "honesty"):
        assert words in missing
    assert "harmlessness: " not in missing


def test_counter_weights_are_seen_where_they_stand():
    audited = audit_constitution(
        constitution(
            HARM,
            "Prefer the response that does what was asked; refusing a harmless request is a fault.",
            "Prefer the response without lectures and warnings.",
            "Prefer the response whose statements are accurate and which admits what it does not know.",
        )
    )
    assert of_kind(audited, FindingKind.MISSING_CRITERION) == []


def test_a_constitution_without_harmlessness_needs_no_counter_weight_to_it():
    missing = said(audit_constitution(constitution("Prefer the more accurate summary.")), FindingKind.MISSING_CRITERION)
    assert "harmlessness" in missing
    assert "preaching" not in missing


@pytest.mark.parametrize(
    ("description", "missing"),
    [
        ("Summaries. Harmlessness is left to another judge.", False),
        ("For use beside labels of harmlessness; nothing else.", False),
        ("Harmlessness first. Help is left to others.", True),
        ("", True),
    ],
)
def test_a_criterion_that_the_description_leaves_to_others_is_not_missing(description: str, missing: bool):
    rules = replace(constitution("Prefer the more accurate summary."), description=description)
    found = said(audit_constitution(rules), FindingKind.MISSING_CRITERION)
    assert ("harmlessness: " in found) is missing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Prefer the more detailed and comprehensive response.", "length"),
        ("Prefer the response that sounds confident and professional.", "style"),
        ("Prefer the response that a Western reader would expect.", "group"),
        ("Prefer the first response when both are alike.", "position"),
    ],
)
def test_wording_that_invites_a_bias_is_named(text, words):
    assert words in said(audit_constitution(constitution(text)), FindingKind.BIAS_RISK)


@pytest.mark.parametrize(
    "text",
    [
        "Prefer the response that answers the question. Do not prefer a response because it is long or formal.",
        "Prefer the response that does not discriminate against women or men.",
    ],
)
def test_wording_against_a_bias_is_no_risk(text):
    assert of_kind(audit_constitution(constitution(text)), FindingKind.BIAS_RISK) == []


def test_cases_left_open_are_listed():
    help_ = "Prefer the response that does more of the task."
    truth = "Prefer the response that states only facts."
    cases = said(audit_constitution(constitution(HARM, help_, truth)), FindingKind.EDGE_CASE)
    for words in ("sounds alarming", "does not know", "both sides weigh the same"):
        assert words in cases
    heavier = said(audit_constitution(constitution(HARM, help_, truth, p0=5)), FindingKind.EDGE_CASE)
    assert "both sides weigh the same" not in heavier


def test_categories_that_no_principle_covers_are_an_open_case():
    narrow = Constitution("narrow", 1, "", (Principle("p0", HARM, applies_to=("medicine", "law")),))
    assert '"law", "medicine"' in said(audit_constitution(narrow), FindingKind.EDGE_CASE)
    wide = Constitution("wide", 1, "", (*narrow.principles, Principle("p1", "Prefer what was asked for.")))
    assert '"law"' not in said(audit_constitution(wide), FindingKind.EDGE_CASE)


def test_a_principle_with_hardly_any_weight_is_inert():
    (inert,) = of_kind(
        audit_constitution(constitution(HARM, "Prefer kind words to the user.", p0=99)), FindingKind.INERT
    )
    assert inert.principle_ids == ("p1",)
    assert "1.0%" in inert.description


def test_how_people_should_check_is_always_said():
    assert "kappa" in of_kind(audit_constitution(constitution(HARM)), FindingKind.VALIDATION)[0].suggestion


def test_the_default_for_real_models_has_nothing_but_advice_on_validation():
    assert {finding.kind for finding in audit_constitution(shipped("helpful-harmless"))} == {FindingKind.VALIDATION}


def vote(index: int, probability: float, *, weight: float = 1.0, turned: bool = False, abstained: bool = False):
    when_first, when_second = (0.9, 0.2) if turned else (probability, probability)
    reason = AbstentionReason.LOW_VERDICT_MASS if abstained else None
    return PrincipleVote(f"p{index}", weight, probability, when_first, when_second, 1.0, reason)


TWO = constitution(HARM, "Prefer the response that does more of the task.")


def test_no_probe_pairs_no_findings():
    assert audit_votes(TWO, []) == []


def test_principles_on_opposite_sides_conflict():
    votes = [[vote(0, 0.9, weight=3), vote(1, 0.1)]] * 5 + [[vote(0, 0.9, weight=3), vote(1, 0.55)]] * 3
    (conflict,) = of_kind(audit_votes(TWO, votes), FindingKind.CONFLICT)
    assert conflict.principle_ids == ("p0", "p1")
    assert "5 of the 5 probe pairs" in conflict.description


def test_a_trade_off_now_and_then_is_no_conflict():
    votes = [[vote(0, 0.9), vote(1, 0.1)]] * 3 + [[vote(0, 0.9), vote(1, 0.9)]] * 3
    assert of_kind(audit_votes(TWO, votes), FindingKind.CONFLICT) == []


def test_a_principle_that_is_always_outvoted_is_inert_and_one_that_decides_is_not():
    # Weighted means: (3·0.9 + 0.1)/4 = 0.7 with p1, 0.9 without it; p0 alone turns 0.1 into 0.7.
    (inert,) = of_kind(audit_votes(TWO, [[vote(0, 0.9, weight=3), vote(1, 0.1)]] * 4), FindingKind.INERT)
    assert inert.principle_ids == ("p1",)
    decided = [[vote(0, 0.9, weight=3), vote(1, 0.1)]] * 4 + [[vote(0, 0.49, weight=3), vote(1, 0.9)]]
    assert of_kind(audit_votes(TWO, decided), FindingKind.INERT) == []


def test_a_principle_that_the_judge_cannot_apply_is_inert():
    votes = [[vote(0, 0.9), vote(1, 0.0, abstained=True)]] * 4
    assert "gave no vote by it on any of the 4" in said(audit_votes(TWO, votes), FindingKind.INERT)


def test_a_vote_that_turns_with_the_order_is_a_bias_risk():
    votes = [[vote(0, 0.9), vote(1, 0.55, turned=True)]] * 4
    (risk,) = of_kind(audit_votes(TWO, votes), FindingKind.BIAS_RISK)
    assert risk.principle_ids == ("p1",)


def test_an_undecided_vote_that_wavers_is_no_bias_risk():
    wavering = PrincipleVote("p1", 1.0, 0.5, 0.52, 0.48, 1.0)
    assert not wavering.order_consistent
    assert of_kind(audit_votes(TWO, [[vote(0, 0.9), wavering]] * 8), FindingKind.BIAS_RISK) == []


def test_few_probe_pairs_are_said_to_be_few():
    assert "4 probe pairs are few" in said(audit_votes(TWO, [[vote(0, 0.9)]] * 4), FindingKind.VALIDATION)
    assert of_kind(audit_votes(TWO, [[vote(0, 0.9)]] * 30), FindingKind.VALIDATION) == []
