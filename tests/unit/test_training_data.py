"""Labels and prompts into batches: what is read, what is refused, and that order is a function of seed and position."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.training import data
from training_fakes import label, prompt, write_lines


def test_abstentions_and_weightless_labels_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [label(0), label(1, probability_first=None), label(2, weight=0), label(3, weight=2.5)]
    labels = data.read_labels(write_lines(tmp_path / "labels.jsonl", rows))
    assert (len(labels.pairs), labels.num_abstained, labels.num_weightless) == (2, 1, 1)
    assert [pair.weight for pair in labels.pairs] == [1.0, 2.5]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"probability_first": 1.2}, "line 2: probability_first is 1.2, not in [0, 1]"),
        ({"probability_first": float("nan")}, "line 2: probability_first is nan, not in [0, 1]"),
        ({"probability_first": True}, "line 2: probability_first is True, not in [0, 1]"),
        ({"weight": -1}, "line 2: weight is -1, not a number from 0 up"),
        ({"weight": float("inf")}, "line 2: weight is inf, not a number from 0 up"),
        (
            {"votes": [{"principle_id": "brief", "probability_first": 2}]},
            "line 2: votes holds {'principle_id': 'brief', 'probability_first': 2}, not a principle's probability",
        ),
        ({"first": None}, "line 2: first must be text"),
        ({"messages": []}, "line 2: messages: a conversation needs at least one user turn"),
        ({"messages": "hi"}, "line 2: messages must be a list of turns"),
    ],
)
def test_a_wrong_label_is_named_by_its_line(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "labels.jsonl", [label(0), label(1, **changes)])
    with pytest.raises(InvalidInputError) as caught:
        data.read_labels(path)
    assert str(caught.value) == f"{path}, {sentence}"


def test_a_principle_that_abstained_has_no_vote(tmp_path: Path) -> None:
    votes = [
        {"principle_id": "polite", "probability_first": 0.7, "weight": 1.0},
        {"principle_id": "brief", "probability_first": None, "weight": 1.0},
    ]
    rows = [label(0), label(1, votes=votes)]
    labels = data.read_labels(write_lines(tmp_path / "labels.jsonl", rows))
    assert [dict(pair.votes) for pair in labels.pairs] == [{}, {"polite": 0.7}]
    assert labels.principles == ("polite",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"{\n", "line 1: not JSON"), (b"\xff\xfe\n", "line 1: not UTF-8"), (b"[1]\n", "line 1: not a JSON object")],
)
def test_a_line_that_is_no_label_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=sentence):
        data.read_labels(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read .*gone\.jsonl: No such file or directory"):
        data.read_labels(tmp_path / "gone.jsonl")


def test_labels_that_all_abstained_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "labels.jsonl", [label(0, probability_first=None), label(1, weight=0)])
    with pytest.raises(
        InvalidInputError, match=r"none of the 2 labels can be trained on \(1 abstained, 1 weigh nothing"
    ):
        data.read_labels(path)


def test_held_out_prompts_are_never_sampled(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", [prompt(0), prompt(1, split="held_out"), prompt(2)])
    assert [found.prompt_id for found in data.read_prompts(path)] == ["prompt-0", "prompt-2"]
    with pytest.raises(InvalidInputError, match="no prompt is of the train split"):
        data.read_prompts(write_lines(tmp_path / "other.jsonl", [prompt(1, split="held_out")]))


def test_all_pairs_of_a_prompt_fall_on_one_side(tmp_path: Path) -> None:
    pairs = data.read_labels(write_lines(tmp_path / "labels.jsonl", [label(n) for n in range(200)])).pairs
    train, held_out = data.split_by_prompt(pairs, held_out_fraction=0.3, seed=1)
    assert train
    assert held_out
    assert not {pair.prompt_id for pair in train} & {pair.prompt_id for pair in held_out}
    assert data.split_by_prompt(pairs, held_out_fraction=0.0, seed=1) == (list(pairs), [])
    one = [pair for pair in pairs if pair.prompt_id == held_out[0].prompt_id]
    assert data.split_by_prompt(one, held_out_fraction=0.3, seed=1) == (one, [])


def test_every_epoch_shows_every_pair_once_in_an_order_of_its_own() -> None:
    orders = [data.epoch_order(50, seed=3, epoch=epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))


def read_prompts(path: Path, *, num_facts: int, num_howtos: int) -> tuple[data.TrainingPrompt, ...]:
    rows = [prompt(2 * n) for n in range(num_facts)] + [prompt(2 * n + 1) for n in range(num_howtos)]
    return data.read_prompts(write_lines(path, rows))


def test_each_step_draws_the_categories_evenly_and_each_prompt_once_a_round(tmp_path: Path) -> None:
    prompts = read_prompts(tmp_path / "prompts.jsonl", num_facts=12, num_howtos=4)
    drawn = [data.StratifiedPrompts(prompts, seed=0).draw(step, num_prompts=8) for step in range(3)]
    for step in drawn:
        assert Counter(found.category for found in step) == {"fact": 4, "howto": 4}
    facts = [found.prompt_id for step in drawn for found in step if found.category == "fact"]
    assert len(set(facts)) == 12
    for step in drawn:
        assert len({found.prompt_id for found in step if found.category == "howto"}) == 4


def test_what_a_step_draws_depends_on_the_seed_and_the_step_alone(tmp_path: Path) -> None:
    prompts = read_prompts(tmp_path / "prompts.jsonl", num_facts=9, num_howtos=7)
    walked = data.StratifiedPrompts(prompts, seed=0)
    walk = [walked.draw(step, num_prompts=5) for step in range(6)]
    assert data.StratifiedPrompts(prompts, seed=0).draw(5, num_prompts=5) == walk[5]
    assert data.StratifiedPrompts(prompts, seed=1).draw(5, num_prompts=5) != walk[5]
    assert data.sampling_seed(0, step=5) == data.sampling_seed(0, step=5) != data.sampling_seed(0, step=6)
    assert 0 <= data.sampling_seed(7, step=2) < 2**63


def test_micro_batches_hold_every_sequence_once_within_the_budget() -> None:
    lengths = [5, 17, 33, 2, 16, 80, 31]
    groups = data.plan_micro_batches(lengths, max_tokens=64)
    assert sorted(position for group in groups for position in group) == list(range(7))
    for group in groups:
        padded = len(group) * max(data.padded_length(lengths[position]) for position in group)
        assert padded <= 64 or len(group) == 1
    assert groups[0] == [5]


@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_every_process_gets_as_many_micro_batches(num_processes: int) -> None:
    groups = data.plan_micro_batches([10] * 9, max_tokens=64, num_processes=num_processes)
    assert len(groups) % num_processes == 0
    assert all(groups)
    assert sorted(position for group in groups for position in group) == list(range(9))


def test_fewer_sequences_than_processes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="1 sequences cannot be spread over 2 processes"):
        data.plan_micro_batches([10], max_tokens=64, num_processes=2)


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = data.pad([[7, 8], [9]], pad_id=0)
    assert ids.shape == (2, data.LENGTH_STEP)
    assert ids[:, :3].tolist() == [[7, 8, 0], [9, 0, 0]]
    assert mask.sum(dim=1).tolist() == [2, 1]


def test_labels_survive_their_file(tmp_path: Path) -> None:
    row = label(4, first="zwei\nZeilen „ü“")
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert data.read_labels(path).pairs[0].first == "zwei\nZeilen „ü“"
