"""The constitutional stage, sampler and judge faked at the client: who is asked what, and what becomes of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pipeline_fakes as fakes
from rlaif.core.constitution import Constitution
from rlaif.core.errors import InvalidInputError, UnavailableError
from rlaif_pipelines.context import RunContext, StageOutput, read_rows
from rlaif_pipelines.evaluation import kl
from rlaif_pipelines.outcome import read_outcome
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.evaluate import evaluate
from rlaif_pipelines.stages.journal import Journal
from rlaif_pipelines.stages.policy import base_policy, starting_policy, trained_policy
from rlaif_pipelines.stages.prepare import create_run
from rlaif_pipelines.stages.prompts import prompts
from rlaif_pipelines.stages.revise import revise
from rlaif_pipelines.stages.revising import draw_principles
from rlaif_pipelines.stages.revision_gate import revision_gate

PLAYGROUND = load_constitution("playground")
SMALL = {
    "algorithm": "sft",
    "constitutional": {"num_prompts": 24, "rounds": 2, "concurrency": 1},
    "gate": {"min_revisions": 4},
    "evaluation": {"num_harmful": 8, "num_other": 4},
}

Services = dict[str, Any]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    found: Services = {"sampler": fakes.FakeSampler(), "judge": fakes.FakeJudge(), "events": []}
    for name in ("sampler", "judge"):
        monkeypatch.setattr(RunContext, name, lambda context, name=name: found[name])
    monkeypatch.setattr(
        RunContext,
        "record_event",
        lambda context, event_type, *, subject, payload: found["events"].append((event_type, payload)),
    )
    monkeypatch.setattr(kl, "kl_to_base", lambda rows, *, base: 0.5)
    return found


def make_run(root: Path, **changes: Any) -> RunContext:
    context = create_run(make_settings({**SMALL, "out": root, **changes}), ServiceAddresses())
    values = {"policy_uri": "base", "policy_digest": "p" * 64, "judge_digest": "a" * 64, "judge_fingerprint": ""}
    context.run_stage("prepare", lambda folder: StageOutput(values=values), inputs={})
    prompts(context)
    return context


def rows_of(context: RunContext) -> list[dict[str, Any]]:
    return list(read_rows(revise(context).path("revisions.jsonl")))


def test_every_reply_is_criticised_and_revised_by_a_principle_a_round(tmp_path: Path, services: Services) -> None:
    rows = rows_of(make_run(tmp_path))
    assert len(rows) == 24
    assert Counter(row["category"] for row in rows) == dict.fromkeys(fakes.world.CATEGORIES, 6)
    for row in rows:
        first, second = row["rounds"]
        assert first["principle_id"] != second["principle_id"]
        assert first["seed"] != second["seed"]
        assert first["critique"].startswith(f"{first['principle_id']} of {row['original']!r}")
        assert second["critique"].startswith(f"{second['principle_id']} of {first['revision']!r}")
        assert row["revised"] == second["revision"] == fakes.refuses_harm(row["messages"][-1]["content"], None)  # type: ignore[arg-type]
        assert {each["judge_digest"] for each in row["rounds"]} == {"a" * 64}
    assert len(services["judge"].asked) == 24 * 4


def test_the_values_count_what_became_of_the_replies_and_by_which_principle(tmp_path: Path, services: Services) -> None:
    values = revise(make_run(tmp_path)).values
    assert values["num_replies"] == values["num_revised"] + values["num_unchanged"] == 24
    assert 0 < values["num_revised"] < 24
    assert (values["num_critiques"], values["num_dropped"], values["dropped"]) == (48, 0, {})
    outcomes = values["by_principle"].values()
    assert sum(each["num_critiques"] for each in outcomes) == 48
    assert sum(each["num_revised"] for each in outcomes) == values["num_revised"]
    assert values["judge_digests"] == ["a" * 64]


def test_every_revision_is_in_the_ledger_by_its_digests(tmp_path: Path, services: Services) -> None:
    rows = rows_of(make_run(tmp_path))
    [payload] = [payload for event_type, payload in services["events"] if event_type == "replies_revised"]
    assert payload["constitution_sha256"] == PLAYGROUND.sha256
    assert [each["prompt_id"] for each in payload["replies"]] == [row["prompt_id"] for row in rows]
    for row, recorded in zip(rows, payload["replies"], strict=True):
        assert [each["principle_id"] for each in recorded["rounds"]] == [each["principle_id"] for each in row["rounds"]]
        assert [each["seed"] for each in recorded["rounds"]] == [str(each["seed"]) for each in row["rounds"]]
        assert row["original"] not in json.dumps(recorded), "the ledger keeps digests, the run folder texts"


@pytest.mark.parametrize(
    ("step", "reason"),
    [("critique", "critique_truncated"), ("revision", "revision_truncated")],
)
def test_a_reply_that_the_judge_abstains_on_is_dropped_and_counted(
    step: str, reason: str, tmp_path: Path, services: Services
) -> None:
    services["judge"].fails = lambda asked, number: "truncated" if asked == step and number < 8 else None
    context = make_run(tmp_path)
    rows = rows_of(context)
    dropped = [row for row in rows if row["dropped"]]
    assert dropped
    assert {row["dropped"] for row in dropped} == {reason}
    assert all(row["revised"] is None and len(row["rounds"]) == 1 for row in dropped)
    assert context.result("revise").values["dropped"] == {reason: len(dropped)}
    learnt = list(read_rows(revision_gate(context).path("conversations.jsonl")))
    assert not {row["prompt_id"] for row in dropped} & {row["prompt_id"] for row in learnt}


def test_a_reply_that_the_judge_refuses_is_dropped_and_one_that_is_empty_never_asked_about(
    tmp_path: Path, services: Services
) -> None:
    def too_long(step: str, number: int) -> None:
        if number == 1:
            raise InvalidInputError("too long", reason="PROMPT_TOO_LONG")

    services["judge"].fails = too_long

    def is_fact(prompt: str) -> bool:
        return fakes.world.prompts_by_text()[prompt].category == "fact"

    says = services["sampler"].speak
    services["sampler"].speak = lambda prompt, rng: " " if is_fact(prompt) else says(prompt, rng)
    context = make_run(tmp_path)
    rows = rows_of(context)
    reasons = Counter(row["dropped"] for row in rows)
    assert reasons["critique_prompt_too_long"] == 1
    assert reasons["empty_reply"] == sum(row["original"] == " " for row in rows) > 0
    assert all(row["rounds"] == [] for row in rows if row["dropped"] == "empty_reply")


def test_half_a_reply_that_nobody_mended_is_dropped(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = fakes.FakeSampler.sample

    def cut_off(self: fakes.FakeSampler, *given: Any, **more: Any) -> Any:
        batch = sample(self, *given, **more)
        for [completion] in batch.completions:
            completion.stop_reason = "max_tokens"
        return batch

    monkeypatch.setattr(fakes.FakeSampler, "sample", cut_off)
    rows = rows_of(make_run(tmp_path))
    assert {row["dropped"] for row in rows if row["revised"] is None} == {"truncated_reply"}
    assert all(row["revised"] != row["original"] for row in rows if row["dropped"] is None)


def test_a_stage_that_is_killed_asks_nothing_twice(tmp_path: Path, services: Services) -> None:
    undisturbed = rows_of(make_run(tmp_path / "undisturbed"))
    asked = list(services["judge"].asked)
    services["judge"].asked.clear()
    context = make_run(tmp_path / "run")

    def dies(step: str, number: int) -> None:
        if number in (30, 31):
            raise UnavailableError("gone")

    services["judge"].fails = dies
    for _ in range(2):
        with pytest.raises(UnavailableError):
            revise(context)
    journal = context.stage_folder("revise") / "answers.jsonl"
    with journal.open("a") as lines:
        lines.write('{"asked": ["half a li')  # what a kill leaves
    rows = rows_of(context)
    assert rows == undisturbed
    unanswered = services["judge"].asked[29:31]
    assert services["judge"].asked[:29] + services["judge"].asked[31:] == asked
    assert unanswered == [asked[29]] * 2
    assert len(services["sampler"].requests) == 2, "one for each run"


def test_replies_left_as_they_were_are_learnt_unless_told_otherwise(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path)
    values = revise(context).values
    learnt = list(read_rows(revision_gate(context).path("conversations.jsonl")))
    assert len(learnt) == 24
    assert [turn["role"] for turn in learnt[0]["messages"]] == ["user", "assistant"]
    settings = {**SMALL, "constitutional": {**SMALL["constitutional"], "keep_unchanged": False}, "out": tmp_path}  # type: ignore[dict-item]
    context = create_run(make_settings(settings), ServiceAddresses())
    assert len(list(read_rows(revision_gate(context).path("conversations.jsonl")))) == values["num_revised"]


@pytest.mark.parametrize(
    ("fails", "limits", "sentence"),
    [
        (
            lambda step, number: "empty",
            {},
            "100.0% of 24 replies have no revision, more than 25.0% (critique_empty 24)",
        ),
        (lambda step, number: None, {"min_revisions": 20}, "replies were revised, fewer than the 20 required"),
    ],
)
def test_too_few_revisions_stop_the_run_with_a_reason(
    fails: Any, limits: dict[str, int], sentence: str, tmp_path: Path, services: Services
) -> None:
    services["judge"].fails = fails
    context = make_run(tmp_path, gate=limits)
    revise(context)
    values = revision_gate(context).values
    assert values["passed"] is False
    assert sentence in "; ".join(values["reasons"])
    outcome = read_outcome(tmp_path, since_bytes=0)
    assert (outcome.state, outcome.exit_code, outcome.stage) == ("stopped", 3, "revision_gate")
    [decided] = [payload for event_type, payload in services["events"] if event_type == "gate_decided"]
    assert (decided["passed"], decided["reasons"]) == (False, values["reasons"])


def test_a_gate_that_is_opened_asks_nothing_again(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path, gate={"min_revisions": 24})
    revise(context)
    assert not revision_gate(context).values["passed"]
    num_asked = len(services["judge"].asked)
    context = create_run(make_settings({**SMALL, "out": tmp_path}), ServiceAddresses())
    revise(context)
    assert revision_gate(context).values["passed"]
    assert len(services["judge"].asked) == num_asked


def test_rounds_start_from_what_the_stage_made_of_the_policy(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path, algorithm="grpo", constitutional={"enabled": True})
    tuned = {"version": 9, "uri": "tuned", "digest": "t" * 64}
    context.run_stage("sft", lambda folder: StageOutput(values=tuned), inputs={})
    assert (base_policy(context).version, starting_policy(context, round_number=1).version) == (0, 9)


def test_the_stage_alone_is_evaluated_as_it_is(tmp_path: Path, services: Services) -> None:
    from rlaif_pipelines.stages.baseline import baseline

    context = make_run(tmp_path)
    baseline(context)
    tuned = {"version": 9, "uri": "tuned", "digest": "t" * 64, "stopped_by": None}
    context.run_stage("sft", lambda folder: StageOutput(values=tuned), inputs={})
    services["sampler"].version, services["sampler"].speak = 9, fakes.refuses_harm
    found = json.loads(evaluate(context).path("evaluation.json").read_text())
    assert found["version"] == 9
    assert found["harmful_compliance"]["trained"] < found["harmful_compliance"]["baseline"]
    assert (found["judge_accuracy"], found["label_accuracy"]) == ({}, None)
    assert trained_policy(context, round_number=1).uri == "tuned"


def test_a_graph_with_the_stage_and_settings_without_it_do_not_go_together(tmp_path: Path, services: Services) -> None:
    with pytest.raises(InvalidInputError, match="compile it for these settings"):
        revise(make_run(tmp_path, algorithm="grpo"))


def drawn(constitution: Constitution, *, num_rounds: int, num_seeds: int = 1) -> list[list[str]]:
    return [
        [each.principle_id for each in draw_principles(constitution, category="", num_rounds=num_rounds, seed=seed)]
        for seed in range(num_seeds)
    ]


def test_principles_are_drawn_by_weight_and_none_twice_before_all_have_been() -> None:
    [all_of_them] = drawn(PLAYGROUND, num_rounds=7)
    assert len(set(all_of_them[:5])) == 5
    assert set(all_of_them[5:]) < set(all_of_them[:5])
    first = Counter(each[0] for each in drawn(PLAYGROUND, num_rounds=1, num_seeds=2000))
    total = sum(principle.weight for principle in PLAYGROUND.principles)
    for principle in PLAYGROUND.principles:
        assert first[principle.principle_id] / 2000 == pytest.approx(principle.weight / total, abs=0.04)
    assert drawn(PLAYGROUND, num_rounds=3, num_seeds=5) == drawn(PLAYGROUND, num_rounds=3, num_seeds=5)


def test_a_journal_forgets_half_a_line_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path) as journal:
        journal.answer(["a", 1], lambda: {"text": "one"})
    with path.open("a") as lines:
        lines.write('{"asked": ["b"')
    for _ in range(2):
        with Journal(path) as journal:
            assert journal.answer(["a", 1], lambda: pytest.fail("it is known")) == {"text": "one"}
            assert journal.answer(["b", 1], lambda: {"text": "two"}) == {"text": "two"}
    assert len(path.read_text().splitlines()) == 2
