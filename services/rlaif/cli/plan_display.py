"""How a plan looks in a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlaif.cli.display import duration
from rlaif_pipelines.planning import Plan
from rlaif_pipelines.planning.memory import Memory
from rlaif_pipelines.planning.plan import RoleRow, StageRow

_KINDS: Final = {"prefill": "read", "decode": "written", "training": "trained on"}
_PARTS: Final = {
    "weights": "weights",
    "cache": "KV cache",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "reference": "reference",
}
_HEAD: Final = "bold"


def print_plan(plan: Plan) -> None:
    """Totals, stages, memory, and what it all rests on."""
    console = Console()
    console.print(_totals(plan))
    console.print(Padding(_stages(plan), (1, 0)))
    console.print(Text(f"GB on each {plan.roles[0].gpu}", _HEAD))
    console.print(_memory(plan))
    console.print()
    console.print(Text("This rests on", _HEAD))
    rests = Table.grid(padding=(0, 1))
    for sentence in plan.assumptions:
        rests.add_row("·", Text(sentence))
    console.print(rests)


def _totals(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    tokens = [(plan.prefill_tokens, "read"), (plan.decode_tokens, "written"), (plan.training_tokens, "trained on")]
    rows = {
        "labels": f"{plan.labels:,}",
        "tokens": ", ".join(f"{_amount(number)} {word}" for number, word in tokens if number),
        "GPUs": f"{plan.gpus} at once",
        "GPU hours": f"{plan.busy_gpu_hours:.1f} of work; {plan.held_gpu_hours:.1f} with all held from start to end",
        "time": duration(plan.wall_seconds),
        "cost": f"{plan.usd:,.0f} USD with all GPUs held from start to end",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _stages(plan: Plan) -> Table:
    table = Table(box=None, header_style=_HEAD, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column("role", no_wrap=True)
    for title in ("GPUs", *_KINDS.values(), "time", "GPU hours"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in plan.stages:
        table.add_row(row.stage, row.role, *_numbers(row))
    if plan.publish_seconds:
        table.add_row("train", "storage", "", "", "", "", duration(plan.publish_seconds))
    return table


def _numbers(row: StageRow) -> list[str]:
    tokens = (row.prefill_tokens, row.decode_tokens, row.training_tokens)
    return [
        str(row.gpus or "CPU"),
        *(_amount(number) if number else "" for number in tokens),
        duration(row.seconds),
        f"{row.gpu_hours:.1f}" if row.gpus else "",
    ]


def _memory(plan: Plan) -> Table:
    table = Table(box=None, header_style=_HEAD, padding=(0, 1, 0, 0))
    table.add_column("role", no_wrap=True)
    for title in ("GPUs", *_PARTS.values(), "other", "total"):
        table.add_column(title, justify="right", no_wrap=True)
    for role in plan.roles:
        parts = [getattr(role.memory, part) for part in _PARTS]
        total = f"{role.memory.total / 1e9:.1f} ({role.share:.0%})"
        table.add_row(role.role, _gpus(role), *map(_gigabytes, [*parts, _other(role.memory)]), total)
    return table


def _other(memory: Memory) -> float:
    return memory.activations + memory.buffers


def _gpus(role: RoleRow) -> str:
    return f"{role.replicas} × {role.gpus // role.replicas}" if role.replicas > 1 else str(role.gpus)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f}" if value else ""


def _amount(number: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:.0f}"
