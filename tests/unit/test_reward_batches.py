"""How sequences are put into batches by their lengths."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")

from rlaif.engine.reward_model import plan_batches


def plan(lengths: list[int], *, max_tokens: int, max_padding: int | None = None) -> list[list[int]]:
    return list(plan_batches(lengths, max_tokens=max_tokens, max_padding=max_padding))


def test_batches_are_filled_longest_first_and_a_longer_sequence_runs_alone():
    assert plan([3, 9, 4, 30, 4, 1], max_tokens=12) == [[3], [1], [2, 4, 0], [5]]


def test_a_batch_ends_where_its_padding_would_cost_more_than_a_pass():
    assert plan([10, 10, 9, 2, 2], max_tokens=100) == [[0, 1, 2, 3, 4]]
    assert plan([10, 10, 9, 2, 2], max_tokens=100, max_padding=7) == [[0, 1, 2], [3, 4]]
    assert plan([10, 10, 9, 2, 2], max_tokens=100, max_padding=0) == [[0, 1], [2], [3, 4]]


def test_nothing_is_lost_and_no_limit_is_passed():
    lengths = [random.Random(seed).randint(1, 60) for seed in range(300)]
    for max_padding in (None, 0, 32):
        batches = plan(lengths, max_tokens=128, max_padding=max_padding)
        assert sorted(index for batch in batches for index in batch) == list(range(300))
        for batch in batches:
            longest = max(lengths[index] for index in batch)
            assert len(batch) * longest <= 128
            if max_padding is not None:
                assert sum(longest - lengths[index] for index in batch) <= max_padding


def test_no_sequences_are_no_batches():
    assert plan([], max_tokens=8) == []
