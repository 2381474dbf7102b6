"""By which rules a command has the judge decide: texts or a file of the user's, or a constitution by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.cli.inputs import find_constitution, shipped_constitutions
from rlaif.cli.judge_connection import Connection
from rlaif.cli.judge_texts import check_text
from rlaif.client.judge import JudgeOptions, Rules
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.errors import InvalidInputError

_PREFIX = "constitutions/"


@dataclass(frozen=True)
class How:
    """The rules that were given, else those of that name; and how to apply them."""

    given: Constitution | None
    constitution: str
    options: JudgeOptions

    @classmethod
    def of(
        cls,
        constitution: str,
        principles: Sequence[str] | None,
        only: Sequence[str] | None,
        seed: int = 0,
        *,
        reasoning: bool = False,
    ) -> How:
        """What the user said of the rules; checked before a judge is looked for, or started."""
        given = given_rules(constitution=constitution, principles=principles or [])
        return cls(given, constitution, JudgeOptions(principle_ids=tuple(only or ()), seed=seed, reasoning=reasoning))

    def rules(self, connection: Connection) -> Rules:
        """What is sent to this judge."""
        return self.given or named_rules(connection, self.constitution)


def given_rules(*, constitution: str, principles: Sequence[str]) -> Constitution | None:
    """The rules that the command line holds, as texts or in a file; None where it names some, or none."""
    if principles and constitution:
        raise InvalidInputError("give --constitution or --principle, not both", field="--principle")
    if principles:
        return command_line_constitution(principles)
    return find_constitution(constitution).constitution if _is_file(constitution) else None


def named_rules(connection: Connection, constitution: str) -> Rules:
    """The constitution of that name: one that the judge has, else a shipped one; without a name its only one."""
    has = [each.name for each in connection.client.list_constitutions()]
    if not constitution:
        if len(has) == 1:
            return has[0]
        raise InvalidInputError(
            f"--constitution: the judge at {connection.address} has {', '.join(has) or 'none'}; name one of them, a "
            "shipped one or a file",
            field="--constitution",
        )
    name = constitution if constitution.startswith(_PREFIX) else f"{_PREFIX}{constitution}"
    if name in has:
        return name
    if constitution in shipped_constitutions():
        return find_constitution(constitution).constitution
    raise InvalidInputError(
        f"--constitution {constitution}: is no file, the judge at {connection.address} has {', '.join(has) or 'none'}, "
        f"and shipped are {', '.join(sorted(shipped_constitutions()))}",
        field="--constitution",
    )


def command_line_constitution(principles: Sequence[str]) -> Constitution:
    """Principles given as texts, all of one weight."""
    for text in principles:
        if not check_text(text, name="--principle").strip():
            raise InvalidInputError("--principle: is empty; give the wording of a principle", field="--principle")
    return Constitution(
        "command-line",
        1,
        "Given on the command line.",
        tuple(Principle(f"principle-{number}", text.strip()) for number, text in enumerate(principles, start=1)),
    )


def digest_of(connection: Connection, rules: Rules) -> str:
    """SHA-256 of the rules, asked of the judge when it has them."""
    return rules.sha256 if isinstance(rules, Constitution) else connection.client.get_constitution(rules).sha256


def _is_file(constitution: str) -> bool:
    """Whether the text names a file; "constitutions/{id}" does not, even where a folder is called so."""
    path = Path(constitution).expanduser()
    return path.suffix in (".yaml", ".yml") or (not constitution.startswith(_PREFIX) and path.is_file())
