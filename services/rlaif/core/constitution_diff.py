"""What changed between two versions of a constitution, principle by principle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from rlaif.core.constitution import Constitution, Principle


@dataclass(frozen=True)
class Change:
    """One difference. `field` is "version" or "principles[harmless].weight", say; a side that is not there is None."""

    kind: Literal["added", "removed", "changed", "moved"]
    field: str
    old: Any
    new: Any


def diff_constitutions(old: Constitution, new: Constitution) -> list[Change]:
    """What makes `new` of `old`; principles are the same when their ids are. Empty when the digests are equal."""
    return [*_fields(old, new, "", skip={"principles"}), *_principles(old, new)]


def _principles(old: Constitution, new: Constitution) -> Iterator[Change]:
    before = {principle.principle_id: principle for principle in old.principles}
    after = {principle.principle_id: principle for principle in new.principles}
    for principle_id, principle in before.items():
        if principle_id not in after:
            yield Change("removed", f"principles[{principle_id}]", principle, None)
    for principle_id, principle in after.items():
        if principle_id not in before:
            yield Change("added", f"principles[{principle_id}]", None, principle)
        else:
            yield from _fields(before[principle_id], principle, f"principles[{principle_id}].", skip={"principle_id"})
    order_before = [principle_id for principle_id in before if principle_id in after]
    order_after = [principle_id for principle_id in after if principle_id in before]
    if order_before != order_after:
        yield Change("moved", "principles", order_before, order_after)


def _fields(
    old: Constitution | Principle, new: Constitution | Principle, prefix: str, *, skip: set[str]
) -> Iterator[Change]:
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name not in skip and before != after:
            name = "id" if field.name == "constitution_id" else field.name
            yield Change("changed", f"{prefix}{name}", before, after)
