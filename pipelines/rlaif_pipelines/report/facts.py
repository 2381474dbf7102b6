"""What a run folder tells: read as it is, however far the run came. What is not there is None or empty."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rlaif.core.constitution import Constitution, parse_constitution
from rlaif.core.errors import InvalidInputError, RlaifError
from rlaif_pipelines.context import kind_of_training

Outcome = Literal["finished", "gated", "failed", "unfinished"]

_STAGE: Final = re.compile(r"(?P<name>[a-z_]+)(-(?P<round>\d+))?")


@dataclass(frozen=True)
class StageFacts:
    """One stage: its last state in events.jsonl, its seconds when it finished, and the values it left."""

    name: str
    kind: str
    """Name without the round's number."""
    round_number: int
    state: str
    message: str
    seconds: float | None
    values: Mapping[str, Any]
    outputs: Mapping[str, str]
    """SHA-256 of each file it left."""


@dataclass(frozen=True)
class RunFacts:
    """Everything the report is made of."""

    root: Path
    record: Mapping[str, Any]
    """run.json."""
    stages: Mapping[str, StageFacts]
    gates: Mapping[int, Mapping[str, Any]]
    """gate.json of each round."""
    evaluations: Mapping[int, Mapping[str, Any]]
    """evaluation.json of each round."""
    labels: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    """Training steps in order, each with its `round` and its `kind`: train, sft or reward_model."""
    constitution: Constitution | None
    benchmark: Mapping[str, Any] | None = None
    """benchmark.json, where the judge was held against given labels."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """RunSettings as plain values."""
        found: Mapping[str, Any] = self.record.get("settings", {})
        return found

    @property
    def digests(self) -> Mapping[str, Any]:
        """What `prepare` identified."""
        found: Mapping[str, Any] = self.record.get("digests", {})
        return found

    @property
    def pipeline(self) -> str:
        """Which of the pipelines it went through."""
        return str(self.settings.get("pipeline", "rlaif"))

    @property
    def playground(self) -> bool:
        """Whether the prompts have gold rules."""
        return self.settings.get("prompts") is None

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """Of the last round that has one."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else None

    @property
    def gate(self) -> Mapping[str, Any] | None:
        """Of the last round that has one."""
        return self.gates[max(self.gates)] if self.gates else None

    @property
    def of_last_round(self) -> str:
        """What figures of one round are called beside those of several: " of round 2"; empty where one is all."""
        done = {*self.gates, *self.evaluations}
        return f" of round {max(done)}" if len(done) > 1 else ""

    @property
    def gated(self) -> Sequence[str]:
        """Why a gate, of revisions or of the last round's labels, let nothing train; empty where none stands closed."""
        revisions = self.stages.get("revision_gate")
        if revisions is not None and revisions.values.get("passed") is False:
            return list(revisions.values["reasons"])
        return list(self.gate["reasons"]) if self.gate is not None and not self.gate["passed"] else []

    @property
    def constitutional(self) -> Mapping[str, Any] | None:
        """What the constitutional stage did: counts, the gate's word, how the fine-tuning went; None without one."""
        if "revise" not in self.stages:
            return None
        found: dict[str, Any] = dict(self.stages["revise"].values)
        for stage in ("revision_gate", "sft"):
            if stage in self.stages:
                found[stage] = self.stages[stage].values
        return found

    @property
    def failure(self) -> StageFacts | None:
        """The stage that failed, the report aside."""
        return next((each for each in self.stages.values() if each.state == "failed" and each.kind != "report"), None)

    @property
    def last_error(self) -> str | None:
        """What ended the last start of the command, if it did not end well and was not interrupted."""
        attempts = self.record.get("attempts") or [{}]
        wrong = attempts[-1].get("exit_code") in (1, 2)
        return attempts[-1].get("message") or "it says no more" if wrong else None

    @property
    def guard(self) -> str | None:
        """Why a guard stopped training, of the last round that it stopped."""
        stopped = [stage.values.get("stopped_by") for stage in self.stages.values() if stage.kind == "train"]
        return next((reason for reason in reversed(stopped) if reason), None)

    @property
    def outcome(self) -> Outcome:
        """How far the run came."""
        if self.failure is not None or self.last_error is not None:
            return "failed"
        if self.gated:
            return "gated"
        rounds = int(self.settings.get("rounds", 1))
        done = {"label-only": self.gate is not None, "judge-benchmark": self.benchmark is not None}
        return "finished" if done.get(self.pipeline, rounds in self.evaluations) else "unfinished"


def read_run(root: Path) -> RunFacts:
    """The facts of a run folder; it needs no more than run.json. InvalidInputError where that is not whole."""
    record = _read(root / "run.json")
    if not isinstance(record, dict):
        raise InvalidInputError(f"{root} is not a run folder: its run.json is missing or not whole", field="folder")
    stages = _stages(root)
    return RunFacts(
        root=root,
        record=record,
        stages=stages,
        gates=_by_round(root, "gate", "gate.json"),
        evaluations=_by_round(root, "evaluate", "evaluation.json"),
        labels=list(read_lines(root / "labels.jsonl")),
        metrics=list(_metrics(root)),
        constitution=_constitution(root, record),
        benchmark=_read(root / "stages" / "benchmark" / "benchmark.json") if "benchmark" in stages else None,
    )


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file that may be missing, or end in half a line where the writer was killed."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def split_name(stage: str) -> tuple[str, int]:
    """ "judge-2" is judge of round 2."""
    match = _STAGE.fullmatch(stage)
    if match is None:
        return stage, 1
    return match["name"], int(match["round"] or 1)


def _stages(root: Path) -> dict[str, StageFacts]:
    states: dict[str, tuple[str, str]] = {}
    for event in read_lines(root / "events.jsonl"):
        name, state = event["stage"], event["state"]
        if ".part-" in name:
            continue
        if state in ("started", "finished", "skipped", "failed"):
            states[name] = (state, event.get("message") or "")
    found = {}
    for name, (state, message) in states.items():
        kind, round_number = split_name(name)
        done = _read(root / "stages" / name / "done.json") or {}
        if state == "skipped":
            state = "finished"
        found[name] = StageFacts(
            name=name,
            kind=kind,
            round_number=round_number,
            state=state,
            message=message,
            seconds=done.get("seconds"),
            values=done.get("values") or {},
            outputs=done.get("outputs") or {},
        )
    return found


def _by_round(root: Path, stage: str, file: str) -> dict[int, Mapping[str, Any]]:
    found = {}
    for path in sorted((root / "stages").glob(f"{stage}*/{file}")):
        kind, round_number = split_name(path.parent.name)
        if kind == stage and (path.parent / "done.json").is_file():
            found[round_number] = _read(path) or {}
    return dict(sorted(found.items()))


def _metrics(root: Path) -> Iterator[dict[str, Any]]:
    """Steps of metrics.jsonl, metrics-2.jsonl, …; of a step that was done again the later line counts."""
    for path in sorted(root.glob("metrics*.jsonl"), key=lambda path: split_name(path.stem)[1]):
        latest = {(row.get("stage"), row.get("step")): row for row in read_lines(path) if row.get("step")}
        for _, row in sorted(latest.items(), key=lambda item: (str(item[0][0]), item[0][1])):
            yield row | {"round": split_name(path.stem)[1], "kind": kind_of_training(row)}


def _constitution(root: Path, record: Mapping[str, Any]) -> Constitution | None:
    """The copy in the run folder if it is the one that was used."""
    path = root / "constitution.yaml"
    if not path.is_file():
        return None
    try:
        found = parse_constitution(path.read_text(encoding="utf-8"), source=path.name)
    except RlaifError:
        return None
    wanted = record.get("digests", {}).get("constitution_sha256")
    return found if wanted in (None, found.sha256) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found
