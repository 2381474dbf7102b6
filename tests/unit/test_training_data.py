"""Prompts into batches: what is read, and that order is a function of seed and position."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.training import data
from training_fakes import prompt, write_lines


def test_held_out_prompts_are_never_sampled(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", [prompt(0), prompt(1, split="held_out"), prompt(2)])
    assert [found.prompt_id for found in data.read_prompts(path)] == ["prompt-0", "prompt-2"]
    with pytest.raises(InvalidInputError, match="no prompt is of the train split"):
        data.read_prompts(write_lines(tmp_path / "other.jsonl", [prompt(1, split="held_out")]))


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
