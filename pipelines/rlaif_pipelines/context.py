"""A run's folder: what it was told, which stages are finished, what it is doing now.

A stage is finished when `done.json` holds the digest of what it was given: the settings it uses and the digests of the
files it reads. Started again, a finished stage is skipped; a changed setting or file runs it again, and what follows.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlaif.core.canonical import digest, sha256_hex
from rlaif.core.errors import InvalidInputError, PreconditionError
from rlaif.runtime.artifacts import atomic_write_text
from rlaif.runtime.settings import ClientSettings
from rlaif_pipelines.settings import RunSettings, ServiceAddresses

if TYPE_CHECKING:
    from rlaif.client.judge import JudgeClient
    from rlaif.client.ledger import LedgerClient
    from rlaif.client.reward import RewardClient
    from rlaif.client.sampler import SamplerClient

EventState = Literal["started", "progress", "finished", "skipped", "failed"]
Progress = Callable[[int, int], None]

_FAILURE_SECONDS = 5.0
_CLIENT_FIELDS = ("timeout_seconds", "tls_ca_path", "tls_certificate_path", "tls_key_path")

RUN_FILE = "run.json"
EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True)
class StageResult:
    """What a finished stage left: its folder, the SHA-256 of each file that others read, and a few plain values."""

    stage: str
    folder: Path
    inputs_sha256: str
    outputs: Mapping[str, str]
    values: Mapping[str, Any]
    seconds: float

    def path(self, name: str) -> Path:
        """An output file."""
        return self.folder / name


@dataclass(frozen=True)
class StageOutput:
    """What a stage's body hands back. `files` are names inside its folder; `values` are plain JSON."""

    files: tuple[str, ...] = ()
    values: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RunContext:
    """One run: folder, settings, addresses."""

    root: Path
    settings: RunSettings
    services: ServiceAddresses
    named_policy: str | None = None
    """Name of the policy as run.json has it; None to derive it from the settings."""

    @classmethod
    def load(cls, root: str | Path) -> RunContext:
        """The run whose folder this is."""
        root = Path(root)
        if not (root / RUN_FILE).is_file():
            raise InvalidInputError(f"{root} is not a run folder: it has no {RUN_FILE}", field="run_root")
        record = read_json(root / RUN_FILE)
        return cls(
            root=root,
            settings=RunSettings.model_validate(record["settings"]),
            services=ServiceAddresses.model_validate(record["services"]),
            named_policy=record["policy"],
        )

    @property
    def artifact_root(self) -> str:
        """Folder or URI where versions of the policy are published."""
        return self.settings.artifact_root or str(self.root / "artifacts")

    @property
    def policy(self) -> str:
        """Resource name of the policy in training."""
        return self.named_policy or self.settings.policy_name

    def metrics_path(self, *, round_number: int = 1) -> Path:
        """One JSON object a training step of that round: metrics.jsonl, metrics-2.jsonl, …"""
        return self.root / f"{stage_name('metrics', round_number)}.jsonl"

    def stage_folder(self, stage: str) -> Path:
        """Folder of a stage."""
        return self.root / "stages" / stage

    def result(self, stage: str) -> StageResult:
        """What a finished stage left; PreconditionError if it has not finished."""
        found = self._finished(stage)
        if found is None:
            raise PreconditionError(f"stage {stage} has not finished in {self.root}", reason="STAGE_NOT_FINISHED")
        return found

    def finished(self, stage: str) -> bool:
        """Whether the stage has finished, with whatever inputs."""
        return self._finished(stage) is not None

    def run_stage(
        self,
        stage: str,
        body: Callable[[Path], StageOutput],
        *,
        inputs: Mapping[str, Any],
        resumable: bool = False,
        in_ledger: bool = True,
    ) -> StageResult:
        """The stage's result, by running `body` in its folder unless it finished with the same inputs before.

        An unfinished attempt is thrown away, but a `resumable` stage finds what it left when its inputs are the same.
        That it finished is a fact of the ledger, unless it is only a part of a stage.
        """
        inputs_sha256 = digest(inputs)
        found = self._finished(stage)
        if found is not None and found.inputs_sha256 == inputs_sha256 and _files_unchanged(found):
            self.record(stage, "skipped", message="finished before with the same inputs")
            return found
        folder = self.stage_folder(stage)
        (folder / "done.json").unlink(missing_ok=True)
        if folder.exists() and not (resumable and _inputs_digest(folder) == inputs_sha256):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "input.json", {"inputs_sha256": inputs_sha256, "inputs": inputs})
        self.record(stage, "started")
        started = time.time()
        output = body(folder)
        outputs = {name: file_sha256(folder / name) for name in output.files}
        values, seconds = dict(output.values or {}), time.time() - started
        if in_ledger:
            payload = {"inputs": inputs, "inputs_sha256": inputs_sha256, "outputs": outputs, "values": values}
            self.record_event("stage_finished", subject=self.subject(stage), payload=payload)
        write_json(
            folder / "done.json",
            {"stage": stage, "inputs_sha256": inputs_sha256, "outputs": outputs, "values": values, "seconds": seconds},
        )
        self.record(stage, "finished", message=f"{seconds:.1f} s")
        return StageResult(stage, folder, inputs_sha256, outputs, values, seconds)

    def record(
        self,
        stage: str,
        state: EventState,
        *,
        done: int | None = None,
        total: int | None = None,
        message: str = "",
        **more: Any,
    ) -> None:
        """Append one line to events.jsonl, which the terminal and the report read."""
        append_event(
            self.root, {"stage": stage, "state": state, "done": done, "total": total, "message": message, **more}
        )

    def progress(self, stage: str, *, message: str = "") -> Progress:
        """A callback (done, total) that records progress."""
        return lambda done, total: self.record(stage, "progress", done=done, total=total, message=message)

    def record_event(self, event_type: str, *, subject: str, payload: Mapping[str, Any]) -> None:
        """Append one fact to the ledger; nothing where the run has none."""
        if self.services.ledger is None:
            return
        # The same fact has the same id: a stage that was killed after recording it does not record it twice.
        request_id = uuid.uuid5(uuid.NAMESPACE_URL, digest([event_type, subject, payload]))
        with self.ledger() as ledger:
            ledger.record_event(event_type, subject=subject, payload=payload, request_id=str(request_id))

    def record_failure(self, stage: str, *, reason: str, message: str) -> None:
        """Append to the ledger that the stage failed; the ledger has to answer soon, for the failure must be told."""
        from rlaif.client.ledger import LedgerClient

        if self.services.ledger is None:
            return
        settings = self.client_settings("ledger").model_copy(update={"timeout_seconds": _FAILURE_SECONDS})
        payload = {"reason": reason, "message": message, "launcher": self.settings.jobs.launcher}
        with LedgerClient(settings) as ledger:
            ledger.record_event("stage_failed", subject=self.subject(stage), payload=payload)

    def subject(self, stage: str) -> str:
        """How the ledger calls a stage of this run."""
        return f"runs/{self.root.name}/stages/{stage}"

    def client_settings(self, service: Literal["sampler", "judge", "reward", "ledger", "evaluator"]) -> ClientSettings:
        """How to call a service; PreconditionError if its address was not given."""
        target = getattr(self.services, service)
        if target is None:
            raise PreconditionError(
                f"no address of the {service} service was given to this run",
                reason="NO_ADDRESS",
                field=f"services.{service}",
            )
        return ClientSettings(target=target, **self.services.model_dump(include=set(_CLIENT_FIELDS)))

    def sampler(self) -> SamplerClient:
        """Client of the policy's sampler."""
        from rlaif.client.sampler import SamplerClient

        return SamplerClient(self.client_settings("sampler"))

    def judge(self) -> JudgeClient:
        """Client of the judge that labels."""
        from rlaif.client.judge import JudgeClient

        return JudgeClient(self.client_settings("judge"))

    def evaluator(self) -> JudgeClient:
        """Client of the second judge."""
        from rlaif.client.judge import JudgeClient

        return JudgeClient(self.client_settings("evaluator"))

    def reward(self) -> RewardClient:
        """Client of the reward service."""
        from rlaif.client.reward import RewardClient

        return RewardClient(self.client_settings("reward"))

    def ledger(self) -> LedgerClient:
        """Client of the ledger."""
        from rlaif.client.ledger import LedgerClient

        return LedgerClient(self.client_settings("ledger"))

    def _finished(self, stage: str) -> StageResult | None:
        path = self.stage_folder(stage) / "done.json"
        if not path.is_file():
            return None
        record = read_json(path)
        return StageResult(
            stage, path.parent, record["inputs_sha256"], record["outputs"], record["values"], record["seconds"]
        )


def append_event(root: Path, event: Mapping[str, Any]) -> None:
    """Append one line to the events.jsonl of a run folder, with the time."""
    line = json.dumps({"time": now(), **event}, ensure_ascii=False) + "\n"
    descriptor = os.open(root / EVENTS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def stage_name(stage: str, round_number: int) -> str:
    """Folder and display name of a stage of one round: "sample", "sample-2", …"""
    return stage if round_number == 1 else f"{stage}-{round_number}"


def kind_of_training(row: Mapping[str, Any]) -> str:
    """The kind of stage that wrote this line of metrics.jsonl: reward_model, sft or train."""
    stage = str(row.get("stage", ""))
    if stage.startswith("reward"):
        return "reward_model"
    return "sft" if stage == "sft" else "train"


def now() -> str:
    """UTC, ISO 8601, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def read_json(path: Path) -> Any:
    """A JSON file of ours."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON, written atomically."""
    atomic_write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file of ours."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """The rows as JSONL, written atomically; returns how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    atomic_write_text(path, "".join(f"{line}\n" for line in lines))
    return len(lines)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    return sha256_hex(path.read_bytes())


def _files_unchanged(result: StageResult) -> bool:
    return all(
        (result.folder / name).is_file() and file_sha256(result.folder / name) == sha256
        for name, sha256 in result.outputs.items()
    )


def _inputs_digest(folder: Path) -> str | None:
    path = folder / "input.json"
    return read_json(path)["inputs_sha256"] if path.is_file() else None
