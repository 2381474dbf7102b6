"""Which calibrations a judge takes, and what they do to its labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from judge_fakes import CONSTITUTION, DECODING, QUESTION, MemoryLedger, ScriptedEngine, make_judge
from rlaif.core.calibration import Calibration, CalibrationKey, CalibrationScores
from rlaif.core.errors import SettingsError
from rlaif.core.template import COMPACT
from rlaif.judge.calibrating import load_calibrations
from rlaif.judge.tasks import Candidate, JudgingOptions, Reasoning
from rlaif.v1 import judge_service_pb2

PAIR = Candidate(QUESTION, ("Mix.", "No."))
SCORES = CalibrationScores(brier=0.2, nll=0.5, ece=0.1)
# σ(logit(0.9) / 2) = 0.75
HALVED = Calibration(
    key=CalibrationKey("d" * 64, COMPACT.sha256, CONSTITUTION.sha256),
    constitution=CONSTITUTION.name,
    method="temperature",
    temperature=2.0,
    knots=(),
    num_labels=60,
    num_folds=5,
    before=SCORES,
    after=SCORES,
)


def written(folder: Path, calibration: Calibration, name: str = "calibration.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(calibration.to_json()))
    return path


def load(*paths: Path, **changes: object):
    loaded: dict[str, object] = {
        "judge_digest": "d" * 64,
        "template_sha256s": (COMPACT.sha256, COMPACT.reasoning_sha256),
        "constitutions": {CONSTITUTION.name: CONSTITUTION.sha256},
    }
    return load_calibrations(paths, **(loaded | changes))  # type: ignore[arg-type]


def sure(context: str, question: str) -> tuple[float, float]:
    return (0.9, 0.1) if "Reply 1: Mix" in context else (0.1, 0.9)


async def verdict_of(calibrations, options: JudgingOptions = JudgingOptions(), ledger=None):  # noqa: B008
    engine = ScriptedEngine(sure, write=lambda prompt, index: "Mixing is good.")
    judge = make_judge(engine, ledger, calibrations=calibrations)
    return (await judge.decide([PAIR], constitution=CONSTITUTION, options=options))[0]


async def test_a_calibration_is_applied_named_and_part_of_the_label(tmp_path: Path):
    ledger = MemoryLedger()
    calibrated = await verdict_of(load(written(tmp_path, HALVED)), ledger=ledger)
    assert calibrated.verdict.probability_first == pytest.approx(0.75)
    assert calibrated.verdict.raw_probability_first == pytest.approx(0.9)
    assert calibrated.verdict.calibration == HALVED.name
    plain = await verdict_of({}, ledger=ledger)
    assert not plain.recorded_before
    assert (plain.verdict.probability_first, plain.verdict.calibration) == (pytest.approx(0.9), "")
    other = await verdict_of(load(written(tmp_path, replace(HALVED, temperature=3.0))), ledger=ledger)
    assert len({decision.label.name for decision in (calibrated, plain, other)}) == 3


async def test_a_calibration_of_reasoned_verdicts_takes_the_place_of_the_clamp(tmp_path: Path):
    key = replace(HALVED.key, template_sha256=COMPACT.reasoning_sha256)
    calibrations = load(written(tmp_path, replace(HALVED, key=key)))
    reasoning = JudgingOptions(reasoning=Reasoning(1, DECODING))
    assert (await verdict_of({}, reasoning)).verdict.probability_first == 0.6
    assert (await verdict_of(calibrations, reasoning)).verdict.probability_first == pytest.approx(0.75)
    assert (await verdict_of(calibrations)).verdict.calibration == ""


async def test_an_abstention_is_not_calibrated(tmp_path: Path):
    options = JudgingOptions(min_verdict_mass=1.0)
    verdict = (await verdict_of(load(written(tmp_path, HALVED)), replace(options, seed=1))).verdict
    assert verdict.preference == judge_service_pb2.PREFERENCE_FIRST
    judge = make_judge(ScriptedEngine(lambda c, q: (0.2, 0.2)), calibrations=load(written(tmp_path, HALVED)))
    [decision] = await judge.decide([PAIR], constitution=CONSTITUTION, options=options)
    assert decision.verdict.calibration == ""
    assert not decision.verdict.HasField("probability_first")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge_digest": "e" * 64}, "stale: it was fitted on the judge dddddddddddd, not eeeeeeeeeeee"),
        ({"judge_digest": ""}, "unknown weights"),
        ({"template_sha256s": ("f" * 64,)}, "stale: it was fitted on the template"),
        ({"constitutions": {CONSTITUTION.name: "0" * 64}}, "constitutions/test .*which is now 000000000000"),
        ({"constitutions": {}}, "which is not loaded"),
    ],
)
def test_a_stale_calibration_stops_the_start(tmp_path: Path, changes: dict[str, object], words: str):
    with pytest.raises(SettingsError, match=words) as caught:
        load(written(tmp_path, HALVED), **changes)
    assert caught.value.field == "calibrations"


def test_files_that_are_no_calibration_stop_the_start(tmp_path: Path):
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"bad\.json"):
        load(tmp_path / "bad.json")
    twice = [written(tmp_path, HALVED, "a.json"), written(tmp_path, replace(HALVED, temperature=3.0), "b.json")]
    with pytest.raises(SettingsError, match="two calibrations hold for constitutions/test"):
        load(*twice)
