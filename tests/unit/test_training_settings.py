"""What a training is told wrong is refused with the field and the fix, before anything is trained."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlaif.core.errors import SettingsError
from rlaif_pipelines.training.config.common import EngineSettings
from rlaif_pipelines.training.config.example import example
from rlaif_pipelines.training.config.verbs import SETTINGS
from rlaif_pipelines.training.engine import start_processes
from rlaif_pipelines.training.entry import main


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("engine.zero_stge=2", "unknown key engine.zero_stge; did you mean zero_stage?"),
        ("engine.zero_stage=4", "engine.zero_stage: Input should be less than or equal to 3"),
        ("engine.offload=optimizer", "offload moves what ZeRO splits: set zero_stage to 1, 2 or 3"),
        ("engine={offload: optimizer_and_weights, zero_stage: 2}", "set zero_stage to 3"),
        ("engine.attention=flash_attention_2", "needs device cuda and precision bfloat16; or set it to sdpa"),
        ("engine={compile: true, zero_stage: 3}", "set zero_stage to 2 or less, or compile to false"),
        ("engine.lora.rank=0", "engine.lora.rank: Input should be greater than or equal to 1"),
        ("engine.lora.ranks=8", "unknown key engine.lora.ranks; did you mean rank?"),
        ("metrics_address=:9100", "metrics_address: ':9100' is not host:port"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: Input should be greater than 0"),
    ],
)
def test_a_wrong_setting_is_told_with_its_fix(
    override: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "reward.yaml"
    config.write_text(f"out: {tmp_path / 'out'}\npolicy: model\nlabels: labels.jsonl\n")
    assert main(["reward", "--config", str(config), "--set", override]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param(
            {"device": "cuda"},
            r"engine\.device is cuda, but torch sees no GPU here; set it to cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        pytest.param(
            {"device": "cuda", "precision": "bfloat16", "attention": "flash_attention_2"},
            r"engine\.attention is flash_attention_2, but flash-attn is not installed; install it, or set it to sdpa",
            marks=pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed"),
        ),
    ],
)
def test_what_the_machine_lacks_is_told_before_anything_starts(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        start_processes(EngineSettings.model_validate(settings))


@pytest.mark.parametrize("verb", sorted(SETTINGS))
def test_the_example_of_a_verb_shows_every_setting_as_yaml(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--example"]) == 0
    text = capsys.readouterr().out
    values = yaml.safe_load(text)
    assert values.keys() <= SETTINGS[verb].model_fields.keys()
    shown = {line.removeprefix("# ").split(":")[0] for line in text.splitlines()}
    assert SETTINGS[verb].model_fields.keys() <= shown
    assert text == example(SETTINGS[verb])


def test_help_teaches_where_results_go(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(verb in text for verb in SETTINGS)
    assert "training.json" in text
    assert "--example" in text
