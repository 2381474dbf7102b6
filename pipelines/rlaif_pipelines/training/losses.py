"""Losses as pure functions of tensors.

Shape legend: N tokens of completions, flat, padding left out; S sequences; P pairs; Q prompts; G completions of one
prompt; D hidden width; V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rlaif_pipelines.training.config.rl import AdvantageKind, Aggregation

KlEstimator = Literal["k1", "k2", "k3"]

CHUNK_LOGITS = 2**24
"""Logits that exist at a time: 64 MiB of them."""


def token_logprobs(
    hidden_ND: Tensor,
    *,
    weight_VD: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """(log-probability of each target, entropy of the distribution it was drawn from), both fp32, nats.

    At most `chunk_logits` logits exist at a time, forward and backward, so the N × V matrix never does. Only the
    log-probabilities carry a gradient: d/dlogits = (onehot(target) − softmax(logits)).
    """
    chunk_tokens = max(1, chunk_logits // len(weight_VD))
    return _ChunkedLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature, chunk_tokens)


def sft_loss(logprobs_N: Tensor, *, weights_N: Tensor) -> Tensor:
    """−Σ w·log π(token) / Σ w: next-token cross-entropy, averaged over all trained tokens of the batch.

    A long reply so counts for more than a short one, as in the mean over labels that are not ignored by which causal
    language models are trained; the mean of each conversation's mean would be another loss. With weights of 1 it is
    that mean.
    """
    return -_weighted_mean(logprobs_N, weights_N)


def soft_bradley_terry_loss(
    rewards_first_P: Tensor,
    *,
    rewards_second_P: Tensor,
    probability_first_P: Tensor,
    weights_P: Tensor,
    centring: float = 0.0,
    margins_P: Tensor | None = None,
) -> Tensor:
    """−p·logσ(Δ) − (1−p)·logσ(−Δ), Δ = r(first) − r(second), as a weighted mean.

    Ouyang et al. 2022 (2203.02155) eq. 1 with the hard label replaced by the labeller's probability, as Lee et al. 2023
    (2309.00267) train from AI preferences. `centring`·(r(first) + r(second))² keeps the scale's zero in place:
    Eisenstein et al. 2023 (2312.09244); the weights apply to it as well. `margins_P`, the lead asked of the first
    response, negative where the second should lead, is taken off Δ: Touvron et al. 2023 (2307.09288) eq. 2, whose
    margin is that of the preferred response. The best Δ is then logit(p) + margin.
    """
    delta_P = rewards_first_P - rewards_second_P
    loss_P = _soft_log_loss(delta_P if margins_P is None else delta_P - margins_P, probability_first_P)
    if centring:
        loss_P = loss_P + centring * (rewards_first_P + rewards_second_P).square()
    return _weighted_mean(loss_P, weights_P)


def principle_loss(values_first_PK: Tensor, *, values_second_PK: Tensor, votes_PK: Tensor, weights_P: Tensor) -> Tensor:
    """Soft Bradley–Terry of each principle's own vote, as a weighted mean over the votes there are (NaN: none).

    One objective a principle, as in Wang et al. 2024 (ArmoRM, 2406.12845), here only to teach the trunk: a combined
    label is close to one half wherever principles disagree, and says little about why. 0 where nothing voted.
    """
    voted_PK = torch.isfinite(votes_PK)
    loss_PK = _soft_log_loss(values_first_PK - values_second_PK, torch.where(voted_PK, votes_PK, 0.5))
    weights_PK = weights_P[:, None] * voted_PK
    return (loss_PK * weights_PK).sum() / weights_PK.sum().clamp(min=torch.finfo(weights_PK.dtype).tiny)


def dpo_loss(
    logprobs_first_P: Tensor,
    *,
    logprobs_second_P: Tensor,
    reference_first_P: Tensor,
    reference_second_P: Tensor,
    probability_first_P: Tensor,
    weights_P: Tensor,
    beta: float,
) -> Tensor:
    """DPO on log-probabilities summed over each response: Rafailov et al. 2023 (2305.18290) eq. 7.

    A probability other than 0 or 1 makes it conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"),
    whose ε is 1 − p here: every pair has its own instead of one for the whole set.
    """
    margin_P = dpo_margin(
        logprobs_first_P,
        logprobs_second_P=logprobs_second_P,
        reference_first_P=reference_first_P,
        reference_second_P=reference_second_P,
        beta=beta,
    )
    return _weighted_mean(_soft_log_loss(margin_P, probability_first_P), weights_P)


def dpo_margin(
    logprobs_first_P: Tensor,
    *,
    logprobs_second_P: Tensor,
    reference_first_P: Tensor,
    reference_second_P: Tensor,
    beta: float,
) -> Tensor:
    """Implicit reward of the first response over the second: 2305.18290 eq. 5, in which log Z cancels."""
    return beta * ((logprobs_first_P - reference_first_P) - (logprobs_second_P - reference_second_P))


def hinge_loss(
    logprobs_first_P: Tensor,
    *,
    logprobs_second_P: Tensor,
    reference_first_P: Tensor,
    reference_second_P: Tensor,
    probability_first_P: Tensor,
    weights_P: Tensor,
    beta: float,
) -> Tensor:
    """max(0, 1 − m) of the implicit reward's margin m: Zhao et al. 2023 (SLiC-HF, 2305.10425) with DPO's margin.

    A soft label takes the mean over both outcomes, p·max(0, 1 − m) + (1−p)·max(0, 1 + m). Its minimum is m = 1 for
    every p above one half: how sure the labeller was decides only how hard a pair pulls.
    """
    margin_P = dpo_margin(
        logprobs_first_P,
        logprobs_second_P=logprobs_second_P,
        reference_first_P=reference_first_P,
        reference_second_P=reference_second_P,
        beta=beta,
    )
    loss_P = probability_first_P * F.relu(1.0 - margin_P) + (1.0 - probability_first_P) * F.relu(1.0 + margin_P)
    return _weighted_mean(loss_P, weights_P)


def ipo_loss(
    logprobs_first_P: Tensor,
    *,
    logprobs_second_P: Tensor,
    reference_first_P: Tensor,
    reference_second_P: Tensor,
    probability_first_P: Tensor,
    weights_P: Tensor,
    beta: float,
) -> Tensor:
    """p·(h − 1/2β)² + (1−p)·(h + 1/2β)² with h the difference of log-ratios: Azar et al. 2023 (2310.12036) eq. 17.

    β is their τ. The mean over both outcomes is what their Bernoulli label has in expectation; its minimum is
    h = (2p − 1)/2β, finite also for p = 1, so that sure labels are not fitted without end. Give log-probabilities
    averaged over each response's tokens: sums, as the paper writes them, would ask more of short responses.
    """
    log_ratio_P = dpo_margin(
        logprobs_first_P,
        logprobs_second_P=logprobs_second_P,
        reference_first_P=reference_first_P,
        reference_second_P=reference_second_P,
        beta=1.0,
    )
    target = 1.0 / (2.0 * beta)
    loss_P = (
        probability_first_P * (log_ratio_P - target).square()
        + (1.0 - probability_first_P) * (log_ratio_P + target).square()
    )
    return _weighted_mean(loss_P, weights_P)


def simpo_loss(
    logprobs_first_P: Tensor,
    *,
    logprobs_second_P: Tensor,
    probability_first_P: Tensor,
    weights_P: Tensor,
    beta: float,
    target_margin: float,
) -> Tensor:
    """Soft log-loss of β·(mean log-probability of first − of second) − γ·(2p − 1): Meng et al. 2024 (2405.14734) eq. 6.

    Log-probabilities are averaged over each response's tokens; there is no reference. For a hard label the target
    margin γ is the paper's; a soft one asks for less of it, a tie for none, and swapping the responses changes nothing.
    """
    margin_P = beta * (logprobs_first_P - logprobs_second_P) - target_margin * (2.0 * probability_first_P - 1.0)
    return _weighted_mean(_soft_log_loss(margin_P, probability_first_P), weights_P)


def preferred_nll(
    logprobs_first_P: Tensor, *, logprobs_second_P: Tensor, probability_first_P: Tensor, weights_P: Tensor
) -> Tensor:
    """−|2p − 1|·log π(preferred response), log-probabilities averaged over its tokens, as a weighted mean.

    The term that Pang et al. 2024 (2404.19733) eq. 1 add to DPO so that the preferred response does not become less
    likely too. Deviation: |2p − 1| lets a sure label teach in full and a tie nothing.
    """
    lead_P = 2.0 * probability_first_P - 1.0
    nll_P = -(F.relu(lead_P) * logprobs_first_P + F.relu(-lead_P) * logprobs_second_P)
    return _weighted_mean(nll_P, weights_P)


@dataclass(frozen=True)
class GroupAdvantages:
    """`advantages_QG` is 0 wherever a sample is not trained on; `used_QG` says which are."""

    advantages_QG: Tensor
    used_QG: Tensor
    num_missing_rewards: int
    num_groups_below_quorum: int
    num_groups_without_variance: int


def group_advantages(
    rewards_QG: Tensor, *, quorum: int, kind: AdvantageKind = "grpo", epsilon: float = 1e-4, min_sd: float = 1e-6
) -> GroupAdvantages:
    """How much better each completion is than others of its prompt.

    grpo: (r − mean of its group) / (sd of its group + epsilon), Shao et al. 2024 (2402.03300) §4.1.2.
    dr_grpo: r − mean of its group, without the division, Liu et al. 2025 (2503.20783).
    rloo: r − mean of the group's others, Ahmadian et al. 2024 (2402.14740), which is n/(n − 1) times that.
    reinforce_plus_plus: (r − mean of its group) / (sd over the batch of what stands above + epsilon), Hu et al. 2025
    (2501.03262), its variant with a baseline.

    `epsilon`, in units of the reward, keeps differences that are only the judge's noise from counting in full.

    A missing reward is NaN: it is left out of its group's mean and sd. A group with fewer than `quorum` rewards is
    dropped, and so is one whose sd is at most `min_sd`, which says nothing about what is better (dynamic sampling, Yu
    et al. 2025, 2503.14476 §3.2, without its resampling). The sd is the unbiased one.
    """
    present_QG = torch.isfinite(rewards_QG)
    count_Q = present_QG.sum(dim=1)
    filled_QG = torch.where(present_QG, rewards_QG, torch.zeros_like(rewards_QG))
    mean_Q = filled_QG.sum(dim=1) / count_Q.clamp(min=1)
    centred_QG = torch.where(present_QG, rewards_QG - mean_Q[:, None], torch.zeros_like(rewards_QG))
    sd_Q = (centred_QG.square().sum(dim=1) / (count_Q - 1).clamp(min=1)).sqrt()
    quorate_Q = count_Q >= max(quorum, 2)
    varied_Q = sd_Q > min_sd
    used_QG = present_QG & (quorate_Q & varied_Q)[:, None]
    match kind:
        case "grpo":
            advantages_QG = centred_QG / (sd_Q + epsilon)[:, None]
        case "dr_grpo":
            advantages_QG = centred_QG
        case "rloo":
            advantages_QG = centred_QG * (count_Q / (count_Q - 1).clamp(min=1))[:, None]
        case "reinforce_plus_plus":
            squares = torch.where(used_QG, centred_QG, torch.zeros_like(centred_QG)).square().sum()
            advantages_QG = centred_QG / ((squares / (used_QG.sum() - 1).clamp(min=1)).sqrt() + epsilon)
    return GroupAdvantages(
        advantages_QG=torch.where(used_QG, advantages_QG, torch.zeros_like(advantages_QG)),
        used_QG=used_QG,
        num_missing_rewards=int((~present_QG).sum()),
        num_groups_below_quorum=int((~quorate_Q).sum()),
        num_groups_without_variance=int((quorate_Q & ~varied_Q).sum()),
    )


def token_weights(
    lengths_S: Tensor, *, aggregation: Aggregation, num_sequences: int, num_tokens: int, constant_length: int
) -> Tensor:
    """What each token's loss counts, weights_N; `lengths_S` are of some of the batch's sequences, in their order.

    token_mean: 1 / tokens of the batch, Yu et al. 2025 (2503.14476) eq. 8. sequence_mean: 1 / (tokens of its sequence ×
    sequences of the batch), 2402.03300 eq. 3. constant_length: 1 / (`constant_length` × sequences of the batch), so
    that a long sequence counts no less a token, 2503.20783; times that constant it is the sum over each sequence that
    2402.14740 takes. `num_sequences` and `num_tokens` are of the whole batch, so that its micro-batches add up.
    """
    match aggregation:
        case "token_mean":
            weights_S = torch.full_like(lengths_S, 1.0 / num_tokens, dtype=torch.float32)
        case "sequence_mean":
            weights_S = 1.0 / (lengths_S.clamp(min=1) * float(num_sequences))
        case "constant_length":
            weights_S = torch.full_like(lengths_S, 1.0 / (constant_length * num_sequences), dtype=torch.float32)
    return weights_S.repeat_interleave(lengths_S)


def kl_penalty(logprobs_N: Tensor, *, reference_logprobs_N: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimate, a token, of KL(policy ‖ reference) from tokens drawn from the policy.

    Schulman 2020, "Approximating KL Divergence", with r = reference / policy: k1 = −log r, k2 = ½(log r)²,
    k3 = (r − 1) − log r, which is 2402.03300 eq. 4.
    """
    log_ratio_N = reference_logprobs_N - logprobs_N
    match estimator:
        case "k1":
            return -log_ratio_N
        case "k2":
            return 0.5 * log_ratio_N.square()
        case "k3":
            return torch.expm1(log_ratio_N) - log_ratio_N


def adapted_kl_beta(beta: float, *, kl: float, target: float, gain: float = 0.1) -> float:
    """The weight of the KL for the next batch: β·(1 + gain·clip(kl/target − 1, −0.2, 0.2)).

    Ziegler et al. 2019 (1909.08593) §2.2, whose K_β is `gain`. Deviation: there the KL is in the reward; here it may
    as well be in the loss.
    """
    return beta * (1.0 + gain * min(max(kl / target - 1.0, -0.2), 0.2))


def truncated_importance_weights(logprobs_N: Tensor, *, sampler_logprobs_N: Tensor, maximum: float) -> Tensor:
    """min(π(token) / π_sampler(token), maximum), without gradient.

    Corrects for the sampler not being the trainer: other kernels and, with staleness, older weights. Truncation as in
    Espeholt et al. 2018 (1802.01561) §4.1; a token each, as in Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training".
    """
    return (logprobs_N.detach() - sampler_logprobs_N).exp().clamp(max=maximum)


@dataclass(frozen=True)
class PolicyLoss:
    """Sums over the tokens given; `loss` carries the gradient."""

    loss: Tensor
    num_clipped: Tensor
    num_truncated: Tensor


def policy_loss(
    logprobs_N: Tensor,
    *,
    old_logprobs_N: Tensor,
    sampler_logprobs_N: Tensor,
    reference_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    sequence_N: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    max_importance_weight: float = 2.0,
    kl_beta: float = 0.0,
    kl_estimator: KlEstimator = "k3",
) -> PolicyLoss:
    """Σ over tokens of weight·[ −w·min(ρA, clip(ρ, 1−low, 1+high)·A) + β·KL ], with ρ = π / π_old.

    Schulman et al. 2017 (1707.06347) eq. 7 inside 2402.03300 eq. 3, with two clip ranges: 2503.14476 eq. 8. `weights_N`
    are those of `token_weights`. Deviation: w, the truncated importance weight of π_old against the sampler, multiplies
    the first term.

    With `sequence_N`, which says of which sequence a token is, ρ is one for all tokens of a sequence, their geometric
    mean: Zheng et al. 2025 (GSPO, 2507.18071); all tokens of a sequence must be among those given.
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    if sequence_N is not None:
        lengths_S = torch.bincount(sequence_N)
        sums_S = sum_by_sequence(log_ratio_N, sequence_N=sequence_N, num_sequences=len(lengths_S))
        log_ratio_N = (sums_S / lengths_S.clamp(min=1))[sequence_N]
    ratio_N = log_ratio_N.exp()
    clipped_ratio_N = ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    unclipped_N, clipped_N = ratio_N * advantages_N, clipped_ratio_N * advantages_N
    importance_N = truncated_importance_weights(
        old_logprobs_N, sampler_logprobs_N=sampler_logprobs_N, maximum=max_importance_weight
    )
    loss_N = -importance_N * torch.minimum(unclipped_N, clipped_N)
    if kl_beta:
        loss_N = loss_N + kl_beta * kl_penalty(
            logprobs_N, reference_logprobs_N=reference_logprobs_N, estimator=kl_estimator
        )
    return PolicyLoss(
        loss=(weights_N * loss_N).sum(),
        num_clipped=(clipped_N < unclipped_N).sum(),
        num_truncated=(importance_N >= max_importance_weight).sum(),
    )


def sum_by_sequence(values_N: Tensor, *, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Sum of each sequence's tokens; `sequence_N` is ascending."""
    return values_N.new_zeros(num_sequences).index_add(0, sequence_N, values_N)


def _soft_log_loss(delta_P: Tensor, probability_P: Tensor) -> Tensor:
    return -probability_P * F.logsigmoid(delta_P) - (1.0 - probability_P) * F.logsigmoid(-delta_P)


def _weighted_mean(values_P: Tensor, weights_P: Tensor) -> Tensor:
    return (values_P * weights_P).sum() / weights_P.sum()


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers = [], [], []
        for hidden_CD, targets_C in zip(hidden_ND.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True):
            logits_CV = (hidden_CD @ weight_VD.T).float().div_(temperature)
            target_logits_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
            highest_C1 = logits_CV.amax(dim=-1, keepdim=True)
            weights_CV = (logits_CV - highest_C1).exp_()
            total_C = weights_CV.sum(dim=-1)
            normaliser_C = highest_C1.squeeze(1) + total_C.log()
            expected_C = torch.linalg.vecdot(weights_CV, logits_CV) / total_C
            logprobs.append(target_logits_C - normaliser_C)
            entropies.append(normaliser_C - expected_C)
            normalisers.append(normaliser_C)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, torch.cat(normalisers))
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        entropy_N = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logprobs), entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_ND, weight_VD, targets_N, normaliser_N = ctx.saved_tensors
        scale_N1 = (gradients[0] / ctx.temperature)[:, None].to(hidden_ND.dtype)
        scaled_ND = hidden_ND * scale_N1
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD)
        for start in range(0, len(targets_N), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            logits_CV = (hidden_ND[chunk] @ weight_VD.T).float().div_(ctx.temperature)
            probabilities_CV = logits_CV.sub_(normaliser_N[chunk, None]).exp_().to(hidden_ND.dtype)
            # The onehot's part is a row each: cheaper added to the products than to the chunk.
            grad_hidden_ND[chunk] = (weight_VD[targets_N[chunk]] - probabilities_CV @ weight_VD) * scale_N1[chunk]
            grad_weight_VD.addmm_(probabilities_CV.T, scaled_ND[chunk], alpha=-1.0)
        grad_weight_VD.index_add_(0, targets_N, scaled_ND)
        return grad_hidden_ND, grad_weight_VD, None, None, None
