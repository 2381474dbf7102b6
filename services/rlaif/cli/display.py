"""How a run looks in a terminal, and as plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rlaif.cli.progress import RunProgress, StageProgress, sparkline

_MARKS: Final = {
    "waiting": Text("·", "dim"),
    "done": Text("✓", "green"),
    "skipped": Text("↷", "cyan"),
    "failed": Text("✗", "bold red"),
    "stopped": Text("■", "yellow"),
}
_SERIES: Final = {
    "reward": ("reward", "what the policy is trained on"),
    "gold": ("gold", "independent rules, never trained on"),
    "held_out": ("held-out score", "second opinion on prompts set apart, guarding"),
    "kl": ("KL", "nats a sequence from the start"),
}
_LOSS: Final = {"loss": ("loss", "nothing here has a reward")}
_UNTRAINED: Final = {"label-only": "labels passed the gate", "judge-benchmark": "judge measured"}
"""Pipelines that leave no policy to have a verdict on, and what is said of them when they are done."""
_LINES_EVERY_STEPS: Final = 10


class Display(Protocol):
    """Where a run shows itself."""

    def say(self, text: str) -> None:
        """One remark."""

    def event(self, stage: StageProgress, state: str) -> None:
        """A stage has changed."""

    def metrics(self, row: Mapping[str, Any]) -> None:
        """A training step was made."""

    def refresh(self) -> None:
        """Time has passed."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class LiveDisplay:
    """One picture, redrawn: stages, rates, times, and the curves of the training."""

    def __init__(self, progress: RunProgress, *, title: str, console: Console) -> None:
        self._progress = progress
        self._title = title
        self._console = console
        self._started = time.time()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(self._picture(), console=console, auto_refresh=False, transient=False)
        self._live.start()

    def say(self, text: str) -> None:
        """A line above the picture."""
        self._console.print(Text(text, "dim"))

    def event(self, stage: StageProgress, state: str) -> None:
        """Nothing to do: the picture is drawn from the progress."""

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Nothing to do: the picture is drawn from the progress."""

    def refresh(self) -> None:
        """Draw again."""
        self._live.update(self._picture(), refresh=True)

    def close(self) -> None:
        """Draw a last time and give the terminal back."""
        self.refresh()
        self._live.stop()

    def _picture(self) -> RenderableType:
        now = time.time()
        parts: list[RenderableType] = [_stage_table(self._progress, now, self._spinner)]
        if self._progress.series:
            parts += [Text(), _training_table(self._progress, self._console.width)]
        head = Text.assemble((self._title, "bold"), ("   " + duration(now - self._started), "dim"))
        return Panel(Group(*parts), title=head, title_align="left", border_style="dim", padding=(1, 2))


class PlainDisplay:
    """One line for each change of a stage and every tenth step: readable in the log of a CI job."""

    def __init__(self, *, title: str, console: Console) -> None:
        self._console = console
        self._started = time.time()
        self._last_share: dict[str, int] = {}
        self.say(title)

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        self._console.print(
            f"{duration(time.time() - self._started):>7}  {text}", highlight=False, soft_wrap=True, markup=False
        )

    def event(self, stage: StageProgress, state: str) -> None:
        """A line for each transition, and for each fifth of a long stage."""
        if state == "progress":
            share = 5 * (stage.done or 0) // stage.total if stage.total else 0
            if share <= self._last_share.get(stage.name, 0) or share == 5:
                return
            self._last_share[stage.name] = share
            self.say(f"{stage.name:<14} {stage.done}/{stage.total} {stage.message}{_rate_text(stage)}")
            return
        seconds = stage.elapsed_seconds(time.time())
        took = f" in {duration(seconds)}" if state in ("finished", "failed") and seconds is not None else ""
        why = f": {stage.message}" if state in ("failed", "skipped") and stage.message else ""
        self.say(f"{stage.name:<14} {state}{took}{why}")

    def metrics(self, row: Mapping[str, Any]) -> None:
        """A line for the first, every tenth and the last step, and for every guard that fires."""
        step, num_steps = row.get("step", 0), row.get("num_steps", 0)
        for firing in row.get("guards") or ():
            self.say(
                f"{row.get('stage', ''):<14} step {step}/{num_steps}  guard {firing['guard']}: {firing['sentence']}"
            )
        if step not in (1, num_steps) and step % _LINES_EVERY_STEPS:
            return
        numbers = [f"{name} {row[name]:.3f}" for name in ("loss", *_SERIES) if isinstance(row.get(name), int | float)]
        self.say(f"{row.get('stage', ''):<14} step {step}/{num_steps}  {'  '.join(numbers)}")

    def refresh(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def open_display(progress: RunProgress, *, title: str, console: Console, plain: bool = False) -> Display:
    """The live picture on a terminal; lines elsewhere, or where they are wanted."""
    if console.is_terminal and not console.is_dumb_terminal and not plain:
        return LiveDisplay(progress, title=title, console=console)
    return PlainDisplay(title=title, console=console)


def summary_panel(report: Mapping[str, Any], *, report_path: Path, seconds: float) -> Panel:
    """The last word: verdict, the numbers behind it, where to read more."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, text in _summary_rows(report):
        table.add_row(name, text)
    peak_bytes = report.get("peak_rss_bytes")
    memory = f", {peak_bytes / 2**30:.2f} GiB at most over all processes" if peak_bytes else ""
    table.add_row("time, memory", f"{duration(seconds)}{memory}")
    table.add_row("report", str(report_path))
    words, style = _headline(report)
    headline = Text(f" {words} ", f"bold reverse {style}")
    return Panel(table, title=headline, title_align="left", border_style=style, padding=(1, 2))


def _headline(report: Mapping[str, Any]) -> tuple[str, str]:
    """(what is said first, its colour)."""
    done = _UNTRAINED.get(_pipeline(report)) if report.get("outcome") == "finished" else None
    if done is not None:
        return done, "green"
    verdict = str(report.get("verdict") or "unknown")
    return verdict.replace("_", " "), {"improved": "green", "unknown": "yellow"}.get(verdict, "red")


def _pipeline(report: Mapping[str, Any]) -> str:
    return str((report.get("settings") or {}).get("pipeline", "rlaif"))


def _summary_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if report.get("outcome") == "finished" and _pipeline(report) in _UNTRAINED:
        yield from _label_rows(report)
        return
    win = report.get("win_rate") or {}
    if win.get("value") is not None:
        yield "win rate against the start", _estimate(win)
    for key, name, form in (
        ("harmful_compliance", "harmful compliance", "{:.1%}"),
        ("over_refusal", "over-refusal", "{:.1%}"),
        ("mean_words", "words a reply", "{:.1f}"),
    ):
        pair = report.get(key) or {}
        if pair.get("trained") is not None and pair.get("baseline") is not None:
            yield name, f"{form.format(pair['baseline'])} → {form.format(pair['trained'])}"
    if isinstance(report.get("kl"), int | float):
        yield "KL from the start", f"{report['kl']:.2f} nats a reply"
    if report.get("verdict_reasons"):
        yield "why", "; ".join(report["verdict_reasons"])


def _label_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """What a pipeline that trains nothing has found out of labels."""
    quality = report.get("label_quality") or {}
    found = ((report.get("benchmark") or {}).get("statistics") or {}).get("") or {}
    if quality:
        yield "labels", str(quality["num_labels"])
    elif found:
        yield "pairs", str(report["benchmark"]["num_pairs"])
        accuracy = found["human_agreement"]
        yield "accuracy of the judge", "not known" if accuracy["value"] is None else _estimate(accuracy)
    if report.get("label_accuracy") is not None:
        yield "agreement with gold", f"{report['label_accuracy']:.1%}"
    for key, name in (("abstention_rate", "abstentions"), ("order_inconsistency", "order inconsistency")):
        value = quality.get(key) if quality else (found.get(key) or {}).get("value")
        if value is not None:
            yield name, f"{value:.1%}"


def _estimate(found: Mapping[str, Any]) -> str:
    interval = f"  (95 % CI {found['low']:.3f} to {found['high']:.3f})" if found.get("low") is not None else ""
    return f"{found['value']:.3f}{interval}"


def duration(seconds: float) -> str:
    """2.5 s, 1:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _stage_table(progress: RunProgress, now: float, spinner: Spinner) -> Table:
    table = Table.grid(padding=(0, 2), expand=False)
    # Steady widths, so that the picture stands still while values come and go.
    for width in (1, 12, 24):
        table.add_column(min_width=width, no_wrap=True)
    for width in (7, 7, 6):
        table.add_column(min_width=width, no_wrap=True, justify="right")
    table.add_column(min_width=11, no_wrap=True)
    for stage in progress.stages.values():
        table.add_row(*_stage_cells(stage, now, spinner))
    return table


def _stage_cells(stage: StageProgress, now: float, spinner: Spinner) -> list[RenderableType]:
    running = stage.state == "running"
    mark: RenderableType = spinner if running else _MARKS.get(stage.state, Text("?"))
    name = Text(stage.name, "bold" if running else "dim" if stage.state in ("waiting", "skipped") else "")
    bar: RenderableType = Text("")
    count = ""
    if running and stage.total:
        bar = ProgressBar(total=stage.total, completed=stage.done or 0, width=24)
        count = f"{stage.done}/{stage.total}"
    elif stage.state == "skipped":
        bar = Text("done before", "dim")
    elif stage.state == "failed":
        bar = Text(stage.message[:60], "red")
    elapsed = stage.elapsed_seconds(now)
    remaining = stage.remaining_seconds
    return [
        mark,
        name,
        bar,
        Text(count),
        Text(f"{stage.rate:.1f}/s" if running and stage.rate else "", "dim"),
        Text(duration(elapsed) if elapsed is not None else "", "" if running else "dim"),
        Text(f"{duration(remaining)} left" if remaining is not None else "", "cyan"),
    ]


def _training_table(progress: RunProgress, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis")
    for key, (name, meaning) in (_SERIES if "reward" in progress.series else _LOSS).items():
        latest = progress.latest(key)
        if latest is not None:
            bars = sparkline(progress.series[key], width=max(10, min(40, width - 60)))
            table.add_row(name, f"{latest:.3f}", bars, meaning)
    return table


def _rate_text(stage: StageProgress) -> str:
    if stage.rate is None:
        return ""
    left = stage.remaining_seconds
    return f", {stage.rate:.1f}/s" + (f", {duration(left)} left" if left is not None else "")
