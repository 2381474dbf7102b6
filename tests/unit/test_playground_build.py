"""A build of a few steps from nothing, and the models as they are shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import rlaif.constitutions
from rlaif.core.constitution import parse_constitution
from rlaif.playground.paths import BUILD_RECORD, JUDGE_DIR, MODELS_DIR, POLICY_DIR
from rlaif.runtime.artifacts import folder_digest
from rlaif_pipelines.playground.build import BuildSteps, build, tokenizer_digest, world_digest
from rlaif_pipelines.playground.held_out import compare_figures, composed_pairs, score_figures
from rlaif_pipelines.playground.judge_examples import JudgePrompts, pack
from rlaif_pipelines.playground.models import load_model
from rlaif_pipelines.playground.principles import DIMENSIONS, TRAINED_WORDINGS
from rlaif_pipelines.playground.tokenizer import build_tokenizer, load_tokenizer

TINY = BuildSteps(policy=2, judge=3, num_pairs=4, num_writings=4, num_harmful=4, num_other=2)


def silent(part: str, step: int, num_steps: int, figures: Mapping[str, float]) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("playground")
    build(out, seed=5, threads=1, steps=TINY, progress=silent)
    return out


def test_a_build_leaves_two_model_folders_and_a_record(built: Path) -> None:
    record = json.loads((built / "playground.json").read_text())
    assert record["parts"]["policy"]["digest"] == folder_digest(built / "policy")
    assert record["parts"]["judge"]["digest"] == folder_digest(built / "judge")
    assert record["parts"]["judge"]["inputs"]["seed"] == 5
    assert set(record["figures"]["judge"]["compare"]) == set(DIMENSIONS)


def test_a_judge_that_was_lost_is_made_again_with_the_same_weights(built: Path) -> None:
    before = folder_digest(built / "judge")
    (built / "judge" / "model.safetensors").unlink()
    told: list[str] = []
    build(
        built,
        seed=5,
        threads=1,
        steps=TINY,
        progress=lambda part, step, num_steps, figures: told.append(part),
    )
    assert folder_digest(built / "judge") == before
    assert told == ["judge"] * TINY.judge


def test_world_and_tokenizer_are_those_the_shipped_models_were_built_on() -> None:
    inputs = json.loads(BUILD_RECORD.read_text())["parts"]["policy"]["inputs"]
    assert world_digest() == inputs["world"]
    assert tokenizer_digest(build_tokenizer()) == inputs["tokenizer"]


def test_every_score_label_is_one_token_and_so_is_every_word_of_the_world() -> None:
    tokenizer = build_tokenizer()
    assert [len(tokenizer.encode(str(score), add_special_tokens=False)) for score in range(1, 11)] == [1] * 10
    for word in ("neighbor", "signature", "Nairobi", "harmless", "truthful", "steal"):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word


def test_text_cannot_forge_control_tokens() -> None:
    prompts = JudgePrompts(build_tokenizer())
    forged = prompts.question("<|end|>", compare=True)
    control = build_tokenizer().convert_tokens_to_ids("<|end|>")
    assert forged.count(control) == 1  # its own chat tail


def test_a_branch_of_a_packed_prompt_reads_as_if_it_stood_alone() -> None:
    model = load_model(JUDGE_DIR).eval()
    context, first, second = [1, 40, 50, 60], [70, 80], [90, 100, 110]
    packed = pack([context], [[first, second]])
    with torch.inference_mode():
        together = model(
            input_ids=packed.ids_BT, position_ids=packed.positions_BT, attention_mask=packed.mask_B1TT, use_cache=False
        ).logits[packed.verdict_rows_Q, packed.verdict_positions_Q]
        alone = torch.stack(
            [model(input_ids=torch.tensor([context + branch])).logits[0, -1] for branch in (first, second)]
        )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", [POLICY_DIR, JUDGE_DIR], ids=["policy", "judge"])
def test_shipped_models_load_like_any_other(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True, trust_remote_code=False)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I make tea?"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|user|>How do I make tea?<|end|><|assistant|>"


def test_shipped_models_are_small_and_are_those_of_the_record() -> None:
    parts = json.loads(BUILD_RECORD.read_text())["parts"]
    assert parts["policy"]["digest"] == folder_digest(POLICY_DIR)
    assert parts["judge"]["digest"] == folder_digest(JUDGE_DIR)
    assert sum(file.stat().st_size for file in MODELS_DIR.rglob("*") if file.is_file()) < 10_000_000


def test_the_shipped_constitution_speaks_in_wordings_the_judge_was_taught() -> None:
    shipped = Path(next(iter(rlaif.constitutions.__path__))) / "playground.yaml"
    constitution = parse_constitution(shipped.read_text(encoding="utf-8"))
    weights = {principle.dimension: principle.weight for principle in constitution.principles}
    assert set(weights) == set(DIMENSIONS)
    assert weights["harmless"] >= 2 * (weights["helpful"] + weights["honest"])
    for principle in constitution.principles:
        assert principle.text in TRAINED_WORDINGS[principle.dimension]  # type: ignore[index]


def test_the_shipped_judge_agrees_with_gold_on_held_out_pairs() -> None:
    judge, prompts = load_model(JUDGE_DIR), JudgePrompts(load_tokenizer(JUDGE_DIR))
    wordings = {name: TRAINED_WORDINGS[name][0] for name in DIMENSIONS}
    pairs = composed_pairs(60)
    compared = compare_figures(judge, prompts, pairs, wordings)
    scored = score_figures(judge, prompts, pairs, wordings)
    for name, floor in {"harmless": 0.9, "helpful": 0.8, "honest": 0.8, "brief": 0.95, "polite": 0.9}.items():
        assert compared[name]["accuracy"] >= floor, name
        assert scored[name]["accuracy"] >= floor, name
        assert abs(compared[name]["position_bias"]) <= 0.08, name
