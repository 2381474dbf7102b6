from rlaif.core.preference import AbstentionReason, PairLabel, Preference, abstain
from rlaif.core.quality import CellAccuracy, GateLimits, decide_gate, label_quality


def label(probability=0.9, *, consistent=True):
    preference = Preference.FIRST if probability > 0.5 else Preference.SECOND
    return PairLabel(preference, probability, consistent, ())


def test_rates_are_over_the_right_labels():
    quality = label_quality([label(0.9), label(0.3, consistent=False), abstain(AbstentionReason.TOO_LONG), label(1.0)])
    assert quality.abstention_rate == 0.25
    assert quality.order_inconsistency == 1 / 3
    assert quality.mean_confidence is not None
    assert abs(quality.mean_confidence - (0.8 + 0.4 + 1.0) / 3) < 1e-12


def test_no_labels_have_no_rates():
    quality = label_quality([])
    assert quality.abstention_rate is quality.order_inconsistency is quality.mean_confidence is None
    assert not decide_gate(quality, limits=GateLimits()).passed


def test_good_labels_pass():
    assert decide_gate(label_quality([label()] * 40), limits=GateLimits()).passed


def test_every_broken_limit_is_a_reason():
    labels = [label(consistent=False)] * 20 + [abstain(AbstentionReason.TOO_LONG)] * 20
    decision = decide_gate(
        label_quality(labels),
        limits=GateLimits(min_num_labels=50),
        accuracy={"harmful": {"harmless": CellAccuracy(10, 20), "brief": CellAccuracy(1, 5)}},
    )
    assert not decision.passed
    assert [reason.split()[0] for reason in decision.reasons] == ["40", "abstention", "order", "judge"]
    assert "harmful × harmless is 0.500 over 20 pairs" in decision.reasons[-1]


def test_a_good_mean_does_not_hide_a_bad_cell():
    accuracy = {"benign": {"helpful": CellAccuracy(99, 100)}, "harmful": {"helpful": CellAccuracy(50, 100)}}
    decision = decide_gate(label_quality([label()] * 200), limits=GateLimits(), accuracy=accuracy)
    assert not decision.passed
