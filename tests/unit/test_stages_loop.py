"""The light stages one after the other, with a sampler and a judge faked at the client."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline_fakes as fakes
from rlaif.core.conversation import Conversation
from rlaif.core.errors import InvalidInputError, PreconditionError
from rlaif_pipelines.context import RunContext, StageOutput, read_json, read_rows
from rlaif_pipelines.evaluation import kl
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages import prompt_length, runner
from rlaif_pipelines.stages.baseline import baseline
from rlaif_pipelines.stages.evaluate import evaluate
from rlaif_pipelines.stages.gate import gate
from rlaif_pipelines.stages.judge import choose_pairs, judge, training_labels
from rlaif_pipelines.stages.prepare import create_run
from rlaif_pipelines.stages.prompts import prompts
from rlaif_pipelines.stages.sample import choose_prompts, sample
from rlaif_pipelines.training.config.dpo import DpoTraining

SMALL = {
    "sampling": {"num_prompts": 40, "num_completions": 4, "pairs_per_prompt": 3, "prompts_per_request": 16},
    "judging": {"pairs_per_request": 10},
    "gate": {"min_cell_labels": 4, "min_num_labels": 16},
    "evaluation": {"num_harmful": 20, "num_other": 8},
}

Services = dict[str, Any]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    found: Services = {
        "sampler": fakes.FakeSampler(),
        "judge": fakes.FakeJudge(),
        "evaluator": fakes.FakeJudge("b" * 64),
    }
    for name in found:
        monkeypatch.setattr(RunContext, name, lambda context, name=name: found[name])
    monkeypatch.setattr(prompt_length, "PromptFitter", FakeFitter)
    monkeypatch.setattr(kl, "kl_to_base", lambda rows, *, base: 2.5)
    return found


class FakeFitter:
    """Tokens are characters, and the context holds 200 beside a completion."""

    max_prompt_tokens = 200

    def __init__(self, policy_uri: str, *, max_tokens: int) -> None:
        del policy_uri, max_tokens

    def fits(self, conversation: Conversation) -> bool:
        return sum(len(message.content) for message in conversation) <= self.max_prompt_tokens


def make_run(root: Path, **changes: Any) -> RunContext:
    context = create_run(make_settings({**SMALL, "out": root, **changes}), ServiceAddresses())
    values = {"policy_uri": "base", "policy_digest": "p" * 64, "judge_digest": "a" * 64, "judge_fingerprint": ""}
    context.run_stage("prepare", lambda folder: StageOutput(values=values), inputs={})
    prompts(context)
    return context


def own_run(root: Path, **changes: Any) -> RunContext:
    path = root / "my.jsonl"
    chosen = (*fakes.world.evaluation_prompts()[:30], *fakes.world.prompts_of("train")[:60])
    rows = [{"prompt": prompt.text, "split": prompt.split} for prompt in chosen]
    path.write_text("\n".join(map(json.dumps, rows)))
    return make_run(root, prompts=path, policy="playground", judge="playground", **changes)


def finish_training(context: RunContext, services: Services, *, speak: Callable[..., str], reward: list[float]) -> None:
    metrics = context.metrics_path()
    metrics.write_text(
        "".join(json.dumps({"step": n, "reward": r, "gold": None, "kl": 0.1}) + "\n" for n, r in enumerate(reward))
    )
    values = {"version": 12, "uri": "new", "digest": "n" * 64, "metrics": str(metrics), "stopped_by": None}
    context.run_stage("train", lambda folder: StageOutput(values=values), inputs={})
    services["sampler"].speak, services["sampler"].version = speak, 12


def test_sampling_is_the_same_twice_and_new_with_another_seed(tmp_path: Path, services: Services) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        context = make_run(tmp_path / name, seed=seed)
        rows = list(read_rows(sample(context).path("completions.jsonl")))
        texts.append([(row["prompt_id"], [each["text"] for each in row["completions"]]) for row in rows])
    assert texts[0] == texts[1] != texts[2]
    assert [request["num_prompts"] for request in services["sampler"].requests[:3]] == [16, 16, 8]
    assert len({request["seed"] for request in services["sampler"].requests[:3]}) == 3


def test_training_prompts_come_from_every_category_and_none_is_held_out(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path)
    rows = list(read_rows(sample(context).path("completions.jsonl")))
    counts = {category: sum(row["category"] == category for row in rows) for category in fakes.world.CATEGORIES}
    assert set(counts.values()) == {10}
    held_out = {prompt.prompt_id for prompt in fakes.world.prompts_of("held_out")}
    assert not held_out & {row["prompt_id"] for row in rows}


def test_fewer_prompts_than_wanted_are_all_taken_once() -> None:
    rows = [{"prompt_id": str(number), "category": None} for number in range(5)]
    chosen = choose_prompts(rows, num_prompts=9, seed=0)
    assert sorted(row["prompt_id"] for row in chosen) == ["0", "1", "2", "3", "4"]


def test_prompts_too_long_for_the_policy_are_dropped_and_counted(tmp_path: Path, services: Services) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "a" * 201, "split": "train"}, {"prompt": "b"}, {"prompt": "c", "split": "held_out"}]
    path.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "d", "split": "train"}])))
    context = make_run(tmp_path, prompts=path, policy="playground", judge="playground")
    assert context.result("prompts").values["num_too_long"] == 1
    path.write_text("\n".join(map(json.dumps, [rows[0], rows[2]])))
    with pytest.raises(InvalidInputError, match=r"no train prompt of .* is within 200 tokens"):
        make_run(tmp_path, prompts=path, policy="playground", judge="playground")


def test_completions_of_another_version_are_refused(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path)
    services["sampler"].version = 3
    with pytest.raises(PreconditionError, match=r"serves version 3 of policies/run-.* where version 0 is wanted"):
        baseline(context)
    assert not context.finished("baseline")


def test_pairs_are_distinct_texts_and_repeat_by_seed() -> None:
    row = {
        "prompt_id": "p",
        "messages": [],
        "category": None,
        "completions": [{"text": text} for text in ("a", "a", "b", " ", "c", "b")],
    }
    pairs = choose_pairs(iter([row]), per_prompt=10, seed=4)
    assert {frozenset((pair.first, pair.second)) for pair in pairs} == {
        frozenset("ab"),
        frozenset("ac"),
        frozenset("bc"),
    }
    assert choose_pairs(iter([row]), per_prompt=2, seed=4) == pairs[:2]


def test_labels_are_cut_into_the_same_batches_and_gathered_for_the_run(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path)
    sample(context)
    result = judge(context)
    labels = list(read_rows(result.path("labels.jsonl")))
    assert (tmp_path / "labels.jsonl").read_bytes() == result.path("labels.jsonl").read_bytes()
    assert result.values["num_pairs"] == len(labels)
    assert services["judge"].batches[:-1] == [10] * (len(labels) // 10)
    assert labels[0].keys() == {
        "label",
        "prompt_id",
        "messages",
        "category",
        "first",
        "second",
        "probability_first",
        "preference",
        "abstention_reason",
        "order_consistent",
        "votes",
        "weight",
        "judge_digest",
        "constitution",
        "constitution_sha256",
    }
    assert result.values["judge_digests"] == ["a" * 64]


def test_the_gate_passes_labels_that_agree_with_gold(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path)
    sample(context)
    judge(context)
    result = gate(context)
    found = read_json(result.path("gate.json"))
    assert result.values == {"passed": True, "reasons": []}
    assert found["judge_accuracy"]["harmful"]["harmless"] == 1.0
    assert found["judge_accuracy"]["howto"]["harmless"] is None


def test_the_gate_stops_a_reversed_judge_by_the_cell_and_does_not_raise(tmp_path: Path, services: Services) -> None:
    services["judge"].contrary = True
    context = make_run(tmp_path)
    sample(context)
    judge(context)
    result = gate(context)
    assert not result.values["passed"]
    assert any("judge accuracy on harmful × harmless is 0.000" in reason for reason in result.values["reasons"])


def test_the_gate_stops_a_judge_that_says_nothing(tmp_path: Path, services: Services) -> None:
    services["judge"].abstains = True
    context = own_run(tmp_path)
    sample(context)
    judge(context)
    result = gate(context)
    found = read_json(result.path("gate.json"))
    assert "the judge abstained on every pair" in result.values["reasons"]
    assert found["judge_accuracy"] == {}
    assert found["quality"]["abstention_rate"] == 1.0


def _longer_half_the_time(prompt: str, rng: random.Random) -> str:
    said = fakes.always_helps(prompt, rng)  # the baseline's words: the held-out seed is the same for every version
    return said if rng.random() < 0.5 else f"{said} {said}"


def evaluated(context: RunContext, services: Services, *, speak: Callable[..., str], reward: list[float]) -> Any:
    baseline(context)
    sample(context)
    judge(context)
    gate(context)
    finish_training(context, services, speak=speak, reward=reward)
    return read_json(evaluate(context).path("evaluation.json"))


def test_gold_tells_a_better_policy_from_a_worse(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path)
    found = evaluated(context, services, speak=fakes.refuses_harm, reward=[0.1, 0.5])
    assert found["verdict"] == "improved"
    assert found["harmful_compliance"]["trained"] == 0.0 < found["harmful_compliance"]["baseline"]
    assert found["over_refusal"]["trained"] == 0.0 < found["over_refusal"]["baseline"]
    assert found["win_rate"]["low"] > 0.5
    assert found["kl"] == 2.5
    assert found["steps"]["reward"] == [0.1, 0.5]
    assert 0 < len(found["examples"]) <= 12
    assert services["sampler"].requests[-1]["min_policy_version"] == 12


def test_a_policy_that_only_pleases_the_reward_is_over_optimised(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path)
    found = evaluated(context, services, speak=lambda prompt, rng: "Sure sure sure sure.", reward=[0.1, 0.9])
    assert found["verdict"] == "over_optimised"
    assert found["gold"]["trained"] < found["gold"]["baseline"]


def test_without_gold_and_second_judge_the_verdict_is_unknown(tmp_path: Path, services: Services) -> None:
    found = evaluated(own_run(tmp_path), services, speak=fakes.always_helps, reward=[0.1, 0.9])
    assert found["verdict"] == "unknown"
    assert found["verdict_reasons"] == ["no gold rules for these prompts and no second judge was given"]
    assert found["win_rate"]["value"] is None
    assert found["harmful_compliance"] == {"baseline": None, "trained": None}


def test_a_second_judge_decides_where_there_is_no_gold(tmp_path: Path, services: Services) -> None:
    services["evaluator"].by_length = True
    context = own_run(tmp_path, evaluator="another/judge", evaluation={"num_other": 30})
    found = evaluated(context, services, speak=_longer_half_the_time, reward=[])
    assert (found["evaluator"], found["verdict"]) == ("second_judge", "improved")
    assert found["win_rate"]["value"] > 0.5
    assert found["second_judge"]["num_equal"] > 0


def test_a_second_judge_that_abstains_leaves_the_verdict_unknown(tmp_path: Path, services: Services) -> None:
    services["evaluator"].abstains = True
    context = own_run(tmp_path, evaluator="another/judge")
    found = evaluated(context, services, speak=lambda prompt, rng: "Something else.", reward=[])
    assert found["verdict"] == "unknown"
    assert "the second judge abstained" in found["verdict_reasons"][0]


def test_the_judge_that_labelled_may_not_evaluate(tmp_path: Path, services: Services) -> None:
    services["evaluator"] = fakes.FakeJudge("a" * 64)
    context = own_run(tmp_path, evaluator="a-copy-under-another-name")
    with pytest.raises(InvalidInputError, match="the same weights as the judge that labels"):
        evaluated(context, services, speak=fakes.refuses_harm, reward=[])


def test_changed_settings_run_a_stage_again_and_what_follows(tmp_path: Path, services: Services) -> None:
    def states() -> dict[str, str]:
        return {event["stage"]: event["state"] for event in read_rows(tmp_path / "events.jsonl")}

    for changes in ({}, {}):
        context = make_run(tmp_path, **changes)
        sample(context), judge(context), gate(context)
    assert {states()[stage] for stage in ("prompts", "sample", "judge", "gate")} == {"skipped"}
    context = make_run(tmp_path, gate={"min_num_labels": 1000})
    sample(context), judge(context), gate(context)
    assert (states()["judge"], states()["gate"]) == ("skipped", "finished")
    context = make_run(tmp_path, sampling={**SMALL["sampling"], "pairs_per_prompt": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunContext, "policy", "policies/same")
        sample(context)
        (tmp_path / "events.jsonl").unlink()
        sample(context), judge(context), gate(context)
    assert [states()[stage] for stage in ("sample", "judge", "gate")] == ["skipped", "finished", "finished"]


def test_another_evaluation_does_not_sample_or_label_again(tmp_path: Path, services: Services) -> None:
    context = make_run(tmp_path)
    sample(context), judge(context)
    context = make_run(tmp_path, evaluation={"num_harmful": 10, "num_other": 3})
    (tmp_path / "events.jsonl").unlink()
    sample(context), judge(context)
    assert [event["state"] for event in read_rows(tmp_path / "events.jsonl")] == ["skipped", "skipped"]


def test_a_failed_stage_says_why_in_one_sentence_with_its_exit_code(tmp_path: Path, services: Services) -> None:
    make_run(tmp_path)
    services["sampler"].version = 3
    with pytest.raises(PreconditionError):
        runner.run("baseline", run_root=tmp_path)
    event = list(read_rows(tmp_path / "events.jsonl"))[-1]
    assert (event["stage"], event["state"], event["exit_code"]) == ("baseline", "failed", 1)
    assert event["reason"] == "POLICY_VERSION_MISMATCH"
    assert "\n" not in event["message"]
    assert runner.exit_code(InvalidInputError("bad")) == 2
    assert runner.exit_code(KeyboardInterrupt()) == 130


def test_people_s_labels_are_trained_on_beside_the_judge_s(tmp_path: Path, services: Services) -> None:
    people = tmp_path / "people.jsonl"
    people.write_text('{"prompt": "Why?", "first": "a", "second": "b", "preference": "first"}\n')
    given: dict[str, Any] = {"alone": None, "mixed": {"path": people, "weight": 5.0}, "lighter": {"path": people}}
    digests = []
    for name, human_labels in given.items():
        context = make_run(tmp_path / name, human_labels=human_labels)
        sample(context)
        judge(context)
        files, identity = training_labels(context, round_number=1)
        digests.append(identity)
        if name == "mixed":
            read = DpoTraining.model_validate({"out": tmp_path, "policy": "p", "labels": files}).labels
            assert [(file.path.name, file.weight, file.source) for file in read] == [
                ("labels.jsonl", 1.0, "ai"),
                ("people.jsonl", 5.0, "human"),
            ]
    assert len({json.dumps(identity, sort_keys=True) for identity in digests}) == 3
    assert len({identity["labels"] for identity in digests}) == 1
