"""What `prepare` finds behind the addresses of a run, before anything costs time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline_fakes as fakes
from rlaif.core.errors import InvalidInputError
from rlaif.playground.paths import JUDGE_DIR, POLICY_DIR
from rlaif.runtime.artifacts import folder_digest
from rlaif_pipelines.context import RunContext
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.prepare import create_run, prepare

POLICY, JUDGE, OTHER = folder_digest(POLICY_DIR), folder_digest(JUDGE_DIR), "c" * 64
RULES = load_constitution("playground")
ADDRESSES = {"sampler": "sampler:1", "judge": "judge:1", "reward": "reward:1"}

Services = dict[str, Any]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    """Services that serve what the runs of this file are about."""
    rules = {RULES.name: RULES.sha256}
    found: Services = {
        "sampler": fakes.FakeSampler(digest=POLICY, serves="policies/p"),
        "judge": fakes.FakeJudge(JUDGE, rules=rules),
        "evaluator": fakes.FakeJudge("b" * 64, rules=rules),
    }
    for name in found:
        monkeypatch.setattr(RunContext, name, lambda context, name=name: found[name])
    return found


def begun(root: Path, *, addresses: dict[str, str] | None = None, **changes: Any) -> RunContext:
    settings = make_settings({"out": root, "policy_resource": "policies/p", **changes})
    return create_run(settings, ServiceAddresses.model_validate(ADDRESSES | (addresses or {})))


def own(root: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run on other prompts than the playground's, which has no gold rules."""
    prompts = root / "prompts.jsonl"
    return {"prompts": prompts, "policy": "playground", "judge": "playground", **changes}


def test_what_the_services_serve_is_written_down(tmp_path: Path, services: Services) -> None:
    values = prepare(begun(tmp_path)).values
    assert (values["policy_digest"], values["judge_digest"]) == (POLICY, JUDGE)
    assert (values["judge_fingerprint"], values["constitution_sha256"]) == (f"of {JUDGE[:4]}", RULES.sha256)


def test_weights_that_the_settings_cannot_tell_are_told_by_their_service(tmp_path: Path, services: Services) -> None:
    services["judge"].digest = OTHER
    settings = own(tmp_path, judge="org/judge", constitution="playground", evaluator="org/another")
    values = prepare(begun(tmp_path, addresses={"evaluator": "evaluator:1"}, **settings)).values
    assert (values["judge_digest"], values["evaluator_digest"]) == (OTHER, "b" * 64)


def another(name: str, field: str, value: Any) -> Callable[[Services], None]:
    return lambda services: setattr(services[name], field, value)


MISMATCHES: dict[str, tuple[Callable[[Services], None], str, str]] = {
    "a policy of another name": (
        another("sampler", "serves", "policies/q"),
        "policy_resource",
        "the sampler at sampler:1 does not serve policies/p: give the name that it serves as policy_resource",
    ),
    "another base": (
        another("sampler", "digest", OTHER),
        "policy",
        rf"the sampler serves other weights \(digest {OTHER[:12]}\) than policy 'playground' \(digest {POLICY[:12]}\)",
    ),
    "a version that another run has made": (
        another("sampler", "version", 7),
        "policy_resource",
        "serves version 7 of policies/p, which another run has made: have it serve the policy under a new name",
    ),
    "another judge": (
        another("judge", "digest", OTHER),
        "judge",
        rf"the judge serves other weights \(digest {OTHER[:12]}\) than judge 'playground' \(digest {JUDGE[:12]}\)",
    ),
    "no such constitution": (
        another("judge", "rules", {}),
        "constitution",
        "the judge at judge:1 has no constitutions/playground: add it to the judge's settings",
    ),
    "another constitution of that name": (
        another("judge", "rules", {RULES.name: OTHER}),
        "constitution",
        rf"other rules under the name constitutions/playground \(SHA-256 {OTHER[:12]}\) than this run",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_service_that_serves_something_else_ends_the_run_before_it_begins(
    case: str, tmp_path: Path, services: Services
) -> None:
    spoil, field, sentence = MISMATCHES[case]
    spoil(services)
    context = begun(tmp_path)
    with pytest.raises(InvalidInputError, match=sentence) as caught:
        prepare(context)
    assert caught.value.field == field
    assert not context.finished("prepare")


SECOND: dict[str, tuple[Callable[[Services], None], str]] = {
    "the same weights as the judge": (another("evaluator", "digest", JUDGE), "the same weights as the judge"),
    "no such constitution": (
        another("evaluator", "rules", {}),
        "the evaluator at evaluator:1 has no constitutions/playground: add it to the evaluator's settings",
    ),
    "another constitution of that name": (
        another("evaluator", "rules", {RULES.name: OTHER}),
        "the evaluator at evaluator:1 has other rules",
    ),
}


@pytest.mark.parametrize("case", SECOND)
def test_a_second_judge_that_cannot_evaluate_is_told_before_anything_is_trained(
    case: str, tmp_path: Path, services: Services
) -> None:
    spoil, sentence = SECOND[case]
    spoil(services)
    settings = own(tmp_path, evaluator="org/another")
    with pytest.raises(InvalidInputError, match=sentence):
        prepare(begun(tmp_path, addresses={"evaluator": "evaluator:1"}, **settings))


def test_the_versions_that_a_run_has_made_itself_are_no_surprise_when_it_goes_on(
    tmp_path: Path, services: Services
) -> None:
    context = begun(tmp_path)
    prepare(context)
    context.stage_folder("train").mkdir()
    services["sampler"].version, services["sampler"].digest = 7, OTHER
    assert prepare(context).values["policy_digest"] == POLICY


@pytest.mark.parametrize(
    ("pipeline", "missing", "sentence"),
    [
        ({}, "sampler", "pipeline rlaif needs a sampler service: give sampler_address"),
        ({}, "judge", "pipeline rlaif needs a judge service: give judge_address"),
        ({}, "reward", "pipeline rlaif needs a reward service: give reward_address"),
        ({"pipeline": "evaluate-only", "candidate": "org/c"}, "sampler", "pipeline evaluate-only needs a sampler"),
        ({"pipeline": "judge-benchmark", "pairs": {"path": "p.jsonl"}}, "judge", "judge-benchmark needs a judge"),
    ],
)
def test_a_service_without_an_address_is_told_before_it_is_asked(
    pipeline: dict[str, Any], missing: str, sentence: str, tmp_path: Path, services: Services
) -> None:
    given = own(tmp_path) if pipeline.get("pipeline") == "judge-benchmark" else {}
    settings = make_settings({"out": tmp_path, "policy_resource": "policies/p", **given, **pipeline})
    addresses = ServiceAddresses.model_validate({key: value for key, value in ADDRESSES.items() if key != missing})
    with pytest.raises(InvalidInputError, match=sentence) as caught:
        prepare(create_run(settings, addresses))
    assert caught.value.field == f"services.{missing}"


@pytest.mark.parametrize("pipeline", [{"algorithm": "dpo"}, {"pipeline": "label-only"}])
def test_without_reinforcement_learning_no_reward_service_is_needed(
    pipeline: dict[str, Any], tmp_path: Path, services: Services
) -> None:
    settings = make_settings({"out": tmp_path, "policy_resource": "policies/p", **pipeline})
    addresses = ServiceAddresses(sampler="sampler:1", judge="judge:1")
    assert prepare(create_run(settings, addresses)).values["policy_digest"] == POLICY


def test_a_second_judge_has_a_name_and_an_address_or_neither(tmp_path: Path, services: Services) -> None:
    with pytest.raises(InvalidInputError, match="evaluator 'org/e' needs a judge service that has it"):
        prepare(begun(tmp_path, **own(tmp_path, evaluator="org/e")))
    with pytest.raises(InvalidInputError, match="a second judge at e:1 needs its model named as evaluator, or 'none'"):
        prepare(begun(tmp_path, addresses={"evaluator": "e:1"}, **own(tmp_path)))
    prepare(begun(tmp_path, addresses={"evaluator": "e:1"}, **own(tmp_path, evaluator="none")))
