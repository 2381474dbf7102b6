"""What fires each alert and what does not: series as promtool writes them, a value a minute unless told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

JUDGE = 'namespace="rlaif",job="rlaif-judge",pod="judge-0"'
EVALUATOR = 'namespace="rlaif",job="rlaif-evaluator",pod="evaluator-0"'
SAMPLER = 'namespace="rlaif",job="rlaif-sampler",pod="sampler-0"'
REWARD = 'namespace="rlaif",job="rlaif-reward",pod="reward-0"'
OVERSIGHT = 'namespace="rlaif",job="rlaif-oversight",pod="oversight-0"'
RUN = 'namespace="rlaif",job="rlaif-training",pod="run-0",stage="rl"'


@dataclass(frozen=True)
class Case:
    """An alert that fires on `bad` at `at`, with these labels, and never on `good`."""

    alert: str
    bad: Mapping[str, str]
    good: Mapping[str, str]
    at: str = "30m"
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the firing alert, beside alertname, alertstate and namespace."""
    quiet_until: str = ""
    """A time on `bad` at which it must not fire yet."""


def _calls(job: str, service: str, *, ok: str, failed: str, code: str) -> dict[str, str]:
    name = f'rlaif_{service}_requests_total{{{job},method="X/Y"'
    return {f'{name},code="OK"}}': ok, f'{name},code="{code}"}}': failed}


def _latency(*, all_calls: str, in_time: str) -> dict[str, str]:
    labels = f'{JUDGE},method="JudgeService/CompareResponses"'
    return {
        f'rlaif_judge_request_seconds_bucket{{{labels},le="5.0"}}': in_time,
        f'rlaif_judge_request_seconds_bucket{{{labels},le="+Inf"}}': all_calls,
        f"rlaif_judge_request_seconds_count{{{labels}}}": all_calls,
    }


def _labels(*, decided: str, abstained: str = "0+0x600") -> dict[str, str]:
    return {
        f'rlaif_judge_labels_total{{{JUDGE},form="compare",outcome="first"}}': decided,
        f'rlaif_judge_labels_total{{{JUDGE},form="compare",outcome="abstain"}}': abstained,
        f'rlaif_judge_abstentions_total{{{JUDGE},form="compare",reason="truncated"}}': abstained,
    }


def _quality(statistic: str, *, bound: str, value: str, part: str = "") -> dict[str, str]:
    return {f'rlaif_label_quality_{statistic}{{{OVERSIGHT},slice="{part}",bound="{bound}"}}': value}


def _run(*, last_step: str, step: str = "7x600", step_seconds: str = "10x600") -> dict[str, str]:
    return {
        f"rlaif_training_last_step_timestamp_seconds{{{RUN}}}": last_step,
        f"rlaif_training_step{{{RUN}}}": step,
        f"rlaif_training_steps_planned{{{RUN}}}": "40x600",
        f'rlaif_training_part_seconds{{{RUN},part="step"}}': step_seconds,
    }


def _budget(alert: str, bad: dict[str, str], *, over: dict[str, str], below: list[dict[str, str]]) -> list[Case]:
    """Three pairs of windows. A burst that is `over` pages nobody; nor does what stays `below` the other limits."""
    labels = {"job": "rlaif-judge"}
    return [
        Case(alert, bad, over, at="40m", labels=labels | {"window": "1h", "severity": "critical"}),
        Case(alert, bad, below[0], at="40m", labels=labels | {"window": "6h", "severity": "critical"}),
        Case(alert, bad, below[1], at="40m", labels=labels | {"window": "3d", "severity": "warning"}),
    ]


def _behind(seconds: str, *, deadline: int) -> dict[str, str]:
    return {
        f"rlaif_sampler_policy_behind_seconds{{{SAMPLER}}}": seconds,
        f"rlaif_sampler_sync_deadline_seconds{{{SAMPLER}}}": f"{deadline}x100",
    }


OTHERS_UP = {f"up{{{labels}}}": "1x100" for labels in (SAMPLER, REWARD, OVERSIGHT)}
UP_AND_DOWN = OTHERS_UP | {f"up{{{JUDGE}}}": "1x10 0x90"}
REVIEWED = f"rlaif_label_quality_reviewed_labels{{{OVERSIGHT}}}"
_OUT_OF_MEMORY = 'stage="train",launcher="trainjob",reason="OUT_OF_MEMORY"'
_ALL_FINE = {"decided": "0+10x600"}

_FEW = "0x5 1x5 2x5 3x5 4x5 5x5 6x5 7x5 8x5 9x60"

CASES = [
    Case(
        "RlaifServiceDown",
        UP_AND_DOWN,
        # A pod that moves to another node is away for a minute.
        OTHERS_UP | {f"up{{{JUDGE}}}": "1x10 0 1x90"},
        at="95m",
        labels={"job": "rlaif-judge"},
        quiet_until="12m",
    ),
    # A pod that is gone leaves no target at all, and is missed for as long as it is gone.
    Case(
        "RlaifServiceDown",
        OTHERS_UP | {f"up{{{JUDGE}}}": "1x10 _x90"},
        # Of two replicas one went.
        OTHERS_UP | {f"up{{{JUDGE}}}": "1x10 _x90", 'up{namespace="rlaif",job="rlaif-judge",pod="judge-1"}': "1x100"},
        at="95m",
        labels={"job": "rlaif-judge"},
    ),
    # So is one that never came, for want of a GPU; not an evaluator, which few have.
    Case(
        "RlaifServiceDown",
        OTHERS_UP,
        OTHERS_UP | {f"up{{{JUDGE}}}": "1x100", 'up{namespace="other",job="rlaif-judge"}': "1x10 0x90"},
        labels={"job": "rlaif-judge"},
    ),
    Case(
        "RlaifServiceDown",
        OTHERS_UP | {f"up{{{JUDGE}}}": "1x100", f"up{{{EVALUATOR}}}": "1x10 _x90"},
        OTHERS_UP | {f"up{{{JUDGE}}}": "1x100", f"up{{{EVALUATOR}}}": "1x100"},
        labels={"job": "rlaif-evaluator"},
    ),
    Case(
        "RlaifReplicaDown",
        UP_AND_DOWN,
        {f"up{{{JUDGE}}}": "1x5 0x3 1x90"},
        labels={"job": "rlaif-judge"},
        quiet_until="13m",
    ),
    Case(
        "RlaifServiceNotReady",
        {f"rlaif_judge_ready_ratio{{{JUDGE}}}": "0x100"},
        {f"rlaif_judge_ready_ratio{{{JUDGE}}}": "0x10 1x90"},
        labels={"job": "rlaif-judge"},
        quiet_until="10m",
    ),
    *_budget(
        "RlaifErrorBudgetBurn",
        _calls(JUDGE, "judge", ok="0+9x60", failed="0+1x60", code="UNAVAILABLE"),
        over=_calls(JUDGE, "judge", ok="0+10x60", failed="0+10x4 40x60", code="INTERNAL"),
        below=[
            _calls(JUDGE, "judge", ok="0+980x60", failed="0+20x60", code="INTERNAL"),
            # A caller's mistakes are no faults of the service.
            _calls(JUDGE, "judge", ok="0+9x60", failed="0+9x60", code="INVALID_ARGUMENT")
            | _calls(SAMPLER, "sampler", ok="0+499x60", failed="0+1x60", code="INTERNAL"),
        ],
    ),
    # Of a call each six minutes one fails, a large share of them: nobody is woken for it, and somebody is for five.
    Case(
        "RlaifErrorBudgetBurn",
        _calls(JUDGE, "judge", ok=_FEW, failed="0 0 1x3 2x3 3x3 4x3 5x3 6x3 7x3 8x3 9x60", code="UNAVAILABLE"),
        _calls(JUDGE, "judge", ok=_FEW, failed="0x15 1x80", code="UNAVAILABLE"),
        labels={"job": "rlaif-judge", "window": "1h", "severity": "critical"},
        quiet_until="17m",
    ),
    *_budget(
        "RlaifLatencyBudgetBurn",
        _latency(all_calls="0+10x60", in_time="0+2x60"),
        over=_latency(all_calls="0+10x60", in_time="0x4 0+10x56"),
        below=[
            _latency(all_calls="0+100x60", in_time="0+80x60"),
            _latency(all_calls="0+100x60", in_time="0+98x60"),
        ],
    ),
    Case(
        "RlaifQueueFilling",
        {
            f'rlaif_judge_queue_prompts{{{JUDGE},queue="verdicts"}}': "90x100",
            f'rlaif_judge_queue_limit_prompts{{{JUDGE},queue="verdicts"}}': "100x100",
        },
        {
            f'rlaif_judge_queue_prompts{{{JUDGE},queue="verdicts"}}': "90x5 70x95",
            f'rlaif_judge_queue_limit_prompts{{{JUDGE},queue="verdicts"}}': "100x100",
            f"rlaif_sampler_queue_completions{{{SAMPLER}}}": "50x100",
            f"rlaif_sampler_queue_limit_completions{{{SAMPLER}}}": "100x100",
        },
        labels={"job": "rlaif-judge"},
        quiet_until="8m",
    ),
    Case(
        "RlaifCallsRefused",
        _calls(JUDGE, "judge", ok="0+90x100", failed="0+10x100", code="RESOURCE_EXHAUSTED"),
        _calls(JUDGE, "judge", ok="0+999x100", failed="0+1x100", code="RESOURCE_EXHAUSTED"),
        labels={"job": "rlaif-judge"},
        quiet_until="9m",
    ),
    # Times are seconds since the test began at 0: a certificate that ends after 13 days, and one after 20.
    Case(
        "RlaifCertificateExpiring",
        {f'rlaif_runtime_certificate_expiry_timestamp_seconds{{{JUDGE},certificate="server"}}': f"{13 * 86400}x100"},
        {f'rlaif_runtime_certificate_expiry_timestamp_seconds{{{JUDGE},certificate="server"}}': f"{20 * 86400}x100"},
        labels={"job": "rlaif-judge", "severity": "warning", "certificate": "server"},
    ),
    Case(
        "RlaifCertificateExpiring",
        {f'rlaif_runtime_certificate_expiry_timestamp_seconds{{{JUDGE},certificate="client_ca"}}': f"{86400}x100"},
        {},
        labels={"job": "rlaif-judge", "severity": "critical", "certificate": "client_ca"},
    ),
    Case(
        "RlaifReloadFailing",
        {f'rlaif_runtime_reload_failures_total{{{JUDGE},source="tokens"}}': "0+60x100"},
        {f'rlaif_runtime_reload_failures_total{{{JUDGE},source="tokens"}}': "0 60x100"},
        labels={"job": "rlaif-judge", "source": "tokens"},
    ),
    Case(
        "RlaifPolicyStale",
        _behind("0+60x100", deadline=300),
        # Loading a new version takes a minute or two each time.
        _behind("0 60 120 0 60 120 0x90", deadline=300),
        labels={"pod": "sampler-0"},
        quiet_until="4m",
    ),
    # A large model may take ten minutes each time, where the deadline allows for it.
    Case(
        "RlaifPolicyStale",
        _behind("0+60x100", deadline=1800),
        _behind("0 120 240 360 480 600 0 120 240 360 480 600 0x90", deadline=1800),
        labels={"pod": "sampler-0"},
        quiet_until="18m",
    ),
    Case(
        "RlaifPolicySyncFailing",
        {f'rlaif_sampler_policy_sync_failures_total{{{SAMPLER},reason="UNAVAILABLE"}}': "0+2x100"},
        {f'rlaif_sampler_policy_sync_failures_total{{{SAMPLER},reason="UNAVAILABLE"}}': "0 1x100"},
        labels={"pod": "sampler-0", "reason": "UNAVAILABLE"},
    ),
    Case(
        "RlaifLabelFlowStopped",
        {f"rlaif_judge_requests_in_flight{{{JUDGE}}}": "3x100"} | _labels(decided="0+10x5 50x95"),
        {f"rlaif_judge_requests_in_flight{{{JUDGE}}}": "3x100"} | _labels(decided="0+10x100"),
        at="25m",
        labels={"job": "rlaif-judge"},
        quiet_until="14m",
    ),
    # Nothing is asked, so nothing is made; a judge that writes texts is not stuck.
    Case(
        "RlaifLabelFlowStopped",
        {f"rlaif_judge_requests_in_flight{{{JUDGE}}}": "3x100"},
        {f"rlaif_judge_requests_in_flight{{{JUDGE}}}": "0x100"} | _labels(decided="0+0x100"),
        labels={"job": "rlaif-judge"},
    ),
    Case(
        "RlaifLabelFlowStopped",
        {f"rlaif_judge_requests_in_flight{{{JUDGE}}}": "3x100"},
        {
            f"rlaif_judge_requests_in_flight{{{JUDGE}}}": "3x100",
            f'rlaif_judge_texts_total{{{JUDGE},form="critique",outcome="written"}}': "0+1x100",
        },
        labels={"job": "rlaif-judge"},
    ),
    Case(
        "RlaifLabelsNotRecorded",
        _labels(decided="0+10x100") | {f'rlaif_oversight_labels_recorded_total{{{OVERSIGHT},source="ai"}}': "5x100"},
        _labels(decided="0+10x100") | {f'rlaif_oversight_labels_recorded_total{{{OVERSIGHT},source="ai"}}': "0+10x100"},
        quiet_until="8m",
    ),
    Case(
        "RlaifRewardsFailing",
        {
            f'rlaif_reward_rewards_total{{{REWARD},component="judge",outcome="scored"}}': "0+80x100",
            f'rlaif_reward_rewards_total{{{REWARD},component="judge",outcome="abstained"}}': "0+20x100",
        },
        {
            f'rlaif_reward_rewards_total{{{REWARD},component="judge",outcome="scored"}}': "0+99x100",
            f'rlaif_reward_rewards_total{{{REWARD},component="judge",outcome="abstained"}}': "0+1x100",
        },
        labels={"job": "rlaif-reward"},
        quiet_until="9m",
    ),
    Case(
        "RlaifAbstentionsHigh",
        _labels(decided="0+7x100", abstained="0+3x100"),
        _labels(decided="0+9x100", abstained="0+1x100"),
        at="60m",
        labels={"job": "rlaif-judge"},
        quiet_until="12m",
    ),
    Case(
        "RlaifOrderInconsistent",
        _labels(**_ALL_FINE) | {f"rlaif_judge_order_inconsistent_total{{{JUDGE}}}": "0+4x600"},
        _labels(**_ALL_FINE) | {f"rlaif_judge_order_inconsistent_total{{{JUDGE}}}": "0+3x600"},
        at="60m",
        labels={"job": "rlaif-judge"},
    ),
    # 30 % is within the limit, but twice what it was over the week.
    Case(
        "RlaifOrderInconsistent",
        _labels(**_ALL_FINE)
        | {f"rlaif_judge_order_inconsistent_total{{{JUDGE}}}": "0+3x600"}
        | _quality("order_inconsistency_ratio", bound="high", value="0.15x600"),
        _labels(**_ALL_FINE)
        | {f"rlaif_judge_order_inconsistent_total{{{JUDGE}}}": "0+3x600"}
        | _quality("order_inconsistency_ratio", bound="high", value="0.25x600"),
        at="60m",
        labels={"job": "rlaif-judge"},
    ),
    # Of ten labels in half an hour four have no verdict: too few to say anything.
    Case(
        "RlaifAbstentionsHigh",
        _labels(decided="0+7x100", abstained="0+3x100"),
        _labels(decided="0x10 6x90", abstained="0x10 4x90"),
        at="60m",
        labels={"job": "rlaif-judge"},
    ),
    Case(
        "RlaifInjectionSpike",
        _labels(**_ALL_FINE) | {f'rlaif_judge_injections_suspected_total{{{JUDGE},form="compare"}}': "0+1x600"},
        _labels(decided="0+100x600") | {f'rlaif_judge_injections_suspected_total{{{JUDGE},form="compare"}}': "0+1x600"},
        labels={"job": "rlaif-judge"},
        quiet_until="4m",
    ),
    Case(
        "RlaifHumanAgreementLow",
        _quality("human_agreement_ratio", bound="high", value="0.6x100")
        | _quality("human_agreement_ratio", bound="value", value="0.5x100")
        | {REVIEWED: "40x100"},
        # The value is below the limit, and the interval does not exclude that it is not.
        _quality("human_agreement_ratio", bound="high", value="0.7x100")
        | _quality("human_agreement_ratio", bound="value", value="0.6x100")
        | {REVIEWED: "40x100"},
        quiet_until="8m",
    ),
    # Three people who disagree are no evidence.
    Case(
        "RlaifHumanAgreementLow",
        _quality("human_agreement_ratio", bound="high", value="0.56x100") | {REVIEWED: "3x15 20x85"},
        _quality("human_agreement_ratio", bound="high", value="0.56x100") | {REVIEWED: "3x100"},
        at="35m",
        quiet_until="15m",
    ),
    Case(
        "RlaifHumanAgreementLowInSlice",
        _quality("human_agreement_ratio", bound="high", value="0.55x100", part="category=harmful"),
        _quality("human_agreement_ratio", bound="high", value="0.62x100", part="category=harmful")
        | _quality("human_agreement_ratio", bound="high", value="0.5x100"),
        labels={"slice": "category=harmful"},
    ),
    Case(
        "RlaifJudgePrefersLength",
        _quality("longer_preferred_ratio", bound="low", value="0.8x100")
        | _quality("human_longer_preferred_ratio", bound="high", value="0.6x100"),
        # People prefer the longer as much: that is no bias.
        _quality("longer_preferred_ratio", bound="low", value="0.8x100")
        | _quality("human_longer_preferred_ratio", bound="high", value="0.85x100"),
    ),
    Case(
        "RlaifJudgePrefersLength",
        _quality("longer_preferred_ratio", bound="low", value="0.8x100"),
        _quality("longer_preferred_ratio", bound="low", value="0.6x100"),
    ),
    Case(
        "RlaifLedgerBroken",
        {f"rlaif_oversight_intact_ratio{{{OVERSIGHT}}}": "1x10 0x90"},
        {f"rlaif_oversight_intact_ratio{{{OVERSIGHT}}}": "-1x10 1x90"},
        quiet_until="9m",
    ),
    # A replica that starts has not looked yet, and does not speak for the one that has.
    Case(
        "RlaifLedgerBroken",
        {
            f"rlaif_oversight_intact_ratio{{{OVERSIGHT}}}": "0x100",
            'rlaif_oversight_intact_ratio{namespace="rlaif",job="rlaif-oversight",pod="oversight-1"}': "-1x100",
        },
        {},
    ),
    Case(
        "RlaifLedgerVerificationLate",
        {
            f"rlaif_oversight_last_verify_timestamp_seconds{{{OVERSIGHT}}}": "0x300",
            f"rlaif_oversight_verify_interval_seconds{{{OVERSIGHT}}}": "3600x300",
        },
        {
            f"rlaif_oversight_last_verify_timestamp_seconds{{{OVERSIGHT}}}": "0x60 3600x60 7200x60 10800x120",
            f"rlaif_oversight_verify_interval_seconds{{{OVERSIGHT}}}": "3600x300",
        },
        at="220m",
        quiet_until="150m",
    ),
    Case(
        "RlaifTrainingStalled",
        _run(last_step="0x600"),
        _run(last_step="0+60x600"),
        labels={"pod": "run-0", "stage": "rl"},
        quiet_until="14m",
    ),
    # Steps of five minutes may be away for fifty; a training that is done does nothing.
    Case(
        "RlaifTrainingStalled",
        _run(last_step="0x600", step_seconds="300x600"),
        _run(last_step="0x600", step="40x600"),
        at="60m",
        labels={"pod": "run-0", "stage": "rl"},
        quiet_until="49m",
    ),
    Case(
        "RlaifTrainingGuardNear",
        {f'rlaif_training_guard_used_ratio{{{RUN},guard="kl"}}': "0.2 0.5 0.95x100"},
        # For a step or two it is near.
        {f'rlaif_training_guard_used_ratio{{{RUN},guard="entropy"}}': "0.8x5 0.95x3 0.8x100"},
        labels={"pod": "run-0", "guard": "kl"},
        quiet_until="6m",
    ),
    Case(
        "RlaifTrainingDropsSamples",
        {
            f"rlaif_training_samples_total{{{RUN}}}": "0+60x100",
            f'rlaif_training_dropped_total{{{RUN},reason="abstained"}}': "0+40x100",
        },
        {
            f"rlaif_training_samples_total{{{RUN}}}": "0+60x100",
            f'rlaif_training_dropped_total{{{RUN},reason="abstained"}}': "0+4x100",
            # Groups whose rewards are all the same teach nothing and miss nothing.
            f'rlaif_training_dropped_total{{{RUN},reason="groups_without_variance"}}': "0+40x100",
        },
        labels={"pod": "run-0"},
        quiet_until="9m",
    ),
    Case(
        "RlaifTrainingGuardFired",
        {f'rlaif_training_guards_total{{{RUN},guard="length"}}': "0x10 1x90"},
        {f'rlaif_training_guards_total{{{RUN},guard="length"}}': "0x100"},
        labels={"pod": "run-0", "guard": "length", "window": "running"},
        quiet_until="9m",
    ),
    Case(
        "RlaifTrainingGuardFired",
        {f'rlaif_training_guards_total{{{RUN},guard="kl"}}': "_x10 1x90"},
        {f'rlaif_training_guards_total{{{RUN},guard="kl"}}': "_x10 0x90"},
        labels={"pod": "run-0", "guard": "kl", "window": "running"},
        quiet_until="9m",
    ),
    Case(
        "RlaifTrainingGuardFired",
        {f'rlaif_oversight_guard_stops_total{{{OVERSIGHT},guard="kl"}}': "0x10 1x90"},
        {f'rlaif_oversight_guard_stops_total{{{OVERSIGHT},guard="kl"}}': "5x100"},
        at="20m",
        labels={"guard": "kl", "window": "ended"},
    ),
    # The stage failed before, and does again.
    Case(
        "RlaifStageFailed",
        {f"rlaif_oversight_stage_failures_total{{{OVERSIGHT},{_OUT_OF_MEMORY}}}": "1x70 2x30"},
        {f"rlaif_oversight_stage_failures_total{{{OVERSIGHT},{_OUT_OF_MEMORY}}}": "_x100"},
        at="90m",
        labels={"stage": "train", "launcher": "trainjob", "reason": "OUT_OF_MEMORY"},
        quiet_until="65m",
    ),
    Case(
        "RlaifGateFailed",
        {f'rlaif_oversight_gates_total{{{OVERSIGHT},outcome="failed"}}': "0x10 1x90"},
        {f'rlaif_oversight_gates_total{{{OVERSIGHT},outcome="passed"}}': "0+1x100"},
    ),
    # Its very first failure is the first sample of the series.
    Case(
        "RlaifStageFailed",
        {f"rlaif_oversight_stage_failures_total{{{OVERSIGHT},{_OUT_OF_MEMORY}}}": "_x10 1x90"},
        {f'rlaif_oversight_stages_finished_total{{{OVERSIGHT},stage="train"}}': "_x10 1x90"},
        labels={"stage": "train", "launcher": "trainjob", "reason": "OUT_OF_MEMORY"},
        quiet_until="9m",
    ),
]
