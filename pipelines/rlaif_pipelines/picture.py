"""A compiled pipeline as a picture: tasks top to bottom, groups as boxes, a line for each dependence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

_WIDTH, _HEIGHT, _GAP, _ROW_GAP, _PADDING, _TITLE = 204, 44, 18, 26, 14, 22
_STYLE: Final = """
text{font:13px system-ui,sans-serif;fill:#1c2733;text-anchor:middle}
.small{font-size:10.5px;fill:#5b6b7b}.title{font-size:11.5px;fill:#5b6b7b;text-anchor:start}
.task{fill:#fff;stroke:#4878a8;stroke-width:1.4}.group{fill:#4878a80d;stroke:#9db4ca;stroke-dasharray:5 4}
path{fill:none;stroke:#7f93a6;stroke-width:1.3}polygon{fill:#7f93a6}
@media (prefers-color-scheme:dark){svg{background:#12181f}text{fill:#e4ebf2}.small,.title{fill:#9db0c2}
.task{fill:#1b2530}.group{stroke:#4c6278}}
"""


@dataclass(frozen=True)
class _Block:
    """A task or a group of tasks with its place inside the group that holds it."""

    name: str
    width: int
    height: int
    title: str
    detail: str = ""
    children: tuple[_Placed, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Placed:
    block: _Block
    x: int
    y: int


def draw(graph: Mapping[str, Any]) -> str:
    """SVG of the first document of a compiled pipeline; the same for the same pipeline."""
    root = _group("", graph["root"]["dag"], graph, title="")
    body = "\n".join(_svg(_Placed(root, 0, 0)))
    size = f'width="{root.width}" height="{root.height}" viewBox="0 0 {root.width} {root.height}"'
    title = escape(f"The pipeline {graph['pipelineInfo']['name']}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><title>{title}</title><style>{_STYLE}</style>'
    return f"{head}\n{body}\n</svg>\n"


def _group(name: str, dag: Mapping[str, Any], graph: Mapping[str, Any], *, title: str) -> _Block:
    tasks = dag["tasks"]
    needs = {each: [dep for dep in task.get("dependentTasks", ()) if dep in tasks] for each, task in tasks.items()}
    ranks = _ranks(needs)
    rows = [[each for each in tasks if ranks[each] == rank] for rank in range(max(ranks.values()) + 1)]
    blocks = {each: _block(each, task, graph) for each, task in tasks.items()}
    widths = [sum(blocks[each].width for each in row) + _GAP * (len(row) - 1) for row in rows]
    width = max([*widths, _WIDTH]) + 2 * _PADDING
    y, placed = _PADDING + (_TITLE if title else 0), []
    for row, row_width in zip(rows, widths, strict=True):
        x = (width - row_width) // 2
        for each in row:
            placed.append(_Placed(blocks[each], x, y))
            x += blocks[each].width + _GAP
        y += max(blocks[each].height for each in row) + _ROW_GAP
    lines = tuple((dep, each) for each in tasks for dep in _own(each, needs))
    return _Block(name, width, y - _ROW_GAP + _PADDING, title, children=tuple(placed), lines=lines)


def _block(name: str, task: Mapping[str, Any], graph: Mapping[str, Any]) -> _Block:
    component = graph["components"][task["componentRef"]["name"]]
    if "dag" in component:
        return _group(name, component["dag"], graph, title=_title(task))
    found = component.get("outputDefinitions", {}).get("artifacts", {}).values()
    kinds = dict.fromkeys(each["artifactType"]["schemaTitle"].removeprefix("system.") for each in found)
    always = "ALL_UPSTREAM_TASKS_COMPLETED" in task.get("triggerPolicy", {}).values()
    detail = f"always: {', '.join(kinds)}" if always else ", ".join(kinds)
    return _Block(name, _WIDTH, _HEIGHT, task["taskInfo"]["name"], detail=detail)


def _title(task: Mapping[str, Any]) -> str:
    name = str(task["taskInfo"]["name"])
    if "parameterIterator" in task:
        return "for each part"
    if "condition" in task.get("triggerPolicy", {}):
        return "if " + " ".join(part for part in name.split("-") if not part.isdigit())
    return "" if name.startswith("condition-branches") else name


def _ranks(needs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The longest way to each task."""
    found: dict[str, int] = {}

    def rank(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((rank(each) for each in needs[name]), default=-1)
        return found[name]

    for name in needs:
        rank(name)
    return found


def _own(name: str, needs: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What a task needs that nothing else it needs does."""
    for each in needs[name]:
        if not any(each in _before(other, needs) for other in needs[name] if other != each):
            yield each


def _before(name: str, needs: Mapping[str, Sequence[str]]) -> set[str]:
    return {*needs[name], *(each for dep in needs[name] for each in _before(dep, needs))}


def _svg(placed: _Placed) -> Iterator[str]:
    block, x, y = placed.block, placed.x, placed.y
    if not block.children:
        middle = x + block.width // 2
        yield f'<rect class="task" x="{x}" y="{y}" width="{block.width}" height="{block.height}" rx="6"/>'
        yield f'<text x="{middle}" y="{y + (18 if block.detail else 27)}">{escape(block.title)}</text>'
        if block.detail:
            yield f'<text class="small" x="{middle}" y="{y + 34}">{escape(block.detail)}</text>'
        return
    if block.title:
        yield f'<rect class="group" x="{x}" y="{y}" width="{block.width}" height="{block.height}" rx="9"/>'
        yield f'<text class="title" x="{x + 10}" y="{y + 16}">{escape(block.title)}</text>'
    inside = {each.block.name: _Placed(each.block, x + each.x, y + each.y) for each in block.children}
    for first, second in block.lines:
        yield _line(inside[first], inside[second])
    for each in inside.values():
        yield from _svg(each)


def _line(first: _Placed, second: _Placed) -> str:
    x1, y1 = first.x + first.block.width // 2, first.y + first.block.height
    x2, y2 = second.x + second.block.width // 2, second.y
    middle = (y1 + y2) // 2
    curve = f'<path d="M{x1},{y1} C{x1},{middle} {x2},{middle} {x2},{y2 - 6}"/>'
    return curve + f'<polygon points="{x2},{y2} {x2 - 4},{y2 - 7} {x2 + 4},{y2 - 7}"/>'
