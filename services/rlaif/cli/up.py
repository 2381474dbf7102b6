"""`rlaif up`: the four services on loopback, running on after the command ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rlaif.cli.addresses import Announcement
    from rlaif.cli.processes import Child
    from rlaif.cli.services import StackSettings

DEFAULT_STATE = Path("runs/services")
EPILOG = (
    "Examples: [bold]rlaif up[/bold] serves the playground's models; "
    "[bold]rlaif up --judge ./my-judge --constitution my.yaml[/bold] serves your own judge. "
    "[bold]rlaif status[/bold] shows the services, [bold]rlaif down[/bold] stops them."
)


def up(
    *,
    judge: Annotated[
        str, typer.Option(metavar="MODEL", help="Judge model: a folder, a Hugging Face id, or 'playground'.")
    ] = "playground",
    policy: Annotated[
        str, typer.Option(metavar="MODEL", help="Policy model: a folder, a Hugging Face id, or 'playground'.")
    ] = "playground",
    constitution: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="Principles to judge by: a YAML file or a shipped name.")
    ] = "playground",
    state: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for settings, logs, ledger and policy versions.")
    ] = DEFAULT_STATE,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65532, metavar="N", help="Port of oversight; sampler, judge and reward follow. 0: free ports."
        ),
    ] = 0,
    engine: Annotated[
        Literal["hf", "vllm"],
        typer.Option(
            help="What runs sampler and judge: hf is transformers, vllm is vLLM (from an environment that has it)."
        ),
    ] = "hf",
    threads: Annotated[int, typer.Option(min=0, metavar="N", help="Threads of each model. 0: one a core.")] = 0,
) -> None:
    """Start sampler, judge, reward and oversight in the background, on loopback only."""
    from rlaif.cli.inputs import find_constitution, find_model
    from rlaif.cli.processes import num_cores
    from rlaif.cli.services import StackSettings, check_engine, start_stack
    from rlaif.playground.paths import JUDGE_DIR, POLICY_DIR

    state = state.resolve()
    check_engine(engine)
    _check_not_running(state)
    policy_model = find_model(policy, option="--policy", playground=POLICY_DIR)
    judge_model = find_model(judge, option="--judge", playground=JUDGE_DIR)
    chosen = find_constitution(constitution)
    settings = StackSettings(
        folder=state,
        policy=policy_model.uri,
        policy_name="policies/served",
        judge=judge_model.uri,
        constitution=chosen.source,
        template="compact" if judge == "playground" else "standard",
        num_threads=threads or num_cores(),
        engine=engine,
        first_port=port,
    )
    launcher = _DetachedLauncher(settings, offline=policy_model.local and judge_model.local)
    if not launcher.offline:
        typer.echo(f"what the cache lacks of the hub's models is fetched first: {state / 'logs'} tells how far that is")
    try:
        found = start_stack(settings, launch=launcher.launch, told=lambda name: typer.echo(f"{name:<10} healthy"))
    except BaseException:
        launcher.stop()
        raise
    _print_addresses(found, state=state, constitution=chosen.constitution.name)


@dataclass
class _DetachedLauncher:
    """Starts services in sessions of their own, so that closing the terminal does not end them."""

    settings: StackSettings
    offline: bool
    children: list[Child] = field(default_factory=list)

    def launch(self, name: str, config_path: Path) -> Child:
        from rlaif.cli.addresses import module_of
        from rlaif.cli.processes import Child, child_environment

        log_path = self.settings.log_path(name)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", module_of(name), "--config", str(config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(os.environ, num_threads=self.settings.num_threads, offline=self.offline),
                start_new_session=True,
            )
        child = Child(name=name, process=process, log_path=log_path)
        self.children.append(child)
        return child

    def stop(self) -> None:
        from rlaif.cli.processes import end_process_group

        for child in reversed(self.children):
            end_process_group(child.process, drain_seconds=10.0)
            self.settings.announce_path(child.name).unlink(missing_ok=True)


def _check_not_running(state: Path) -> None:
    from rlaif.cli.addresses import GRPC_SERVICES, announce_path, read_announcement
    from rlaif.cli.status import is_service
    from rlaif.core.errors import InvalidInputError

    for name in GRPC_SERVICES:
        announcement = read_announcement(announce_path(state, name))
        if announcement and is_service(announcement):
            raise InvalidInputError(
                f"services already run from {state} ({name}, process {announcement.pid}): see `rlaif status`, "
                "stop them with `rlaif down`, or give another --state",
                field="--state",
            )


def _print_addresses(found: dict[str, Announcement], *, state: Path, constitution: str) -> None:
    typer.echo("")
    for name, announcement in found.items():
        typer.echo(f"{name:<10} {announcement.address:<22} metrics http://{announcement.metrics_address}/metrics")
    request = example_request(constitution)
    typer.echo("\nAsk the judge (reflection is on, any gRPC client will do):")
    typer.echo(
        f"  grpcurl -plaintext -d '{request}' \\\n    {found['judge'].address} rlaif.v1.JudgeService/CompareResponses"
    )
    typer.echo(f"\nLogs and ledger: {state}. Stop with: rlaif down" + _state_option(state))


def example_request(constitution: str) -> str:
    """A CompareResponsesRequest as JSON."""
    request = {
        "constitution": constitution,
        "messages": [{"role": "ROLE_USER", "content": "Tell me the color of grass."}],
        "first": "It is green.",
        "second": "It is blue.",
    }
    return json.dumps(request)


def _state_option(state: Path) -> str:
    return "" if state == DEFAULT_STATE.resolve() else f" --state {state}"
