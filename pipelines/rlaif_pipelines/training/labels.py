"""Labelled pairs from files: the judge's labels, people's votes, exports in TRL's form; mixed by weight."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rlaif.core.canonical import digest, sha256_hex
from rlaif.core.conversation import Conversation, check_language, to_json
from rlaif.core.errors import InvalidInputError
from rlaif.core.human_preference import parse_preference
from rlaif.core.judged_pair import JudgedPair
from rlaif.core.preference import TIE_MARGIN
from rlaif_pipelines.training.config.pairs import LabelFile
from rlaif_pipelines.training.data import conversation_of, number_of, read_lines, text_of

MIN_ONE_SIDED: Final = 16
"""Labels that all prefer the same side are no accident from this many on: a fair coin does it once in 2**15 tries."""
_WEIGHTS: Final = (1e-6, 1e6)
_PREFERENCES: Final = {"first": 1.0, "second": 0.0, "tie": 0.5, "abstain": None}
_SOURCES: Final = ("ai", "human")
_CERTAINTIES: Final = (0.5, 0.6, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class LabelledPair:
    """Two responses and the probability that the first is the better one."""

    prompt_id: str
    category: str | None
    conversation: Conversation
    first: str
    second: str
    probability_first: float
    weight: float
    votes: Mapping[str, float]
    """P(first preferred) by each principle that voted."""
    source: str = "ai"
    language: str = ""
    margin: float | None = None
    """Lead that the label asks of the preferred response; None where it does not say."""
    smoothing: float = 0.0
    """Share of its file's labels that is taken to be wrong."""

    @property
    def preferred(self) -> int:
        """1 for the first response, -1 for the second, 0 for a tie."""
        return preferred_side(self.probability_first)

    def smoothed(self) -> LabelledPair:
        """The pair as it is trained on; it is measured as it was labelled."""
        s, p = self.smoothing, self.probability_first
        return replace(self, probability_first=(1.0 - s) * p + s * (1.0 - p)) if s else self

    @property
    def slices(self) -> dict[str, str]:
        """The slice of each dimension that the pair is measured in; what is not known is left out.

        `certainty` is that of the label, max(p, 1 - p); `better` says whether the label prefers the longer response.
        """
        lengths = (len(self.first), len(self.second))
        longer = (lengths[0] > lengths[1]) - (lengths[0] < lengths[1])
        known = {
            "category": self.category or "",
            "source": self.source,
            "language": self.language,
            "length": JudgedPair(pair="", probability_first=None, num_characters=lengths).length_class,
            "certainty": _certainty_class(max(self.probability_first, 1.0 - self.probability_first)),
            "better": {1: "longer", -1: "shorter", 0: ""}[longer * self.preferred],
        }
        return {dimension: value for dimension, value in known.items() if value}


@dataclass(frozen=True)
class LabelCounts:
    """What became of a file's rows."""

    num_pairs: int = 0
    """Pairs to train and measure on."""
    num_abstained: int = 0
    num_weightless: int = 0
    num_identical: int = 0
    """Pairs of one text with itself."""
    num_merged: int = 0
    """Labels put together with another label of the same pair."""


@dataclass(frozen=True)
class Labels:
    """The pairs that carry a verdict, and what each file gave."""

    pairs: tuple[LabelledPair, ...]
    files: tuple[tuple[LabelFile, LabelCounts], ...]

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of all principles that voted on any pair, in order of appearance."""
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair.votes))

    def total(self, name: str) -> int:
        """That count over all files."""
        return sum(getattr(counts, name) for _, counts in self.files)

    def provenance(self) -> list[dict[str, Any]]:
        """Where the labels came from, as plain values for training.json."""
        return [
            {
                "path": str(file.path),
                "sha256": sha256_hex(file.path.read_bytes()),
                "weight": file.weight,
                "smoothing": file.smoothing,
                **vars(counts),
            }
            for file, counts in self.files
        ]


def preferred_side(probability_first: float) -> int:
    """1 for the first response, -1 for the second, 0 for a tie."""
    lead = probability_first - 0.5
    return 0 if abs(lead) <= TIE_MARGIN else 1 if lead > 0 else -1


def label_inputs(files: Sequence[LabelFile]) -> dict[str, Path]:
    """The files by name: "labels", then "labels_1" and so on."""
    return {f"labels_{number}" if number else "labels": file.path for number, file in enumerate(files)}


def read_labels(files: Sequence[LabelFile], *, allow_one_class: bool = False) -> Labels:
    """The labels of all files; what cannot be trained on is counted and left out.

    Labels of the same pair in one file, such as several people's votes, become one: weights add up, probabilities are
    averaged by weight, which leaves the loss as it was. A file of which nothing is left is refused, and so is one whose
    labels all prefer the same side, unless `allow_one_class`.
    """
    found = [_read_file(file, allow_one_class=allow_one_class) for file in files]
    pairs = [pair for pairs, _ in found for pair in pairs]
    # People's votes come without prompt ids: the same conversation must not be trained on here and held out there.
    known = {pair.conversation: pair.prompt_id for pair in pairs if pair.prompt_id}
    named = [
        pair
        if pair.prompt_id
        else replace(pair, prompt_id=known.get(pair.conversation) or digest(to_json(pair.conversation)))
        for pair in pairs
    ]
    return Labels(
        pairs=tuple(named), files=tuple((file, counts) for file, (_, counts) in zip(files, found, strict=True))
    )


def _read_file(file: LabelFile, *, allow_one_class: bool) -> tuple[list[LabelledPair], LabelCounts]:
    left_out = {"num_abstained": 0, "num_weightless": 0, "num_identical": 0}
    merged: dict[Hashable, LabelledPair] = {}
    num_merged, sides = 0, []
    for place, line in read_lines(file.path, field="labels"):
        pair = _pair(line, place=place, file=file)
        if isinstance(pair, str):
            left_out[pair] += 1
            continue
        if "chosen" not in line:
            sides.append(pair.preferred)
        key = _identity(pair)
        earlier = merged.get(key)
        num_merged += earlier is not None
        merged[key] = pair if earlier is None else _together(earlier, pair)
    if not merged:
        raise InvalidInputError(_nothing_left(file.path, left_out), reason="NO_LABELS", field="labels")
    _check_sides(file.path, sides, allow_one_class=allow_one_class)
    return list(merged.values()), LabelCounts(num_pairs=len(merged), num_merged=num_merged, **left_out)


def _pair(line: Mapping[str, Any], *, place: str, file: LabelFile) -> LabelledPair | str:
    """The row's pair, or the name of the count that it belongs to."""
    by_choice = "chosen" in line or "rejected" in line
    probability = _probability_first(line, by_choice=by_choice, place=place)
    if probability is None:
        return "num_abstained"
    weight = _weight(line, place=place)
    if weight == 0.0:
        return "num_weightless"
    texts = ("chosen", "rejected") if by_choice else ("first", "second")
    for name in texts:
        if not by_choice:
            text_of(line, name, place=place)
        elif not isinstance(line.get(name), str | list):
            raise InvalidInputError(f"{place}: {name} must be text or a list of messages", field="labels")
    if line[texts[0]] == line[texts[1]]:
        return "num_identical"
    conversation, first, second = _texts(line, by_choice=by_choice, place=place)
    pair = LabelledPair(
        prompt_id=_label(line, "prompt_id", place=place),
        category=_label(line, "category", place=place) or None,
        conversation=conversation,
        first=first,
        second=second,
        probability_first=probability,
        weight=weight * file.weight,
        votes={} if by_choice else _votes(line, place=place),
        source=_source(line, file=file, place=place),
        language=_language(line, place=place),
        margin=_margin(line, place=place),
        smoothing=file.smoothing,
    )
    # Whatever is measured of "first" would mean "better" if the chosen response were always called first.
    return _swapped(pair) if by_choice and _key(pair.first) > _key(pair.second) else pair


def _probability_first(line: Mapping[str, Any], *, by_choice: bool, place: str) -> float | None:
    name = "probability_chosen" if by_choice else "probability_first"
    if name not in line:
        if by_choice:
            return 1.0
        preference = line.get("preference")
        if not isinstance(preference, str) or preference not in _PREFERENCES:
            raise InvalidInputError(
                f"{place}: there is neither probability_first nor a preference of {', '.join(_PREFERENCES)}",
                field="labels",
            )
        return _PREFERENCES[preference]
    value = line[name]
    if value is None:
        return None
    number = number_of(value)
    if number is None or not 0.0 <= number <= 1.0:
        raise InvalidInputError(f"{place}: {name} is {value!r}, not in [0, 1]", field="labels")
    return number


def _weight(line: Mapping[str, Any], *, place: str) -> float:
    value = line.get("weight", 1.0)
    number = number_of(value)
    low, high = _WEIGHTS
    if number is None or not (number == 0.0 or low <= number <= high):
        raise InvalidInputError(
            f"{place}: weight is {value!r}, neither 0 nor a number from {low:g} to {high:g}", field="labels"
        )
    return number


def _texts(line: Mapping[str, Any], *, by_choice: bool, place: str) -> tuple[Conversation, str, str]:
    if not by_choice and "messages" in line:
        return conversation_of(line, place=place), str(line["first"]), str(line["second"])
    try:
        parsed = parse_preference(line if by_choice else {**line, "preference": "first"})
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: {error.field}: {error.message}", field="labels") from error
    return parsed.conversation, parsed.first, parsed.second


def _votes(line: Mapping[str, Any], *, place: str) -> dict[str, float]:
    votes: dict[str, float] = {}
    for vote in line.get("votes") or ():
        name = vote.get("principle_id") if isinstance(vote, Mapping) else None
        said = vote.get("probability_first") if name else None
        probability = number_of(said) if said is not None else None
        wrong = said is not None and (probability is None or not 0.0 <= probability <= 1.0)
        if not isinstance(name, str) or wrong:
            raise InvalidInputError(f"{place}: votes holds {vote!r}, not a principle's probability", field="labels")
        if probability is not None:
            votes[name] = probability
    return votes


def _margin(line: Mapping[str, Any], *, place: str) -> float | None:
    value = line.get("margin")
    if value is None:
        return None
    number = number_of(value)
    if number is None or not 0.0 <= number <= _WEIGHTS[1]:
        raise InvalidInputError(f"{place}: margin is {value!r}, not a number from 0 to {_WEIGHTS[1]:g}", field="labels")
    return number


def _source(line: Mapping[str, Any], *, file: LabelFile, place: str) -> str:
    said = _label(line, "source", place=place)
    if said and said not in _SOURCES:
        raise InvalidInputError(f"{place}: source is {said!r}, not one of {', '.join(_SOURCES)}", field="labels")
    return said or ("human" if _label(line, "annotator", place=place) else file.source)


def _language(line: Mapping[str, Any], *, place: str) -> str:
    try:
        return check_language(_label(line, "language", place=place), field="labels")
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: language: {error.message}", field="labels") from error


def _label(line: Mapping[str, Any], name: str, *, place: str) -> str:
    return text_of(line, name, place=place) if line.get(name) is not None else ""


def _identity(pair: LabelledPair) -> Hashable:
    """What two labels of one pair share, in whichever order they name its responses."""
    texts = tuple(sorted((pair.first, pair.second)))
    return pair.conversation, texts, pair.source, pair.category, pair.language, pair.margin


def _key(text: str) -> str:
    return sha256_hex(text.encode())


def _swapped(pair: LabelledPair) -> LabelledPair:
    return replace(
        pair,
        first=pair.second,
        second=pair.first,
        probability_first=1.0 - pair.probability_first,
        votes={name: 1.0 - vote for name, vote in pair.votes.items()},
    )


def _together(one: LabelledPair, other: LabelledPair) -> LabelledPair:
    other = other if other.first == one.first else _swapped(other)
    weight = one.weight + other.weight
    share = other.weight / weight

    def mixed(mine: float, theirs: float) -> float:
        return min(1.0, max(0.0, (1.0 - share) * mine + share * theirs))

    votes = {**one.votes, **other.votes}
    votes |= {name: mixed(one.votes[name], other.votes[name]) for name in one.votes.keys() & other.votes.keys()}
    return replace(
        one,
        prompt_id=one.prompt_id or other.prompt_id,
        probability_first=mixed(one.probability_first, other.probability_first),
        weight=weight,
        votes=votes,
    )


def _certainty_class(certainty: float) -> str:
    place = sum(certainty >= bound for bound in _CERTAINTIES[1:-1])
    return f"{_CERTAINTIES[place]:g}-{_CERTAINTIES[place + 1]:g}"


def _check_sides(path: Path, sides: Sequence[int], *, allow_one_class: bool) -> None:
    decided = [side for side in sides if side]
    if allow_one_class or len(decided) < MIN_ONE_SIDED or len(set(decided)) > 1:
        return
    which = "first" if decided[0] > 0 else "second"
    raise InvalidInputError(
        f"{path}: all {len(decided)} decided labels prefer the {which} response. Where chance decides which is called "
        "first, the judge looks at the place and not at the text, or labels were written down wrong. Rows that put the "
        "better response first belong in the form {prompt, chosen, rejected}; allow_one_class trains all the same",
        reason="ONE_CLASS",
        field="labels",
    )


def _nothing_left(path: Path, left_out: Mapping[str, int]) -> str:
    total = sum(left_out.values())
    if not total:
        return f"{path} holds no labels"
    return (
        f"{path}: none of the {total} labels can be trained on ({left_out['num_abstained']} abstained, "
        f"{left_out['num_weightless']} weigh nothing, {left_out['num_identical']} compare a text with itself)"
    )
