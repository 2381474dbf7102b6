"""The life of one `rlaif run`: check, lock, start services, run the pipeline, show it, stop everything, report."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from rich.console import Console

from rlaif.cli import exits
from rlaif.cli.addresses import Announcement, module_of
from rlaif.cli.display import Display, open_display, summary_panel
from rlaif.cli.folder import check_folder, clear, locked
from rlaif.cli.follow import follow_pipeline
from rlaif.cli.inputs import PLAYGROUND
from rlaif.cli.memory import PeakMemory
from rlaif.cli.processes import ProcessFamily, child_environment, num_cores
from rlaif.cli.progress import RunProgress, planned_stages
from rlaif.cli.published import check_unpublished, remove_published
from rlaif.cli.run_inputs import CheckedRun, check_inputs
from rlaif.cli.services import StackSettings, check_engine, start_stack
from rlaif.engine.settings import EngineKind
from rlaif.runtime.artifacts import atomic_write_text
from rlaif_pipelines.context import RUN_FILE, read_json, write_json
from rlaif_pipelines.settings import RunSettings, ServiceAddresses
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.prepare import create_run


@dataclass(frozen=True)
class RunOptions:
    """What shapes the command, not the run."""

    num_threads: int = 0
    restart: bool = False
    plain: bool = False
    engine: EngineKind = "hf"


def run_loop(values: Mapping[str, Any], *, changes: Sequence[str], options: RunOptions) -> int:
    """Run to the end and return the exit code."""
    with _signals_as_errors():
        check_engine(options.engine)
        checked = check_inputs(values, changes=changes)
        plain_settings = checked.settings.model_dump(mode="json")
        check_folder(checked.root, settings=plain_settings, restart=options.restart)
        with locked(checked.root):
            continued = check_folder(checked.root, settings=plain_settings, restart=options.restart)
            if options.restart:
                remove_published(checked.root)
                clear(checked.root)
            if not continued:
                check_unpublished(checked.settings)
            return _run_locked(checked, options=options, continued=continued)


def _run_locked(checked: CheckedRun, *, options: RunOptions, continued: bool) -> int:
    settings, root = checked.settings, checked.root
    num_threads = options.num_threads or num_cores()
    environment = child_environment(os.environ, num_threads=num_threads, offline=checked.offline)
    stack = _stack_settings(checked, num_threads=num_threads, engine=options.engine)
    console, memory, started = Console(), PeakMemory(), time.time()
    progress = RunProgress.of(
        planned_stages(
            rounds=settings.rounds,
            trains_reward_model=settings.trains_reward_model,
            constitutional=settings.constitutional_stage,
            pipeline=settings.pipeline,
        )
    )
    create_run(settings, ServiceAddresses())
    _keep_constitution(settings)
    try:
        with _shown(
            progress, title=_title(settings, continued=continued), console=console, plain=options.plain
        ) as display:
            for remark in checked.remarks:
                display.say(remark)
            with ProcessFamily(owner=f"run:{root}") as family:
                found = start_stack(
                    stack,
                    launch=lambda name, config: family.start(
                        name,
                        module_of(name),
                        "--config",
                        str(config),
                        log_path=stack.log_path(name),
                        environment=environment,
                    ),
                    told=lambda name: display.say(f"{name} is healthy"),
                )
                create_run(settings, _addresses(found, checked))
                code = follow_pipeline(
                    root,
                    rounds=settings.rounds,
                    family=family,
                    environment=environment,
                    progress=progress,
                    display=display,
                    memory=memory,
                )
    except BaseException as error:
        with contextlib.suppress(Exception):  # what ended the run must be told, not what followed from it
            code, message = exits.exit_code_of(error), str(error) or type(error).__name__
            _record_attempt(root, options, started=started, code=code, message=message, peak_bytes=memory.peak_bytes)
            _build_report(root)
        if isinstance(error, exits.InterruptedRunError):
            raise exits.InterruptedRunError(
                f"{error.message}; the same command with the same --out continues: --out {settings.out}"
            ) from None
        raise
    _record_attempt(root, options, started=started, code=code, peak_bytes=memory.peak_bytes)
    report = _build_report(root)
    console.print(summary_panel(report, report_path=settings.out / "report.html", seconds=time.time() - started))
    return code


@contextlib.contextmanager
def _shown(progress: RunProgress, *, title: str, console: Console, plain: bool) -> Iterator[Display]:
    display = open_display(progress, title=title, console=console, plain=plain)
    try:
        yield display
    finally:
        display.close()


def _stack_settings(checked: CheckedRun, *, num_threads: int, engine: EngineKind) -> StackSettings:
    settings = checked.settings
    return StackSettings(
        folder=checked.root,
        policy=settings.policy_uri,
        policy_name=settings.policy_name,
        judge=settings.judge_uri,
        constitution=settings.constitution,
        template=settings.judge_template,
        num_threads=num_threads,
        engine=engine,
        evaluator=checked.evaluator_model,
        evaluator_template="compact" if settings.evaluator == PLAYGROUND else "standard",
        published_to=settings.artifact_root,
    )


def _addresses(found: Mapping[str, Announcement], checked: CheckedRun) -> ServiceAddresses:
    evaluator = found["evaluator"].address if "evaluator" in found else checked.evaluator_address
    return ServiceAddresses(
        sampler=found["sampler"].address,
        judge=found["judge"].address,
        reward=found["reward"].address,
        ledger=found["oversight"].address,
        evaluator=evaluator,
    )


def _title(settings: RunSettings, *, continued: bool) -> str:
    given = settings.pairs.path if settings.pairs else settings.prompts
    world = "playground" if given is None else str(given)
    routes = {
        "judge": "GRPO on the judge's score",
        "model": "GRPO on a reward model",
        "dpo": "DPO on the labels",
        "sft": "constitutional stage",
    }
    route = routes[settings.route]
    if settings.constitutional_stage == "first":
        route = f"constitutional stage, then {route}"
    if settings.pipeline != "rlaif":
        route = settings.pipeline
    verb = "continuing" if continued else "rlaif run"
    return f"{verb} · {world} · {route} · seed {settings.seed} · {settings.out}"


def _record_attempt(
    root: Path, options: RunOptions, *, started: float, code: int, peak_bytes: int, message: str = ""
) -> None:
    """What this start of the command cost, into run.json; nobody else writes it once the pipeline has ended."""
    record = read_json(root / RUN_FILE)
    attempt = {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "engine": options.engine,
        "exit_code": code,
        "message": message,
        "peak_rss_bytes": peak_bytes,
    }
    attempts = [*record.get("attempts", []), attempt]
    write_json(
        root / RUN_FILE,
        record
        | {
            "attempts": attempts,
            "peak_rss_bytes": max(each["peak_rss_bytes"] for each in attempts),
        },
    )


def _keep_constitution(settings: RunSettings) -> None:
    """A copy in the run folder, so that the folder alone says by which principles was judged."""
    constitution = load_constitution(settings.constitution)
    document = {
        "id": constitution.constitution_id,
        "version": constitution.version,
        "description": constitution.description,
        "principles": [
            {"id": each.principle_id, "text": each.text, "weight": each.weight, "dimension": each.dimension}
            for each in constitution.principles
        ],
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    atomic_write_text(settings.out.absolute() / "constitution.yaml", text)


def _build_report(root: Path) -> dict[str, Any]:
    """The report once more: only now the time and memory of the whole run are known."""
    from rlaif_pipelines.report import build

    build(root)
    report: dict[str, Any] = read_json(root / "report.json")
    return report


@contextlib.contextmanager
def _signals_as_errors() -> Iterator[None]:
    """SIGTERM and a closed terminal end the run as Ctrl-C does: through the clean-up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        raise exits.InterruptedRunError(f"interrupted by {signal.Signals(number).name}")

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
