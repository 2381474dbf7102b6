"""How constitutions, their differences and their audits look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlaif.core.audit import Finding, FindingKind
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.constitution_diff import Change

_KINDS: Final = {
    FindingKind.CONFLICT: ("conflict", "bold red"),
    FindingKind.MISSING_CRITERION: ("missing", "bold red"),
    FindingKind.VAGUE: ("vague", "yellow"),
    FindingKind.DUPLICATE: ("duplicate", "yellow"),
    FindingKind.INERT: ("inert", "yellow"),
    FindingKind.BIAS_RISK: ("bias risk", "yellow"),
    FindingKind.EDGE_CASE: ("edge case", "yellow"),
    FindingKind.VALIDATION: ("for people", "cyan"),
}


def constitution_page(constitution: Constitution) -> RenderableType:
    """All of a constitution but its exemplars, which are counted."""
    head = Text.assemble((constitution.name, "bold"), f"  version {constitution.version}\n")
    head.append(f"sha256 {constitution.sha256}", "dim")
    if constitution.description:
        head.append(f"\n{constitution.description}")
    table = Table(box=None, header_style="bold", padding=(0, 2, 1, 0))
    for title in ("principle", "weight", "share", "what it prefers"):
        table.add_column(title, justify="right" if title in ("weight", "share") else "left", vertical="top")
    total = sum(principle.weight for principle in constitution.principles)
    for principle in constitution.principles:
        text = Text(principle.text)
        for line in _details(principle):
            text.append(f"\n{line}", "dim")
        table.add_row(principle.principle_id, f"{principle.weight:g}", f"{principle.weight / total:.0%}", text)
    parts: list[RenderableType] = [head, Text(""), table]
    for name, instruction in (("critique", constitution.critique), ("revision", constitution.revision)):
        if instruction:
            parts.append(Text.assemble((f"{name}  ", "bold"), instruction))
    return Group(*parts)


def _details(principle: Principle) -> Iterator[str]:
    if principle.dimension:
        yield f"measures {principle.dimension}"
    if principle.applies_to:
        yield f"only for {', '.join(principle.applies_to)}"
    if principle.critique:
        yield f"critique: {principle.critique}"
    if principle.revision:
        yield f"revision: {principle.revision}"
    if principle.exemplars:
        yield f"{len(principle.exemplars)} exemplar{'s' if len(principle.exemplars) > 1 else ''}"


def diff_page(old: Constitution, new: Constitution, changes: Sequence[Change]) -> RenderableType:
    """Changes, one below the other, old in red and new in green."""
    lines: list[RenderableType] = [
        Text(f"{old.name} version {old.version}  {old.sha256[:12]}", "dim"),
        Text(f"{new.name} version {new.version}  {new.sha256[:12]}", "dim"),
    ]
    for change in changes:
        lines += [Text(""), Text(f"{change.field} {change.kind}", "bold")]
        if change.old is not None:
            lines.append(Padding(Text(f"- {_shown(change.old)}", "red"), (0, 0, 0, 2)))
        if change.new is not None:
            lines.append(Padding(Text(f"+ {_shown(change.new)}", "green"), (0, 0, 0, 2)))
    return Group(*lines)


def _shown(value: Any) -> str:
    if isinstance(value, Principle):
        return f"{value.text} (weight {value.weight:g})"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def findings_page(name: str, findings: Sequence[Finding]) -> RenderableType:
    """Findings with what to change; those to change first, advice on validation last."""
    to_change = sum(finding.kind is not FindingKind.VALIDATION for finding in findings)
    lines: list[RenderableType] = [
        Text.assemble((name, "bold"), f"  {to_change or 'nothing'} to change, {len(findings) - to_change} to validate")
    ]
    order = list(_KINDS)
    for finding in sorted(findings, key=lambda each: order.index(each.kind)):
        title, style = _KINDS[finding.kind]
        ids = ", ".join(finding.principle_ids)
        lines += [
            Text(""),
            Text.assemble((title, style), (f"  {ids}" if ids else "", "bold")),
            Padding(Text(finding.description), (0, 0, 0, 2)),
            Padding(Text(f"→ {finding.suggestion}", "green"), (0, 0, 0, 2)),
        ]
    return Group(*lines)
