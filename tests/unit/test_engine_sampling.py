"""Drawing tokens: streams, inverse CDF and nucleus on numbers checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlaif.engine.sampling import Sampler, uniforms

# Softmax of these logits is (0.1, 0.2, 0.3, 0.4); cumulative 0.1, 0.3, 0.6, 1.0.
LOGITS = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()

# numpy.random.Philox(key=[7, 1], counter=[0, 0, 0, 2]): a change here changes every run's samples.
EXPECTED = [0.8638379201698526, 0.32385329399264173, 0.33695417254718163, 0.3278209642494859, 0.32271545229296594]


def draw(uniform: float, *, temperature: float = 1.0, top_p: float = 1.0) -> tuple[int, float]:
    sampler = Sampler(torch.tensor([temperature]), torch.tensor([top_p], dtype=torch.float64))
    tokens, logprobs = sampler.draw(LOGITS, torch.tensor([uniform], dtype=torch.float64))
    return int(tokens[0]), float(logprobs[0])


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.2999, 1), (0.3001, 2), (0.6001, 3), (0.9999, 3)]
)
def test_the_uniform_picks_the_token_by_cumulative_probability(uniform: float, token: int) -> None:
    assert draw(uniform) == (token, pytest.approx(math.log((token + 1) / 10), abs=1e-6))


def test_temperature_sharpens_and_its_logprobs_are_reported() -> None:
    # At 0.5 the probabilities are squared and normalised: (1, 4, 9, 16) / 30.
    assert draw(0.03, temperature=0.5) == (0, pytest.approx(math.log(1 / 30), abs=1e-6))
    assert draw(0.16, temperature=0.5) == (1, pytest.approx(math.log(4 / 30), abs=1e-6))


def test_temperature_zero_is_greedy_and_reports_logprobs_at_one() -> None:
    assert draw(0.0, temperature=0.0) == (3, pytest.approx(math.log(0.4), abs=1e-6))


def test_the_nucleus_is_cut_and_logprobs_are_those_before_the_cut() -> None:
    # 0.4 + 0.3 reach 0.65: tokens 2 and 3 remain, with 3/7 and 4/7.
    assert draw(0.42, top_p=0.65) == (2, pytest.approx(math.log(0.3), abs=1e-6))
    assert draw(0.44, top_p=0.65) == (3, pytest.approx(math.log(0.4), abs=1e-6))
    # 0.4 alone reaches 0.4.
    assert draw(0.0, top_p=0.39)[0] == 3


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    sampler = Sampler(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))
    for uniform in (0.0, 0.5, math.nextafter(0.5, 0), math.nextafter(1.0, 0)):
        tokens, _ = sampler.draw(logits, torch.tensor([uniform], dtype=torch.float64))
        assert int(tokens[0]) in (1, 3)


def test_rows_with_different_parameters_do_not_meet() -> None:
    sampler = Sampler(torch.tensor([1.0, 0.0, 0.5, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.39], dtype=torch.float64))
    tokens, logprobs = sampler.draw(LOGITS.expand(4, 4), torch.tensor([0.05, 0.05, 0.05, 0.05], dtype=torch.float64))
    assert tokens.tolist() == [0, 3, 1, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.1, 0.4, 4 / 30, 0.4])
    rows, _ = sampler.select(torch.tensor([2, 3])).draw(LOGITS.expand(2, 4), torch.tensor([0.05, 0.05]).double())
    assert rows.tolist() == [1, 3]


def test_streams_are_repeatable_apart_and_prefixes_of_themselves() -> None:
    first = uniforms(7, stream=1, completion=2, count=5)
    assert np.array_equal(first, uniforms(7, stream=1, completion=2, count=9)[:5])
    others = [
        uniforms(8, stream=1, completion=2, count=5),
        uniforms(7, stream=2, completion=2, count=5),
        uniforms(7, stream=1, completion=3, count=5),
        uniforms(2**64 - 1, stream=2**64 - 1, completion=0, count=5),
    ]
    assert len({tuple(values) for values in (first, *others)}) == 5
    assert first.tolist() == pytest.approx(EXPECTED, abs=0)
