"""Every loss against numbers worked out by hand, and against autograd where there is nothing to work out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlaif_pipelines.training import losses
from rlaif_pipelines.training.config.rl import AdvantageKind, Aggregation
from tensor_sizes import LargestTensor

LOG_2 = math.log(2.0)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def test_token_logprobs_of_a_known_distribution() -> None:
    # Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8.
    weight_VD = torch.tensor([[0.0], [LOG_2], [math.log(5.0)]])
    logprobs_N, entropy_N = losses.token_logprobs(torch.ones(2, 1), weight_VD=weight_VD, targets_N=torch.tensor([0, 2]))
    assert logprobs_N.tolist() == pytest.approx([math.log(1 / 8), math.log(5 / 8)])
    entropy = -(1 / 8) * math.log(1 / 8) - (2 / 8) * math.log(2 / 8) - (5 / 8) * math.log(5 / 8)
    assert entropy_N.tolist() == pytest.approx([entropy, entropy])


def test_token_logprobs_at_another_temperature_are_of_the_tempered_distribution() -> None:
    weight_VD = torch.tensor([[0.0], [math.log(4.0)]])  # at temperature 2: log 1, log 2
    logprobs_N, _ = losses.token_logprobs(
        torch.ones(1, 1), weight_VD=weight_VD, targets_N=torch.tensor([1]), temperature=2.0
    )
    assert logprobs_N.item() == pytest.approx(math.log(2 / 3))


@pytest.mark.parametrize("chunk_logits", [1, 4 * 17, 2**24])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_gradients_do_not_depend_on_the_chunks(chunk_logits: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(11, 5, generator=generator, requires_grad=True)
    weight_VD = torch.randn(17, 5, generator=generator, requires_grad=True)
    targets_N = torch.randint(17, (11,), generator=generator)
    upstream_N = torch.randn(11, generator=generator)

    plain_N = torch.log_softmax(hidden_ND @ weight_VD.T / temperature, dim=-1).gather(1, targets_N[:, None]).squeeze(1)
    expected = torch.autograd.grad((plain_N * upstream_N).sum(), (hidden_ND, weight_VD))
    chunked_N, _ = losses.token_logprobs(
        hidden_ND, weight_VD=weight_VD, targets_N=targets_N, temperature=temperature, chunk_logits=chunk_logits
    )
    found = torch.autograd.grad((chunked_N * upstream_N).sum(), (hidden_ND, weight_VD))

    torch.testing.assert_close(chunked_N, plain_N)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_token_logprobs_make_no_matrix_of_all_tokens_by_the_vocabulary() -> None:
    hidden_ND = torch.randn(256, 4, requires_grad=True)
    weight_VD = torch.randn(1024, 4, requires_grad=True)
    with LargestTensor() as largest:
        logprobs_N, _ = losses.token_logprobs(
            hidden_ND, weight_VD=weight_VD, targets_N=torch.zeros(256, dtype=torch.long), chunk_logits=16 * 1024
        )
        logprobs_N.sum().backward()
    assert largest.num_elements == 16 * 1024


def test_sft_loss_is_the_mean_over_tokens_and_not_over_conversations() -> None:
    logprobs = tensor(-1.0, -2.0, -3.0, -6.0)  # three tokens of one conversation, one of another
    assert losses.sft_loss(logprobs, weights_N=torch.ones_like(logprobs)).item() == pytest.approx(3.0)
    weighted = losses.sft_loss(logprobs, weights_N=tensor(1.0, 1.0, 1.0, 3.0))
    assert weighted.item() == pytest.approx((1 + 2 + 3 + 3 * 6) / 6)


def test_bradley_terry_with_a_soft_label() -> None:
    # Δ = 1: logσ(1) = −0.3132617, logσ(−1) = −1.3132617; 0.8·0.3132617 + 0.2·1.3132617 = 0.5132617.
    loss = losses.soft_bradley_terry_loss(
        tensor(1.5), rewards_second_P=tensor(0.5), probability_first_P=tensor(0.8), weights_P=tensor(1.0)
    )
    assert loss.item() == pytest.approx(0.5132617, abs=1e-6)


def test_bradley_terry_weights_and_centring() -> None:
    # Pair 1: Δ = 0, ln 2; pair 2: Δ = 0, ln 2; centring 0.1·(2+2)² = 1.6 and 0.1·(1+1)² = 0.4, weighted 3 to 1: 1.3.
    loss = losses.soft_bradley_terry_loss(
        tensor(2.0, 1.0),
        rewards_second_P=tensor(2.0, 1.0),
        probability_first_P=tensor(1.0, 0.0),
        weights_P=tensor(3.0, 1.0),
        centring=0.1,
    )
    assert loss.item() == pytest.approx(LOG_2 + 1.3)


def test_a_pair_of_weight_zero_moves_nothing() -> None:
    rewards_first_P = tensor(1.0, 5.0).requires_grad_()
    losses.soft_bradley_terry_loss(
        rewards_first_P,
        rewards_second_P=tensor(0.0, 0.0),
        probability_first_P=tensor(1.0, 0.0),
        weights_P=tensor(1.0, 0.0),
    ).backward()
    assert rewards_first_P.grad is not None
    assert rewards_first_P.grad.tolist() == pytest.approx([sigmoid(1.0) - 1.0, 0.0])


def test_the_soft_label_is_the_minimum_of_bradley_terry() -> None:
    delta = tensor(math.log(0.8 / 0.2)).requires_grad_()
    losses.soft_bradley_terry_loss(
        delta, rewards_second_P=tensor(0.0), probability_first_P=tensor(0.8), weights_P=tensor(1.0)
    ).backward()
    assert delta.grad is not None
    assert delta.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_a_margin_is_asked_of_the_preferred_response() -> None:
    # Δ = 1. First preferred, margin ½: −logσ(½) = 0.4740770. Second preferred, margin −½: −logσ(−1.5) = 1.7014133.
    for probability, margin, expected in ((1.0, 0.5, 0.4740770), (0.0, -0.5, 1.7014133)):
        loss = losses.soft_bradley_terry_loss(
            tensor(1.5),
            rewards_second_P=tensor(0.5),
            probability_first_P=tensor(probability),
            weights_P=tensor(1.0),
            margins_P=tensor(margin),
        )
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_margin_moves_the_best_difference_by_itself() -> None:
    delta = tensor(math.log(0.8 / 0.2) + 0.3).requires_grad_()
    losses.soft_bradley_terry_loss(
        delta,
        rewards_second_P=tensor(0.0),
        probability_first_P=tensor(0.8),
        weights_P=tensor(1.0),
        margins_P=tensor(0.3),
    ).backward()
    assert delta.grad is not None
    assert delta.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_each_principle_counts_where_it_voted() -> None:
    # Pair 1: Δ = 1 with 0.8: 0.5132617 (above); Δ = 0: ln 2. Pair 2, of weight 3: Δ = 0: ln 2; no vote.
    values_first_PK = torch.tensor([[1.5, 2.0], [1.0, 9.0]], dtype=torch.float64).requires_grad_()
    loss = losses.principle_loss(
        values_first_PK,
        values_second_PK=torch.tensor([[0.5, 2.0], [1.0, 0.0]], dtype=torch.float64),
        votes_PK=torch.tensor([[0.8, 0.3], [1.0, math.nan]], dtype=torch.float64),
        weights_P=tensor(1.0, 3.0),
    )
    assert loss.item() == pytest.approx((0.5132617 + LOG_2 + 3 * LOG_2) / 5, abs=1e-6)
    loss.backward()
    assert values_first_PK.grad is not None
    assert values_first_PK.grad[1, 1].item() == 0.0


def test_without_any_vote_there_is_nothing_to_learn_from_principles() -> None:
    zeros_PK = torch.zeros(1, 2)
    loss = losses.principle_loss(
        zeros_PK, values_second_PK=zeros_PK, votes_PK=torch.full((1, 2), math.nan), weights_P=torch.ones(1)
    )
    assert loss.item() == 0.0


def dpo(probability: float) -> float:
    return losses.dpo_loss(
        tensor(-10.0),
        logprobs_second_P=tensor(-14.0),
        reference_first_P=tensor(-12.0),
        reference_second_P=tensor(-11.0),
        probability_first_P=tensor(probability),
        weights_P=tensor(1.0),
        beta=0.1,
    ).item()


def test_dpo_of_one_pair() -> None:
    # 0.1·((−10 + 12) − (−14 + 11)) = 0.5; −logσ(0.5) = 0.4740770.
    assert dpo(1.0) == pytest.approx(0.4740770, abs=1e-6)


def test_a_soft_label_makes_dpo_conservative() -> None:
    # 0.9·0.4740770 + 0.1·0.9740770.
    assert dpo(0.9) == pytest.approx(0.5240770, abs=1e-6)
    assert dpo(0.0) == pytest.approx(0.9740770, abs=1e-6)


PAIR = {
    "logprobs_second_P": tensor(-14.0),
    "reference_first_P": tensor(-12.0),
    "reference_second_P": tensor(-11.0),
    "weights_P": tensor(1.0),
}
"""With −10 for the first: log-ratios 2 and −3, 5 apart."""


@pytest.mark.parametrize(
    ("probability", "expected"),
    # β·5 = 0.5: 1 − 0.5; 0.9·0.5 + 0.1·1.5; 1 + 0.5.
    [(1.0, 0.5), (0.9, 0.6), (0.0, 1.5)],
)
def test_hinge_of_one_pair(probability: float, expected: float) -> None:
    loss = losses.hinge_loss(tensor(-10.0), probability_first_P=tensor(probability), beta=0.1, **PAIR)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("probability", "beta", "expected"),
    # 1/2β = 5 is just reached: 0; 0.9·0 + 0.1·10²; 10². With 1/2β = 1: (5 − 1)².
    [(1.0, 0.1, 0.0), (0.9, 0.1, 10.0), (0.0, 0.1, 100.0), (1.0, 0.5, 16.0)],
)
def test_ipo_of_one_pair(probability: float, beta: float, expected: float) -> None:
    loss = losses.ipo_loss(tensor(-10.0), probability_first_P=tensor(probability), beta=beta, **PAIR)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_the_best_log_ratio_of_ipo_is_finite_and_follows_the_label() -> None:
    # (2·0.75 − 1) / (2·0.5) = 0.5.
    zero = tensor(0.0)
    first = tensor(0.5).requires_grad_()
    losses.ipo_loss(
        first,
        logprobs_second_P=zero,
        reference_first_P=zero,
        reference_second_P=zero,
        probability_first_P=tensor(0.75),
        weights_P=tensor(1.0),
        beta=0.5,
    ).backward()
    assert first.grad is not None
    assert first.grad.item() == pytest.approx(0.0, abs=1e-12)


def simpo(first: float, second: float, probability: float) -> float:
    return losses.simpo_loss(
        tensor(first),
        logprobs_second_P=tensor(second),
        probability_first_P=tensor(probability),
        weights_P=tensor(1.0),
        beta=2.0,
        target_margin=0.5,
    ).item()


def test_simpo_of_one_pair() -> None:
    # 2·(−1 + 1.5) − 0.5 = 0.5: 0.4740770; a soft label of 0.75 asks for 0.25: −logσ(0.75) + 0.25·0.75; a tie for none:
    # −logσ(1) + 0.5·1.
    assert simpo(-1.0, -1.5, 1.0) == pytest.approx(0.4740770, abs=1e-6)
    assert simpo(-1.0, -1.5, 0.75) == pytest.approx(0.3868709 + 0.1875, abs=1e-6)
    assert simpo(-1.0, -1.5, 0.5) == pytest.approx(0.3132617 + 0.5, abs=1e-6)


def test_which_response_is_called_first_does_not_matter_to_simpo() -> None:
    assert simpo(-1.0, -1.5, 0.7) == pytest.approx(simpo(-1.5, -1.0, 0.3))


def test_the_preferred_response_teaches_as_much_as_the_label_is_sure() -> None:
    # Weights 1, 1, 1, 3: (1·1 + 1·3 + ½·1 + 3·0) / 6.
    loss = losses.preferred_nll(
        tensor(-1.0, -1.0, -1.0, -1.0),
        logprobs_second_P=tensor(-3.0, -3.0, -3.0, -3.0),
        probability_first_P=tensor(1.0, 0.0, 0.75, 0.5),
        weights_P=tensor(1.0, 1.0, 1.0, 3.0),
    )
    assert loss.item() == pytest.approx(4.5 / 6)


def test_advantages_of_one_group() -> None:
    # Rewards 1, 2, 3: mean 2, unbiased sd 1.
    found = losses.group_advantages(torch.tensor([[1.0, 2.0, 3.0]]), quorum=2)
    assert found.advantages_QG.tolist()[0] == pytest.approx([-1 / 1.0001, 0.0, 1 / 1.0001])
    assert found.used_QG.all()


@pytest.mark.parametrize(
    ("kind", "expected"),
    # Rewards 1, 2, 6 and 0, 4: means 3 and 2; what is left: −2, −1, 3 and −2, 2.
    [
        ("dr_grpo", [[-2.0, -1.0, 3.0], [-2.0, 2.0, 0.0]]),
        # Less the mean of the others: 1 − 4, 2 − 3.5, 6 − 1.5; 0 − 4, 4 − 0.
        ("rloo", [[-3.0, -1.5, 4.5], [-4.0, 4.0, 0.0]]),
        # The squares sum to 22, over 5 − 1: the sd is √5.5.
        (
            "reinforce_plus_plus",
            [[-2 / 5.5**0.5, -1 / 5.5**0.5, 3 / 5.5**0.5], [-2 / 5.5**0.5, 2 / 5.5**0.5, 0.0]],
        ),
    ],
)
def test_other_advantages_of_two_groups(kind: AdvantageKind, expected: list[list[float]]) -> None:
    rewards_QG = torch.tensor([[1.0, 2.0, 6.0], [0.0, 4.0, math.nan]], dtype=torch.float64)
    found = losses.group_advantages(rewards_QG, quorum=2, kind=kind, epsilon=0.0)
    assert found.advantages_QG.flatten().tolist() == pytest.approx([value for row in expected for value in row])


def test_a_dropped_group_is_no_part_of_the_batch_s_sd() -> None:
    rewards_QG = torch.tensor([[1.0, 3.0], [7.0, math.nan]], dtype=torch.float64)
    found = losses.group_advantages(rewards_QG, quorum=2, kind="reinforce_plus_plus", epsilon=0.0)
    # −1 and 1 over √2, the sd of these two.
    assert found.advantages_QG.tolist() == [pytest.approx([-(0.5**0.5), 0.5**0.5]), [0.0, 0.0]]


def test_differences_below_epsilon_count_in_part():
    # sd 1, epsilon 1: half of what they count in full.
    found = losses.group_advantages(torch.tensor([[1.0, 2.0, 3.0]]), quorum=2, epsilon=1.0)
    assert found.advantages_QG.tolist() == [[-0.5, 0.0, 0.5]]


def test_a_missing_reward_is_left_out_and_not_zero() -> None:
    found = losses.group_advantages(torch.tensor([[1.0, 3.0, float("nan")]]), quorum=2)
    # Mean 2, sd √2 over the two that are there.
    root = math.sqrt(2.0) + 1e-4
    assert found.advantages_QG.tolist()[0] == pytest.approx([-1 / root, 1 / root, 0.0])
    assert found.used_QG.tolist() == [[True, True, False]]
    assert found.num_missing_rewards == 1


def test_groups_below_quorum_and_groups_without_variance_are_dropped() -> None:
    nan = float("nan")
    found = losses.group_advantages(
        torch.tensor([[1.0, 2.0, nan, nan], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 1.0, 1.0], [nan, nan, nan, nan]]), quorum=3
    )
    assert found.used_QG.any(dim=1).tolist() == [False, False, True, False]
    assert (found.num_groups_below_quorum, found.num_groups_without_variance, found.num_missing_rewards) == (2, 1, 6)
    assert not found.advantages_QG.isnan().any()


@pytest.mark.parametrize(
    ("estimator", "expected"),
    # Policy ½, reference ¼: log r = −ln 2, r = ½.
    [("k1", LOG_2), ("k2", LOG_2**2 / 2), ("k3", -0.5 + LOG_2)],
)
def test_kl_estimators(estimator: losses.KlEstimator, expected: float) -> None:
    found = losses.kl_penalty(tensor(math.log(0.5)), reference_logprobs_N=tensor(math.log(0.25)), estimator=estimator)
    assert found.item() == pytest.approx(expected)


def test_k1_and_k3_have_the_true_kl_as_their_mean() -> None:
    policy, reference = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.3, 0.5)
    true_kl = (policy * (policy / reference).log()).sum().item()
    for estimator in ("k1", "k3"):
        estimates = losses.kl_penalty(policy.log(), reference_logprobs_N=reference.log(), estimator=estimator)
        assert (policy * estimates).sum().item() == pytest.approx(true_kl)


def test_importance_weights_are_truncated_above_only() -> None:
    found = losses.truncated_importance_weights(
        tensor(0.6, 0.5, 0.1).log(), sampler_logprobs_N=tensor(0.2, 0.4, 0.5).log(), maximum=2.0
    )
    assert found.tolist() == pytest.approx([2.0, 1.25, 0.2])


def test_policy_loss_clips_by_the_sign_of_the_advantage() -> None:
    ratios = tensor(1.5, 0.5, 1.5, 0.5, 1.1)
    advantages = tensor(1.0, 1.0, -1.0, -1.0, 2.0)
    # min(1.5, 1.28), min(.5, .8), min(−1.5, −1.28), min(−.5, −.8), 2.2
    expected = -(1.28 + 0.5 - 1.5 - 0.8 + 2.2) / 5
    old = torch.full((5,), -1.0, dtype=torch.float64)
    found = losses.policy_loss(
        old + ratios.log(),
        old_logprobs_N=old,
        sampler_logprobs_N=old,
        reference_logprobs_N=old,
        advantages_N=advantages,
        weights_N=torch.full((5,), 1 / 5, dtype=torch.float64),
    )
    assert found.loss.item() == pytest.approx(expected)
    assert found.num_clipped.item() == 2
    assert found.num_truncated.item() == 0


def test_policy_loss_weighs_by_the_sampler_and_adds_the_kl() -> None:
    logprobs = tensor(0.5).log().requires_grad_()
    found = losses.policy_loss(
        logprobs,
        old_logprobs_N=logprobs.detach(),
        sampler_logprobs_N=tensor(0.4).log(),
        reference_logprobs_N=tensor(0.25).log(),
        advantages_N=tensor(2.0),
        weights_N=tensor(0.25),
        kl_beta=0.1,
    )
    # (−1.25·2 + 0.1·(−½ + ln 2)) / 4; gradient (−1.25·2 + 0.1·(1 − ½)) / 4.
    assert found.loss.item() == pytest.approx((-2.5 + 0.1 * (LOG_2 - 0.5)) / 4)
    found.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx((-2.5 + 0.05) / 4)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    # Two sequences of 1 and 3 tokens, of a batch with 4 sequences and 10 tokens; the constant is 20.
    [
        ("token_mean", [1 / 10] * 4),
        ("sequence_mean", [1 / 4, 1 / 12, 1 / 12, 1 / 12]),
        ("constant_length", [1 / 80] * 4),
    ],
)
def test_what_a_token_counts(aggregation: Aggregation, expected: list[float]) -> None:
    found = losses.token_weights(
        torch.tensor([1, 3]), aggregation=aggregation, num_sequences=4, num_tokens=10, constant_length=20
    )
    assert found.tolist() == pytest.approx(expected)


def test_a_ratio_for_each_sequence_is_clipped_whole() -> None:
    # Ratios 2 and ½ in one sequence: their geometric mean is 1. Ratio 1.5 and 1.5: 1.5, clipped to 1.28.
    logprobs = tensor(2.0, 0.5, 1.5, 1.5).log().requires_grad_()
    zeros = torch.zeros(4, dtype=torch.float64)
    found = losses.policy_loss(
        logprobs,
        old_logprobs_N=zeros,
        sampler_logprobs_N=zeros,
        reference_logprobs_N=zeros,
        advantages_N=tensor(1.0, 1.0, 3.0, 3.0),
        weights_N=torch.full((4,), 0.25, dtype=torch.float64),
        sequence_N=torch.tensor([0, 0, 1, 1]),
    )
    # −(1·1 + 1.28·3) / 2
    assert found.loss.item() == pytest.approx(-(1.0 + 3.84) / 2)
    assert found.num_clipped.item() == 2
    found.loss.backward()
    assert logprobs.grad is not None
    # d/dlogprob of −½·exp(mean log-ratio): −½·1·½ for both tokens; nothing where it is clipped.
    assert logprobs.grad.tolist() == pytest.approx([-0.25, -0.25, 0.0, 0.0])


@pytest.mark.parametrize(
    ("kl", "expected"),
    # Target 6: 6.6 is 0.1 too much, +1 %; far off is clipped at 0.2, ±2 %.
    [(6.0, 0.5), (6.6, 0.505), (60.0, 0.51), (0.0, 0.49)],
)
def test_the_weight_of_the_kl_follows_its_target(kl: float, expected: float) -> None:
    assert losses.adapted_kl_beta(0.5, kl=kl, target=6.0) == pytest.approx(expected)


def test_micro_batches_add_up_to_the_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    columns = torch.randn(5, 12, generator=generator, dtype=torch.float64) * 0.3
    logprobs, old, sampler, reference, advantages = columns

    def loss_of(part: slice) -> Tensor:
        return losses.policy_loss(
            logprobs[part],
            old_logprobs_N=old[part],
            sampler_logprobs_N=sampler[part],
            reference_logprobs_N=reference[part],
            advantages_N=advantages[part],
            weights_N=torch.full_like(advantages[part], 1 / 12),
            kl_beta=0.05,
        ).loss

    torch.testing.assert_close(loss_of(slice(0, 5)) + loss_of(slice(5, 12)), loss_of(slice(0, 12)))


def test_sums_by_sequence() -> None:
    found = losses.sum_by_sequence(tensor(1, 2, 3, 4), sequence_N=torch.tensor([0, 0, 2, 2]), num_sequences=3)
    assert found.tolist() == [3.0, 0.0, 7.0]
