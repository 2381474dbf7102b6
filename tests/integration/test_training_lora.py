"""Training an adapter in place of the weights: what is published, served and written speaks as what was trained."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model_fixtures import model_folder as model_folder
from rlaif.client.sampler import SamplerClient
from rlaif.core.conversation import Message
from rlaif.core.errors import SettingsError
from rlaif.runtime.artifacts import folder_digest, read_desired
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ListenSettings
from rlaif.sampler.process import make_service
from rlaif.sampler.settings import SamplerSettings
from rlaif_pipelines.evaluation.reference import completion_logprobs
from rlaif_pipelines.training import dpo, reward, rl
from rlaif_pipelines.training.config.common import LoraSettings
from rlaif_pipelines.training.config.dpo import DpoTraining
from rlaif_pipelines.training.config.reward import RewardTraining
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.errors import GuardError
from rlaif_pipelines.training.lora import adapter_off
from rlaif_pipelines.training.model import Base, load_policy, open_base
from training_fakes import GUARDS_OFF, FakeRewards, label, prompt, write_lines

POLICY = "policies/test"
LORA = {"rank": 4, "alpha": 16}
ENGINE = {"num_threads": 1, "attention": "eager", "lora": LORA}


def sampler_settings(root: Path, model: Path) -> SamplerSettings:
    values = {
        "model": str(model),
        "policy": POLICY,
        "artifact_root": root / "artifacts",
        "engine": {"num_threads": 1},
        "listen": ListenSettings(metrics_address=None),
    }
    return SamplerSettings.model_validate(values)


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def rl_settings(root: Path, model: Path, *, target: str, **changes: Any) -> RlTraining:
    values = {
        "out": root / "out",
        "policy": str(model),
        "publish": {"artifact_root": root / "artifacts", "policy": POLICY},
        "prompts": write_lines(root / "prompts.jsonl", [prompt(n) for n in range(8)]),
        "sampler": {"target": target},
        "rewards": {"target": "unused"},
        "reward": {"name": "rewardModels/fake"},
        "num_steps": 3,
        "prompts_per_step": 4,
        "group_size": 4,
        "quorum": 2,
        "max_tokens": 12,
        "guards": GUARDS_OFF,
        "engine": ENGINE,
        "optimizer": {"learning_rate": 2e-2},
    }
    return RlTraining.model_validate(values | changes)


def draw(settings: RlTraining) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...]]], list[list[float]]]:
    """Sequences drawn from what the sampler serves, and the log-probabilities that it tells of them."""
    with SamplerClient(settings.sampler) as sampler:
        batch = sampler.sample(
            POLICY,
            [(Message("user", "How do I boil water?"),)],
            num_completions=4,
            max_tokens=12,
            temperature=1.0,
            seed=1,
            min_policy_version=1,
        )
    (completions,) = batch.completions
    sequences = [(batch.prompt_token_ids[0], completion.token_ids) for completion in completions]
    return sequences, [list(completion.logprobs) for completion in completions]


def assert_served_as_written(settings: RlTraining, sequences: Any, told: list[list[float]]) -> None:
    merged = completion_logprobs(str(settings.out / "model"), sequences)
    start = completion_logprobs(settings.policy, sequences)
    for ours, theirs, before in zip(merged, told, start, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert ours != pytest.approx(before, abs=1e-2)


def train(settings: RlTraining) -> dict[str, Any]:
    with SamplerClient(settings.sampler) as sampler:
        return dict(rl.train(settings, sampler=sampler, rewards=FakeRewards()))


async def test_an_adapter_learns_by_rl_and_is_served_as_the_merged_model_speaks(
    tmp_path: Path, model_folder: Path
) -> None:
    base_before = folder_digest(model_folder)
    service = sampler_settings(tmp_path, model_folder)
    async with serving(make_service(service), service.listen) as server:
        settings = rl_settings(tmp_path, model_folder, target=server.address)
        results = await asyncio.to_thread(train, settings)
        drawn = await asyncio.to_thread(draw, settings)
    served = read_desired(tmp_path / "artifacts", POLICY)
    assert served is not None
    assert (served.version, served.digest) == (3, results["digest"])
    assert names_in(served.uri) == {"adapter_config.json", "adapter_model.safetensors", "base.json", "README.md"}
    assert folder_digest(tmp_path / "out" / "adapter") == served.digest
    assert_served_as_written(settings, *drawn)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)  # to the policy without its adapter
    assert lines[2]["kl"] > 1e-3
    assert folder_digest(model_folder) == base_before


async def test_a_guard_goes_back_to_an_older_adapter_and_its_merged_model(tmp_path: Path, model_folder: Path) -> None:
    service = sampler_settings(tmp_path, model_folder)
    guards = {**GUARDS_OFF, "kl": {"limit": 0.01}}
    async with serving(make_service(service), service.listen) as server:
        settings = rl_settings(tmp_path, model_folder, target=server.address, num_steps=9, guards=guards)
        with pytest.raises(GuardError):
            await asyncio.to_thread(train, settings)
        drawn = await asyncio.to_thread(draw, settings)
    served = read_desired(tmp_path / "artifacts", POLICY)
    assert served is not None
    assert folder_digest(tmp_path / "out" / "adapter") == served.digest
    assert_served_as_written(settings, *drawn)


def test_dpo_trains_an_adapter_as_small_as_its_rank(tmp_path: Path, model_folder: Path) -> None:
    labels = write_lines(tmp_path / "labels.jsonl", [label(n) for n in range(96)])
    settings = DpoTraining.model_validate(
        {
            "out": tmp_path / "out",
            "policy": str(model_folder),
            "labels": labels,
            "num_epochs": 3,
            "batch_pairs": 16,
            "held_out_fraction": 0.2,
            "engine": ENGINE | {"lora": LORA | {"target_modules": ["q_proj", "v_proj"]}},
            "optimizer": {"learning_rate": 2e-2},
        }
    )
    assert dpo.run(settings)["accuracy"] == 1.0
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "v_proj"}
    assert min(min(tensor.shape) for tensor in adapter.values()) == LORA["rank"]
    plain, merged = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "out" / "model"))
    assert plain.keys() == merged.keys()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert all("q_proj" in name or "v_proj" in name for name in changed)
    assert changed


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_reward_model_by_an_adapter_is_a_plain_classifier(
    zero_stage: int, tmp_path: Path, model_folder: Path
) -> None:
    labels = write_lines(tmp_path / "labels.jsonl", [label(n) for n in range(96)])
    settings = RewardTraining.model_validate(
        {
            "out": tmp_path / "out",
            "policy": str(model_folder),
            "labels": labels,
            "num_epochs": 4,
            "batch_pairs": 16,
            "held_out_fraction": 0.2,
            "principle_loss_weight": 0.0,
            "engine": ENGINE | {"zero_stage": zero_stage},
            "optimizer": {"learning_rate": 1e-2},
        }
    )
    assert reward.run(settings)["accuracy"] == 1.0
    trained = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in trained)
    assert trained["score.weight"].shape[0] == 1
    assert not (tmp_path / "out" / "adapter").exists()
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]


def adapted(base: Base, **changes: Any) -> Any:
    lora = LoraSettings.model_validate(LORA | changes)
    return load_policy(base, precision="float32", attention="eager", lora=lora, seed=1).eval()


def test_without_its_adapter_a_model_speaks_as_before(model_folder: Path) -> None:
    base = open_base(str(model_folder))
    plain, model = load_policy(base, precision="float32", attention="eager").eval(), adapted(base)
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        before = plain(ids).logits
        assert torch.equal(model(ids).logits, before)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (".lora_" in name)
            if ".lora_B." in name:
                parameter.normal_()
        assert not torch.allclose(model(ids).logits, before, atol=1e-2)
        with adapter_off(model):
            assert torch.equal(model(ids).logits, before)
        assert not torch.allclose(model(ids).logits, before, atol=1e-2)


def test_the_seed_alone_decides_how_an_adapter_begins(model_folder: Path) -> None:
    base = open_base(str(model_folder))
    first, again = (adapted(base).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_layers_that_are_not_there_are_refused_with_those_that_are(model_folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"engine\.lora\.target_modules.*q_prog.*linear layers are .*q_proj"):
        adapted(open_base(str(model_folder)), target_modules=["q_prog"])
