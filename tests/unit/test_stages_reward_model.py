"""What a run calls the reward model that it trains."""

from __future__ import annotations

from rlaif.reward.settings import JUDGE_ID, RESOURCE_ID
from rlaif_pipelines.stages.reward_model import reward_model_name


def test_reward_models_of_two_policies_never_share_a_name() -> None:
    policies = ["served", "served.distilled", JUDGE_ID, "x" * 118, "x" * 119, "x" * 128, "x" * 127 + "y"]
    names = [reward_model_name(f"policies/{policy}").removeprefix("rewardModels/") for policy in policies]
    assert names[0] == "served.distilled"
    assert len(set(names)) == len(names)
    assert all(RESOURCE_ID.fullmatch(name) and name != JUDGE_ID for name in names)
