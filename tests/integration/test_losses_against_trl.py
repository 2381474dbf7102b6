"""Our losses and gradients equal those of TRL's trainers, whose own methods are called, wherever the definitions do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from model_fixtures import model_folder as model_folder
from model_fixtures import other_model_folder as other_model_folder
from rlaif_pipelines.training import losses
from rlaif_pipelines.training.config.rl import Aggregation
from rlaif_pipelines.training.model import PolicyLogprobs, RewardScores
from rlaif_pipelines.training.packing import Layout, Rows, Tree

TOLERANCE = 1e-6
ROW = {
    "prompt": [{"role": "user", "content": "How?"}],
    "chosen": [{"role": "assistant", "content": "So."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}
LENGTHS = ((3, 5, 9), (7, 2, 4), (4, 6, 6), (1, 8, 3))
"""Tokens of prompt, chosen and rejected response of four pairs."""
EVEN = tuple((prompt, 5, rejected) for prompt, _, rejected in LENGTHS)
"""The same with chosen responses of one length."""

assert_close = functools.partial(torch.testing.assert_close, atol=TOLERANCE, rtol=TOLERANCE)


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def new_trainer(trainer: Any, config: Any, model: Any, folder: Path, out: Path, **more: Any) -> Any:
    settings = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    config_values = {name: more.pop(name) for name in list(more) if name in config.__dataclass_fields__}
    return trainer(
        model=model,
        args=config(output_dir=str(out), **settings, **config_values),
        train_dataset=Dataset.from_list([ROW, ROW]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        **more,
    )


def rows_of(lengths: tuple[tuple[int, int, int], ...]) -> list[dict[str, list[int]]]:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(5)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [
        {
            name: torch.randint(10, 300, (length,), generator=generator).tolist()
            for name, length in zip(names, each, strict=True)
        }
        for each in lengths
    ]


def check_gradients(leaf: Tensor, *, ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs)
    (expected,) = torch.autograd.grad(theirs, leaf, retain_graph=True)
    (found,) = torch.autograd.grad(ours, leaf)
    assert expected.abs().max() > 1e-3
    assert_close(found, expected)


@pytest.fixture(scope="module")
def reward_trainer(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    return new_trainer(RewardTrainer, RewardConfig, model, model_folder, tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def dpo_trainer(model_folder: Path, other_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    reference = AutoModelForCausalLM.from_pretrained(other_model_folder)
    return new_trainer(DPOTrainer, DPOConfig, model, model_folder, tmp_path_factory.mktemp("trl"), ref_model=reference)


@pytest.fixture(scope="module")
def cpo_trainer(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    return new_trainer(
        CPOTrainer, CPOConfig, model, model_folder, tmp_path_factory.mktemp("trl"), loss_type="simpo", max_length=64
    )


@pytest.mark.parametrize("centring", [0.0, 0.05])
@pytest.mark.parametrize("with_margin", [False, True])
def test_the_reward_model_s_loss_is_trl_s(reward_trainer: Any, centring: float, with_margin: bool) -> None:
    rewards_B1 = random(8, 1, seed=1).requires_grad_()
    margins_P = random(4, seed=2).abs()
    reward_trainer.args.center_rewards_coefficient = centring or None
    inputs = {"attention_mask": torch.ones(8, 2)} | ({"margin": margins_P} if with_margin else {})
    theirs = reward_trainer.compute_loss(lambda **_: SimpleNamespace(logits=rewards_B1), inputs)
    chosen_P, rejected_P = rewards_B1.squeeze(1).chunk(2)
    # Every other pair is told the other way round, as a label that prefers the second response.
    turned_P = torch.tensor([False, True, False, True])
    ours = losses.soft_bradley_terry_loss(
        torch.where(turned_P, rejected_P, chosen_P),
        rewards_second_P=torch.where(turned_P, chosen_P, rejected_P),
        probability_first_P=(~turned_P).double(),
        weights_P=torch.ones(4, dtype=torch.float64),
        centring=centring,
        margins_P=torch.where(turned_P, -margins_P, margins_P) if with_margin else None,
    )
    check_gradients(rewards_B1, ours=ours, theirs=theirs)


def pair_rows() -> tuple[list[dict[str, list[int]]], Rows]:
    """Four pairs as TRL has them, and as our rows, in which both responses share their prompt."""
    rows = rows_of(LENGTHS)
    trees = [Tree(row["prompt_ids"], (row["chosen_ids"], row["rejected_ids"])) for row in rows]
    return rows, Layout(pad_id=0).rows(trees)


def test_reward_models_are_run_as_trl_runs_them(reward_trainer: Any) -> None:
    reward_trainer.args.center_rewards_coefficient = 0.01
    theirs_rows, our_rows = pair_rows()
    examples = [
        {"chosen_ids": row["prompt_ids"] + row["chosen_ids"], "rejected_ids": row["prompt_ids"] + row["rejected_ids"]}
        for row in theirs_rows
    ]
    model = reward_trainer.model
    theirs = reward_trainer.compute_loss(model, reward_trainer.data_collator(examples))
    rewards_S = RewardScores(model)(*our_rows.for_rewards)[:, 0]
    ours = losses.soft_bradley_terry_loss(
        rewards_S[0::2],
        rewards_second_P=rewards_S[1::2],
        probability_first_P=torch.ones(4),
        weights_P=torch.ones(4),
        centring=0.01,
    )
    check_parameters(model, ours=ours, theirs=theirs)


def check_parameters(model: Any, *, ours: Tensor, theirs: Tensor) -> None:
    """In single precision, where sums over thousands of products end in other last digits: relative to the largest."""
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(theirs, parameters, retain_graph=True)
    found = torch.autograd.grad(ours, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE * float(other.abs().max().clamp(min=1.0)), rtol=1e-5)


class Said:
    """Answers as a model of these log-probabilities would."""

    def __init__(self, logprobs_BT: Tensor) -> None:
        self._logprobs_BT = logprobs_BT

    def __call__(self, **_: Any) -> SimpleNamespace:
        nothing_BT = torch.zeros_like(self._logprobs_BT)
        return SimpleNamespace(
            log_probs=self._logprobs_BT, entropy=nothing_BT, mean_logits=nothing_BT, is_top1=nothing_BT.bool()
        )


PairLoss = Callable[..., Tensor]
MEANS = ("ipo", "sigmoid_norm", "simpo")


def our_loss(name: str) -> PairLoss:
    return {
        "sigmoid": losses.dpo_loss,
        "sigmoid_norm": losses.dpo_loss,
        "hinge": losses.hinge_loss,
        "ipo": losses.ipo_loss,
    }[name]


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "hinge", "ipo"])
@pytest.mark.parametrize("sft_weight", [0.0, 0.4])
def test_preference_losses_are_trl_s(dpo_trainer: Any, name: str, beta: float, sft_weight: float) -> None:
    # TRL averages the SFT term over the tokens of all chosen responses, we over each first: the same at one length.
    inputs = dpo_trainer.data_collator(rows_of(EVEN if sft_weight else LENGTHS))
    mask_BT = inputs["completion_mask"][:, 1:]
    leaf_BT = random(*mask_BT.shape, seed=3).requires_grad_()
    reference_B = random(8, seed=4, scale=3.0)
    dpo_trainer.beta, dpo_trainer.precompute_ref_logps = beta, True
    dpo_trainer.loss_types = [name, "sft"] if sft_weight else [name]
    dpo_trainer.loss_weights = [1.0, sft_weight] if sft_weight else [1.0]
    chosen_P, rejected_P = reference_B.chunk(2)
    theirs = dpo_trainer.compute_loss(
        Said(leaf_BT * mask_BT), inputs | {"ref_chosen_logps": chosen_P, "ref_rejected_logps": rejected_P}
    )
    num_tokens_B = mask_BT.sum(dim=1)
    said_B = (leaf_BT * mask_BT).sum(dim=1)
    labels = {"probability_first_P": torch.ones(4), "weights_P": torch.ones(4)}
    scale_B = num_tokens_B if name in MEANS else torch.ones(8)
    first_P, second_P = (said_B / scale_B).chunk(2)
    reference_first_P, reference_second_P = (reference_B / scale_B).chunk(2)
    ours = our_loss(name)(
        first_P,
        logprobs_second_P=second_P,
        reference_first_P=reference_first_P,
        reference_second_P=reference_second_P,
        beta=beta,
        **labels,
    )
    mean_first_P, mean_second_P = (said_B / num_tokens_B).chunk(2)
    ours = ours + sft_weight * losses.preferred_nll(mean_first_P, logprobs_second_P=mean_second_P, **labels)
    check_gradients(leaf_BT, ours=ours, theirs=theirs)


@pytest.mark.parametrize("probability", [0.95, 0.6])
def test_a_soft_label_is_trl_s_label_smoothing(dpo_trainer: Any, probability: float) -> None:
    # TRL's "sigmoid" has none; "aot" of a single pair is DPO with it, since there is nothing to sort.
    inputs = dpo_trainer.data_collator(rows_of(LENGTHS[:1]))
    mask_BT = inputs["completion_mask"][:, 1:]
    leaf_BT = random(*mask_BT.shape, seed=6).requires_grad_()
    reference_B = random(2, seed=7, scale=3.0)
    dpo_trainer.beta, dpo_trainer.precompute_ref_logps = 0.3, True
    dpo_trainer.loss_types, dpo_trainer.loss_weights = ["aot"], [1.0]
    dpo_trainer.label_smoothing = 1.0 - probability
    theirs = dpo_trainer.compute_loss(
        Said(leaf_BT * mask_BT), inputs | {"ref_chosen_logps": reference_B[:1], "ref_rejected_logps": reference_B[1:]}
    )
    first_P, second_P = (leaf_BT * mask_BT).sum(dim=1).chunk(2)
    ours = losses.dpo_loss(
        first_P,
        logprobs_second_P=second_P,
        reference_first_P=reference_B[:1],
        reference_second_P=reference_B[1:],
        probability_first_P=torch.tensor([probability], dtype=torch.float64),
        weights_P=torch.ones(1),
        beta=0.3,
    )
    check_gradients(leaf_BT, ours=ours, theirs=theirs)


def test_policies_are_run_as_trl_runs_them(dpo_trainer: Any) -> None:
    theirs_rows, our_rows = pair_rows()
    dpo_trainer.beta, dpo_trainer.precompute_ref_logps = 0.1, False
    dpo_trainer.loss_types, dpo_trainer.loss_weights = ["sigmoid"], [1.0]
    model, reference = dpo_trainer.model, dpo_trainer.ref_model
    theirs = dpo_trainer.compute_loss(model, dpo_trainer.data_collator(theirs_rows))

    def sums(policy: Any) -> tuple[Tensor, Tensor]:
        logprobs_N, _ = PolicyLogprobs(policy)(*our_rows.for_logprobs)
        sums_S = losses.sum_by_sequence(logprobs_N, sequence_N=our_rows.branches_N, num_sequences=8)
        return sums_S[0::2], sums_S[1::2]

    first_P, second_P = sums(model)
    with torch.no_grad():
        reference_first_P, reference_second_P = sums(reference)
    ours = losses.dpo_loss(
        first_P,
        logprobs_second_P=second_P,
        reference_first_P=reference_first_P,
        reference_second_P=reference_second_P,
        probability_first_P=torch.ones(4),
        weights_P=torch.ones(4),
        beta=0.1,
    )
    check_parameters(model, ours=ours, theirs=theirs)


def pad(sequences: list[list[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids_BT, mask_BT), padded on the right."""
    rows = Layout(pad_id=pad_id, shares_prefixes=False).rows([Tree((), [ids]) for ids in sequences])
    return rows.ids_BT, rows.mask


def cpo_batch(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    batch = {}
    for side in ("chosen", "rejected"):
        ids_BT, mask_BT = pad([row["prompt_ids"] + row[f"{side}_ids"] for row in rows], pad_id=0)
        starts_B = torch.tensor([len(row["prompt_ids"]) for row in rows])
        asked_BT = mask_BT & (torch.arange(ids_BT.shape[1]) >= starts_B[:, None])
        batch |= {
            f"{side}_input_ids": ids_BT,
            f"{side}_attention_mask": mask_BT.long(),
            f"{side}_labels": ids_BT.masked_fill(~asked_BT, -100),
        }
    return batch


@pytest.mark.parametrize(
    ("name", "label_smoothing", "sft_weight"),
    [("simpo", 0.0, 0.0), ("simpo", 0.0, 0.3), ("sigmoid", 0.2, 0.0), ("hinge", 0.0, 0.0), ("ipo", 0.0, 0.0)],
)
def test_losses_without_a_reference_are_trl_s(
    cpo_trainer: Any, name: str, label_smoothing: float, sft_weight: float
) -> None:
    beta, target_margin = 2.0, 0.8
    batch = cpo_batch(rows_of(EVEN if sft_weight else LENGTHS))
    width = batch["chosen_labels"].shape[1]
    leaf_BTV = random(8, width, 320, seed=8).requires_grad_()
    cpo_trainer.loss_type, cpo_trainer.label_smoothing, cpo_trainer.cpo_alpha = name, label_smoothing, sft_weight
    cpo_trainer.beta, cpo_trainer.simpo_gamma = beta, target_margin
    theirs = cpo_trainer.compute_loss(lambda *_, **__: SimpleNamespace(logits=leaf_BTV), batch)

    targets_BT = torch.cat([batch["chosen_labels"], batch["rejected_labels"]])[:, 1:]
    mask_BT = targets_BT != -100
    logprobs_BT = leaf_BTV[:, :-1].log_softmax(dim=-1).gather(2, targets_BT.clamp(min=0)[..., None]).squeeze(2)
    num_tokens_B = mask_BT.sum(dim=1)
    sums_B = (logprobs_BT * mask_BT).sum(dim=1)
    first_P, second_P = (sums_B / num_tokens_B if name in MEANS else sums_B).chunk(2)
    weights_P, sure_P = torch.ones(4), torch.ones(4, dtype=torch.float64)
    if name == "simpo":
        ours = losses.simpo_loss(
            first_P,
            logprobs_second_P=second_P,
            probability_first_P=sure_P,
            weights_P=weights_P,
            beta=beta,
            target_margin=target_margin,
        )
    else:
        nothing_P = torch.zeros(4)
        ours = our_loss(name)(
            first_P,
            logprobs_second_P=second_P,
            reference_first_P=nothing_P,
            reference_second_P=nothing_P,
            probability_first_P=sure_P - label_smoothing,
            weights_P=weights_P,
            beta=beta,
        )
    mean_first_P, mean_second_P = (sums_B / num_tokens_B).chunk(2)
    ours = ours + sft_weight * losses.preferred_nll(
        mean_first_P, logprobs_second_P=mean_second_P, probability_first_P=sure_P, weights_P=weights_P
    )
    check_gradients(leaf_BTV, ours=ours, theirs=theirs)


G, NUM_PROMPTS, MAX_TOKENS = 4, 3, 7


@pytest.fixture(scope="module")
def grpo_trainer(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    def replay(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        return trainer.rollouts

    def judged(completions: list[Any], trainer_state: Any, **_: Any) -> list[float | None]:
        return trainer_state.given_rewards

    return new_trainer(
        GRPOTrainer,
        GRPOConfig,
        AutoModelForCausalLM.from_pretrained(model_folder),
        model_folder,
        tmp_path_factory.mktemp("trl"),
        reward_funcs=judged,
        rollout_func=replay,
        num_generations=G,
        per_device_train_batch_size=G * NUM_PROMPTS,
        max_completion_length=MAX_TOKENS,
    )


def completions() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(2, MAX_TOKENS + 1, (G * NUM_PROMPTS,), generator=generator).tolist()
    return [torch.randint(10, 300, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "aggregation", "level"),
    [
        ("dapo", "token_mean", "token"),
        ("bnpo", "token_mean", "token"),
        ("grpo", "sequence_mean", "token"),
        ("dr_grpo", "constant_length", "token"),
        ("grpo", "sequence_mean", "sequence"),
    ],
)
def test_the_policy_s_loss_is_trl_s(
    grpo_trainer: Any, name: str, aggregation: Aggregation, level: str, kl_beta: float
) -> None:
    ids_BT, mask_BT = pad(completions(), pad_id=0)
    num_sequences = len(ids_BT)
    shape = mask_BT.shape
    leaf_BT = (random(*shape, seed=12) - 2.0).requires_grad_()
    old_BT, sampler_BT, reference_BT = (
        leaf_BT.detach() + random(*shape, seed=seed, scale=0.5) for seed in (13, 14, 15)
    )
    advantages_B = random(num_sequences, seed=16)
    ratio_BT = losses.truncated_importance_weights(old_BT, sampler_logprobs_N=sampler_BT, maximum=2.0)
    trainer = grpo_trainer
    trainer.loss_type, trainer.beta, trainer.use_vllm = name, kl_beta, True
    trainer.importance_sampling_level = level
    trainer.epsilon_low, trainer.epsilon_high = 0.2, 0.28
    trainer.args.use_bias_correction_kl = False
    trainer.current_gradient_accumulation_steps, trainer.args.steps_per_generation = 1, 1
    inputs = {
        "prompt_ids": torch.full((num_sequences, 2), 9),
        "prompt_mask": torch.ones(num_sequences, 2, dtype=torch.long),
        "completion_ids": ids_BT,
        "completion_mask": mask_BT.long(),
        "advantages": advantages_B,
        "old_per_token_logps": old_BT,
        "ref_per_token_logps": reference_BT,
        "importance_sampling_ratio": ratio_BT,
        "num_items_in_batch": mask_BT.sum(),
    }
    theirs = trainer._compute_loss(Said(leaf_BT), inputs)
    found = losses.policy_loss(
        leaf_BT[mask_BT],
        old_logprobs_N=old_BT[mask_BT],
        sampler_logprobs_N=sampler_BT[mask_BT],
        reference_logprobs_N=reference_BT[mask_BT],
        advantages_N=advantages_B[:, None].expand_as(leaf_BT)[mask_BT],
        weights_N=losses.token_weights(
            mask_BT.sum(dim=1),
            aggregation=aggregation,
            num_sequences=num_sequences,
            num_tokens=int(mask_BT.sum()),
            constant_length=MAX_TOKENS,
        ),
        sequence_N=mask_BT.nonzero()[:, 0] if level == "sequence" else None,
        kl_beta=kl_beta,
    )
    assert found.num_clipped > 0
    assert found.num_truncated > 0
    check_gradients(leaf_BT, ours=found.loss, theirs=theirs)


REWARDS = torch.tensor([[0.1, 0.9, 0.4, 0.4], [1.0, float("nan"), 0.0, 0.5], [0.3, 0.3, 0.3, 0.3]])
GIVEN = [None if reward != reward else reward for reward in REWARDS.flatten().tolist()]


@pytest.fixture(scope="module")
def rloo_trainer(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trl import RLOOConfig, RLOOTrainer

    return new_trainer(
        RLOOTrainer,
        RLOOConfig,
        AutoModelForCausalLM.from_pretrained(model_folder),
        model_folder,
        tmp_path_factory.mktemp("trl"),
        reward_funcs=lambda **_: GIVEN,
        beta=0.0,
        num_generations=G,
        per_device_train_batch_size=G * NUM_PROMPTS,
        max_completion_length=MAX_TOKENS,
    )


def test_rloo_is_trl_s_while_the_policy_is_the_one_that_sampled(
    rloo_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rloo_trainer, "_generate_single_turn", lambda *_: completions())
    batch = rloo_trainer._generate_and_score_completions([{"prompt": ROW["prompt"]}] * (G * NUM_PROMPTS))
    found = losses.group_advantages(REWARDS, quorum=2, kind="rloo")
    assert_close(found.advantages_QG.flatten(), batch["advantages"])

    mask_BT = batch["completion_mask"].bool()
    leaf_BT = (random(*mask_BT.shape, seed=17) - 2.0).requires_grad_()
    old_BT = leaf_BT.detach()
    theirs = rloo_trainer._compute_loss(Said(leaf_BT * mask_BT), batch | {"old_logps": (old_BT * mask_BT).sum(dim=1)})
    ours = losses.policy_loss(
        leaf_BT[mask_BT],
        old_logprobs_N=old_BT[mask_BT],
        sampler_logprobs_N=old_BT[mask_BT],
        reference_logprobs_N=old_BT[mask_BT],
        advantages_N=batch["advantages"][:, None].expand_as(leaf_BT)[mask_BT],
        weights_N=torch.full((int(mask_BT.sum()),), 1.0 / len(mask_BT), dtype=torch.float64),
    )
    # Off the policy theirs clips the ratio of the whole sequence; at it only the value differs, by a constant.
    (expected,) = torch.autograd.grad(theirs, leaf_BT)
    (gradient,) = torch.autograd.grad(ours.loss, leaf_BT)
    assert expected.abs().max() > 1e-3
    assert_close(gradient, expected)


def test_advantages_and_importance_weights_are_trl_s(grpo_trainer: Any) -> None:
    written = completions()
    sampler = [random(len(each), seed=20 + number, scale=0.3) - 6.0 for number, each in enumerate(written)]
    trainer = grpo_trainer
    trainer.rollouts = {
        "prompt_ids": [[9, 10, 11]] * len(written),
        "completion_ids": written,
        "logprobs": [each.tolist() for each in sampler],
    }
    trainer.state.given_rewards = GIVEN
    trainer.beta, trainer.use_vllm, trainer._last_loaded_step = 0.0, True, trainer.state.global_step
    trainer.vllm_importance_sampling_mode, trainer.vllm_importance_sampling_clip_max = "token_truncate", 2.0
    prompts = [{"prompt": ROW["prompt"]}] * len(written)
    trainer.scale_rewards = "none"
    undivided = trainer._generate_and_score_completions(prompts)["advantages"]
    assert_close(losses.group_advantages(REWARDS, quorum=2, kind="dr_grpo").advantages_QG.flatten(), undivided)
    trainer.scale_rewards = "group"
    batch = trainer._generate_and_score_completions(prompts)
    assert_close(losses.group_advantages(REWARDS, quorum=2).advantages_QG.flatten(), batch["advantages"])
    mask_BT = batch["completion_mask"].bool()
    weights_N = losses.truncated_importance_weights(
        batch["old_per_token_logps"][mask_BT], sampler_logprobs_N=torch.cat(sampler).float(), maximum=2.0
    )
    assert (weights_N == 2.0).any()
    assert (weights_N < 2.0).any()
    assert_close(weights_N, batch["importance_sampling_ratio"][mask_BT])
