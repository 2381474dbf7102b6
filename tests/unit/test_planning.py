"""`rlaif plan`: numbers checked by hand, for a Qwen3-8B policy, a 32 B judge and 100 thousand prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.cli import main
from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif.playground.paths import POLICY_DIR
from rlaif_pipelines.planning import Plan, Planner, PlanOptions, memory, prepare_plan
from rlaif_pipelines.planning.architecture import Architecture
from rlaif_pipelines.planning.hardware import load_hardware
from rlaif_pipelines.planning.models import find_model, known_architectures
from rlaif_pipelines.planning.plan import StageRow
from rlaif_pipelines.planning.timing import Group, decode_batch
from rlaif_pipelines.planning.work import Lengths, Load, comparison_tokens, rating_tokens
from rlaif_pipelines.training.config.common import EngineSettings, LoraSettings

CASE: dict[str, Any] = {
    "policy": "Qwen/Qwen3-8B",
    "judge": "Qwen/Qwen3-32B",
    "sampling": {"num_prompts": 100_000},  # 4 completions of at most 256 tokens, 2 pairs: the defaults
}
LENGTHS = Lengths(
    prompt=200,
    completion=256,
    comparison=100,
    rating=80,
    writing=120,
    comparison_question=60,
    rating_question=50,
    critique=80,
)
POLICY = find_model("Qwen/Qwen3-8B", option="--policy").architecture
JUDGE = find_model("Qwen/Qwen3-32B", option="--judge").architecture
GPU = load_hardware().gpu("h100-80gb")
PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.3-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
}
"""Numbers of weights in the models' published safetensors."""


def planner(**changes: Any) -> Planner:
    values = {key: value for key, value in changes.items() if key in ("algorithm", "reward", "rounds", "rl", "engine")}
    options = PlanOptions(**{key: value for key, value in changes.items() if key not in values})
    return replace(prepare_plan(CASE | values, options), lengths=LENGTHS, num_principles=5)


def row(plan: Plan, stage: str, role: str) -> StageRow:
    [found] = [each for each in plan.stages if (each.stage, each.role) == (stage, role)]
    return found


def test_known_architectures_have_their_published_numbers_of_weights() -> None:
    found = {name: Architecture.from_config(config) for name, config in known_architectures().items()}
    assert {name: shape.num_parameters for name, shape in found.items()} == PUBLISHED
    assert all(shape.exact for shape in found.values())
    # The name says three billion active; embeddings of 0.6e9 are among ours.
    assert found["Qwen/Qwen3-30B-A3B"].num_active_parameters == 3_353_032_704


@pytest.mark.parametrize("kind", ["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_counted_as_transformers_builds_them(kind: str, tied: bool) -> None:
    import torch
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 10}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 80, "vocab_size": 101, "tie_word_embeddings": tied}
    sizes |= {"mixtral": {"num_local_experts": 4}, "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 20}}.get(
        kind, {}
    )
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    # Kinds that take their head's size from the width do not heed head_dim.
    given = json.loads(config.to_json_string())
    assert Architecture.from_config(given).num_parameters == sum(each.numel() for each in model.parameters())


def test_flops_and_cache_follow_from_the_sizes() -> None:
    assert POLICY.num_multiplied == 8_190_735_360 - 151_936 * 4096
    assert POLICY.forward_flops(0) == 2 * 7_568_405_504
    assert POLICY.forward_flops(228) - POLICY.forward_flops(0) == 4 * 36 * 32 * 128 * 228
    assert POLICY.training_flops(228) == 3 * POLICY.forward_flops(228)
    assert POLICY.training_flops(0, checkpointing=True) == 4 * POLICY.forward_flops(0)
    assert POLICY.training_flops(0, adapter=True) == 2 * POLICY.forward_flops(0)
    assert POLICY.cache_bytes_per_token() == 2 * 36 * 8 * 128 * 2 == 147_456
    assert JUDGE.cache_bytes_per_token() == 262_144


def test_an_adapter_has_rank_times_inputs_and_outputs_of_each_layer_s_seven_products() -> None:
    attention = (4096 + 4096) * 2 + (4096 + 1024) * 2
    assert POLICY.adapter_parameters(16) == 16 * 36 * (attention + 3 * (4096 + 12_288))


def test_a_label_costs_two_prefixes_and_each_principle_s_question_twice() -> None:
    assert comparison_tokens(LENGTHS, num_principles=5) == 2 * (100 + 200 + 2 * 256 + 5 * 60) == 2224
    assert rating_tokens(LENGTHS, num_principles=5) == 80 + 200 + 256 + 5 * 50 == 786


def test_lengths_are_measured_on_the_judge_s_own_words(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    principles = [{"id": f"p{number}", "text": "x" * 40 * number} for number in (1, 2)]
    rules.write_text(yaml.safe_dump({"id": "rules", "version": 1, "description": "d", "principles": principles}))
    found = prepare_plan(CASE | {"constitution": str(rules), "judge_template": "compact"}, PlanOptions()).lengths
    # "Principle: " and "\nBetter reply, 1 or 2?" are 33 characters, the principles 60 on average, 4 a token.
    assert found.comparison_question == (33 + 60) / 4
    # "Compare two replies to a user.\n", "User: ", "\nReply 1: ", "\nReply 2: " and "\n".
    assert found.comparison == (31 + 6 + 10 + 10 + 1) / 4


def test_labels_and_tokens_of_every_stage_are_as_counted_by_hand() -> None:
    plan = planner().plan()
    assert plan.labels == 100_000 * 2
    sample = row(plan, "sample", "sampler")
    assert (sample.prefill_tokens, sample.decode_tokens) == (100_000 * 200, 100_000 * 4 * 256)
    assert row(plan, "judge", "judge").prefill_tokens == 200_000 * 2224
    assert row(plan, "reward_model", "trainer").training_tokens == 200_000 * (200 + 2 * 256)
    # 200 steps of 16 prompts with 8 completions; every 5 steps 48 prompts set apart, with 2.
    assert row(plan, "train", "sampler").decode_tokens == (200 * 16 * 8 + 40 * 48 * 2) * 256
    assert row(plan, "train", "judge").prefill_tokens == 200 * 16 * 8 * 786
    assert row(plan, "train", "reward").prefill_tokens == 40 * 48 * 2 * (200 + 256)
    learnt = row(plan, "train", "trainer")
    assert (learnt.prefill_tokens, learnt.training_tokens) == (200 * 16 * (200 + 8 * 256),) * 2
    assert row(plan, "evaluate", "sampler").decode_tokens == 240 * 256


def test_times_follow_from_flops_bandwidth_and_shares() -> None:
    plan = planner().plan()
    # 444.8e6 tokens of 2 · 31 984 210 944 + 4 · 64 · 64 · 128 · 436 FLOPs, at half of 989e12 a second.
    assert row(plan, "judge", "judge").seconds == pytest.approx(58_361.7, rel=1e-5)
    # Reading 20e6 tokens takes 617.6 s. A step of 256 sequences reads 16.381e9 bytes of weights and 256 · 328 · 147 456
    # of cache at 0.6 · 3350e9 a second: 14.310 ms, more than the 7.936 ms of its FLOPs; 102.4e6 tokens take 5724.0 s.
    assert row(plan, "sample", "sampler").seconds == pytest.approx(617.6 + 5724.0, rel=1e-4)
    # 142.4e6 tokens, four times 15.271e9 FLOPs with checkpointing, on 4 GPUs at 0.35 · 989e12.
    assert row(plan, "reward_model", "trainer").seconds == pytest.approx(6282.3, rel=1e-4)
    # 7.1936e6 tokens, read once by the reference and learnt at four times that, on the same GPUs at the same share.
    assert row(plan, "train", "trainer").seconds == pytest.approx(396.7, rel=1e-4)
    # 200 steps write and read 16.381e9 bytes at 1e9 a second.
    assert plan.publish_seconds == pytest.approx(200 * 2 * 16.38147072)
    assert plan.wall_seconds == pytest.approx(sum(each.seconds for each in plan.stages) + plan.publish_seconds)
    assert plan.gpus == 1 + 1 + 1 + 4
    assert plan.usd == pytest.approx(7 * plan.wall_seconds / 3600 * 3.0)
    assert plan.busy_gpu_hours == pytest.approx(sum(each.gpus * each.seconds for each in plan.stages) / 3600)


def test_more_gpus_of_a_role_share_its_work() -> None:
    one, four = planner().plan(), planner(gpus={"judge": 4, "trainer": 8}).plan()
    assert row(four, "judge", "judge").seconds == pytest.approx(row(one, "judge", "judge").seconds / 4)
    trained = row(four, "reward_model", "trainer").seconds
    assert trained == pytest.approx(row(one, "reward_model", "trainer").seconds / 2)
    [judge] = [role for role in four.roles if role.role == "judge"]
    assert (judge.gpus, judge.replicas) == (4, 4)


def test_a_training_step_overlaps_with_the_next_rollouts_at_staleness_1() -> None:
    serial, stale = planner().plan(), planner(rl={"staleness": 1}).plan()
    roles = {role: row(serial, "train", role).seconds for role in ("sampler", "judge", "reward", "trainer")}
    trainer = roles.pop("trainer")
    assert serial.wall_seconds - stale.wall_seconds == pytest.approx(min(trainer, sum(roles.values())))


def test_other_routes_do_other_work() -> None:
    dpo = planner(algorithm="dpo").plan()
    learnt = row(dpo, "train", "trainer")
    assert (learnt.prefill_tokens, learnt.training_tokens) == (200_000 * 712, 200_000 * 712)
    assert {each.role for each in dpo.roles} == {"sampler", "judge", "trainer"}
    assert dpo.publish_seconds == 0
    by_model = planner(reward="model").plan()
    assert row(by_model, "train", "reward").prefill_tokens == 200 * 16 * 8 * 456
    assert row(by_model, "train", "judge").prefill_tokens == 40 * 48 * 2 * 786
    two = planner(rounds=2).plan()
    assert two.labels == 400_000
    assert row(two, "judge-2", "judge").prefill_tokens == 200_000 * 2224
    labels = replace(planner(), settings=prepare_plan(CASE | {"pipeline": "label-only"}, PlanOptions()).settings).plan()
    assert [each.stage for each in labels.stages] == ["sample", "judge"]


def test_a_constitutional_stage_and_a_second_judge_are_planned_too() -> None:
    values = CASE | {"constitutional": {"enabled": True}, "evaluator": "Qwen/Qwen2.5-72B-Instruct"}
    plan = replace(prepare_plan(values, PlanOptions()), lengths=LENGTHS, num_principles=5).plan()
    # 512 replies, 4 rounds, each a critique of 80 tokens and a revision of 256.
    revised = row(plan, "revise", "judge")
    assert revised.decode_tokens == 512 * 4 * (80 + 256)
    assert revised.prefill_tokens == 512 * 4 * (2 * (120 + 200 + 256) + 80)
    assert row(plan, "sft", "trainer").training_tokens == 512 * (200 + 256)
    assert row(plan, "evaluate", "evaluator").prefill_tokens == 240 * 2224
    [evaluator] = [role for role in plan.roles if role.role == "evaluator"]
    assert evaluator.gpus == 4  # 145 GB of weights do not fit on two of 72 usable


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 2, 2, 12 / 8), (1, 2, 2, 12 / 8), (2, 2, 2 / 8, 12 / 8), (3, 2 / 8, 2 / 8, 12 / 8)],
)
def test_training_holds_16_bytes_a_parameter_split_by_zero_stage(
    stage: int, weights: float, gradients: float, optimizer: float
) -> None:
    engine = EngineSettings(device="cuda", precision="bfloat16", zero_stage=stage)
    found = memory.trained(POLICY, engine, gpus=8, has_reference=False, longest=456)
    parameters = 8_190_735_360
    assert (found.weights, found.gradients, found.optimizer) == pytest.approx(
        (weights * parameters, gradients * parameters, optimizer * parameters)
    )


def test_float32_is_16_bytes_too_and_an_adapter_or_offloading_takes_less() -> None:
    plain = memory.trained(POLICY, EngineSettings(), gpus=1, has_reference=True, longest=456)
    assert plain.weights + plain.gradients + plain.optimizer == 16 * 8_190_735_360
    assert plain.reference == 4 * 8_190_735_360
    engine = EngineSettings(device="cuda", precision="bfloat16", lora=LoraSettings(rank=16))
    adapter = memory.trained(POLICY, engine, gpus=1, has_reference=True, longest=456)
    learnt = POLICY.adapter_parameters(16)
    assert adapter.reference == 0  # the policy without its adapter
    assert adapter.weights == 2 * (8_190_735_360 + learnt)
    assert adapter.gradients + adapter.optimizer == 14 * learnt
    engine = EngineSettings(device="cuda", precision="bfloat16", zero_stage=3, offload="optimizer_and_weights")
    offloaded = memory.trained(POLICY, engine, gpus=2, has_reference=False, longest=456)
    assert (offloaded.weights, offloaded.optimizer) == (0, 0)


def test_activations_are_34_bytes_a_layer_or_with_checkpointing_2_and_one_layer() -> None:
    logits = 3 * 64 * 2**20
    engine = EngineSettings(micro_batch_tokens=4096)
    found = memory.trained(POLICY, engine, gpus=1, has_reference=False, longest=456)
    assert found.activations == 36 * 34 * 4096 * 4096 + logits
    engine = EngineSettings(micro_batch_tokens=100, gradient_checkpointing=True)
    found = memory.trained(POLICY, engine, gpus=1, has_reference=False, longest=456)
    assert found.activations == (36 * 2 + 34) * 456 * 4096 + logits  # a longer sequence runs alone


def test_services_keep_what_their_weights_leave_for_keys_and_values() -> None:
    found = memory.served(JUDGE, GPU, gpus=1, sequence=872)
    free = 0.9 * 80e9 - 2 * 32_762_123_264
    sequence = 872 * 262_144
    assert found.weights == 2 * 32_762_123_264
    assert found.cache == free // sequence * sequence
    assert memory.fewest_serving(JUDGE, GPU, sequence=872) == 1
    assert memory.fewest_serving(JUDGE, load_hardware().gpu("l40s-48gb"), sequence=872) == 2
    # 65.5 GB are more than three times 21.6, and 64 heads split evenly over four.
    assert memory.fewest_serving(JUDGE, load_hardware().gpu("l4-24gb"), sequence=872) == 4


def test_sequences_decoded_side_by_side_are_those_that_fit_that_vllm_takes_and_that_there_are() -> None:
    group = Group("h100-80gb", GPU, "x", POLICY, gpus_each=1)
    load = Load("s", "sampler", decode=1, sequence=456, written=256, num_sequences=1e6)
    assert decode_batch(load, group) == 256
    assert decode_batch(replace(load, num_sequences=40), group) == 40
    assert decode_batch(replace(load, sequence=8192), group) == 46  # 55.6e9 bytes hold 46 of 1.208e9
    assert decode_batch(replace(load, num_sequences=40), replace(group, replicas=4)) == 10


def test_measured_rates_of_a_file_come_before_the_formulas_and_are_named(tmp_path: Path) -> None:
    file = tmp_path / "hardware.yaml"
    rate = {"gpu": "h100-80gb", "model": "Qwen/Qwen3-32B", "work": "prefill", "tokens_per_second": 5000}
    file.write_text(
        yaml.safe_dump(
            {
                "rates": [rate | {"measured": True, "source": "our run"}],
                "efficiencies": {"decode": {"share": 0.3, "measured": False, "source": "careful"}},
            }
        )
    )
    plan = planner(hardware=file, price=2.5).plan()
    assert row(plan, "judge", "judge").seconds == 200_000 * 2224 / 5000
    assert "prefill of Qwen/Qwen3-32B at 5000 tokens/s a GPU: our run; measured by us" in plan.assumptions
    assert "decode at 30% careful; not measured by us" in plan.assumptions
    assert plan.usd == pytest.approx(7 * plan.wall_seconds / 3600 * 2.5)


def test_a_prompts_file_bounds_the_sizes_and_gives_the_lengths(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "{number:03d} {"x" * 396}"}}\n' for number in range(50)))
    found = prepare_plan(CASE | {"prompts": str(file)}, PlanOptions())
    assert found.lengths.prompt == 100
    assert found.settings.sampling.num_prompts + found.settings.evaluation.num_other == 50
    assert any("fewer than the 100000" in remark for remark in found.remarks)


def test_models_are_found_in_folders_by_name_and_by_hand(tmp_path: Path) -> None:
    by_hand = "num_hidden_layers=2,hidden_size=64,num_attention_heads=4,vocab_size=100,tie_word_embeddings=true"
    assert find_model(by_hand, option="--policy").architecture.num_kv_heads == 4
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"text_config": dict(known_architectures()["Qwen/Qwen3-8B"])}))
    assert find_model(str(folder), option="--policy").architecture == POLICY
    assert find_model("qwen3-8b-base", option="--policy").architecture == POLICY
    assert find_model("meta-llama/Llama-3.1-8B-Instruct", option="--policy").architecture.num_layers == 32
    assert find_model(str(POLICY_DIR), option="--policy").architecture.exact


def test_of_a_model_on_object_storage_the_configuration_alone_is_read() -> None:
    import fsspec

    config = json.dumps(dict(known_architectures()["Qwen/Qwen3-8B"]))
    fsspec.filesystem("memory").pipe("/planned/policy/config.json", config.encode())
    found = find_model("memory://planned/policy", option="--policy")
    assert (found.name, found.architecture) == ("policy", POLICY)
    with pytest.raises(InvalidInputError, match="--policy memory://planned/none"):
        find_model("memory://planned/none", option="--policy")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is no JSON object"),
        ("[]", "is no JSON object"),
        ('{"n_embd": 4}', "config.json has no num_hidden_layers, hidden_size, .*give the sizes by hand: num_hidden"),
        (
            '{"hidden_size": 0, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 1}',
            "hidden_size = 0: must",
        ),
        (None, "the folder holds no config.json"),
    ],
)
def test_a_configuration_that_is_none_is_named(config: str | None, said: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(InvalidInputError, match=said):
        find_model(str(tmp_path), option="--judge")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("gpu: {}", "there is no 'gpu'; there are gpus, efficiencies, rates"),
        ("gpus: {x: {tflops: -1}}", r"gpus\.x\."),
        ("gpus: 3", "gpus must be a mapping"),
        ("[", "is not YAML"),
    ],
)
def test_a_table_that_is_none_is_named(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "hardware.yaml"
    file.write_text(content)
    with pytest.raises((SettingsError, InvalidInputError), match=said):
        load_hardware(file)


COMMAND = ["plan", "--policy", "Qwen/Qwen3-8B", "--judge", "Qwen/Qwen3-32B", "--num-prompts", "100000"]


def test_the_command_prints_the_plan_and_what_it_rests_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(COMMAND) == 0
    out = capsys.readouterr().out
    for said in ("200,000", "16:44", "trainer    4", "not measured by us", "--set engine.device=cuda", "USD"):
        assert said in out


def test_the_command_prints_json_and_heeds_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus", "judge=4", "--price", "2", "--prompt-tokens", "100", "--completion-tokens", "50", "--json"]
    assert main.execute([*COMMAND, *options, "--set", "engine.zero_stage=2", "--steps", "10"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["labels"] == 200_000
    assert {role["role"]: role["gpus"] for role in plan["roles"]}["judge"] == 4
    assert plan["usd"] == pytest.approx(plan["held_gpu_hours"] * 2)
    [sample] = [stage for stage in plan["stages"] if stage["stage"] == "sample"]
    assert (sample["prefill_tokens"], sample["decode_tokens"]) == (10_000_000, 20_000_000)
    assert any("ZeRO stage 2" in sentence for sentence in plan["assumptions"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--policy", "Qwen/Qwen3-9B"],
            "(did you mean Qwen/Qwen3-8B?); give a folder with its config.json, or its sizes",
        ),
        (["--judge", "./nowhere"], "--judge ./nowhere: is not known without a network"),
        (["--gpu", "h100"], "--gpu h100: is not in the table"),
        (["--gpu", "l4-24gb"], "are whole on each GPU when a training starts, 33 GB, and a GPU has 24 GB"),
        (["--gpus", "trainer=2"], "--gpus trainer=2: Qwen/Qwen3-8B needs 4 of h100-80gb at least"),
        (["--gpu", "l40s-48gb", "--gpus", "judge=3"], "takes 2 of l40s-48gb, so give a multiple"),
        (["--gpus", "jugde=2"], "--gpus jugde=2: must be ROLE=N"),
        (["--set", "rl.steps=0"], "rl.steps = 0"),
        (["--set", "engine=3"], "engine = 3: input should be"),
        (["--hardware", "/dev/zero"], "--hardware /dev/zero: is longer than 1,048,576 bytes"),
        (["--set", "pipeline=judge-benchmark", "--set", "pairs.path=x"], "not judge-benchmark"),
        (["--constitution", "nowhere"], "shipped are code-review, harmless-only, helpful-harmless"),
        (["--hardware", "nowhere.yaml"], "--hardware nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute([*COMMAND, *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
