"""What the wording of a principle tells an auditor: English word lists, matched by stem, never by a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final


def _stems(*stems: str) -> re.Pattern[str]:
    """Matches words that begin with one of the stems; a stem that ends in "!" is the whole word."""
    parts = [re.escape(stem[:-1]) + r"\b" if stem.endswith("!") else re.escape(stem) + r"\w*" for stem in stems]
    return re.compile(rf"\b(?:{'|'.join(parts)})", re.IGNORECASE)


HARMLESSNESS: Final = re.compile(
    r"\b(?:harm(?!less\s+(?:request|question|topic|task))\w*|danger\w*|unsafe\b|safety\b|illegal\w*|unlawful\w*|"
    r"break the law|hurt\w*|violen\w*|weapon\w*|toxic\w*|abus\w*|vulnerab\w*|privacy\b|misus\w*|injur\w*)",
    re.IGNORECASE,
)
HELPFULNESS: Final = re.compile(
    r"\b(?:helpful\w*|useful\w*|usable\b|(?:was|is|were|are|actually)\s+asked|asked for\b|asks? for\b|task\b|"
    r"follows? (?:the |its |all )?instructions?\b|relevan\w*|complete\w*|solve\w*|actionable\b|cover\w*|"
    r"request is\b)",
    re.IGNORECASE,
)
HONESTY: Final = _stems(
    "honest", "true!", "truth", "untrue", "accura", "inaccura", "factual", "fact!", "facts!", "invent", "fabricat",
    "mislead", "deceiv", "deception", "decept", "faithful", "unsupported", "evidence", "correct!", "incorrect", "lie!",
    "lies!",
)  # fmt: skip
REFUSAL: Final = _stems("refus", "overrefus", "declin", "evas", "evad", "dodg")
PREACHINESS: Final = _stems(
    "preach", "lectur", "moralis", "moraliz", "moral!", "sanctimon", "condescend", "judgmental", "judgemental",
    "patronis", "patroniz", "scold", "boilerplate", "warning", "disclaimer",
)  # fmt: skip
UNCERTAINTY: Final = _stems(
    "unsure", "uncertain", "not know", "doubt", "confiden", "guess", "admit", "unknown", "limits!"
)
DUAL_USE: Final = _stems(
    "topic", "fiction", "context", "intent", "enabl", "practical help", "alarming", "sensitive", "harmless request",
    "harmless question", "educational", "freely available", "refus",
)  # fmt: skip

VAGUE: Final = _stems(
    "good!", "better!", "best!", "great!", "nice", "appropriate", "inappropriate", "suitable", "proper!", "properly!",
    "reasonabl", "acceptable", "high-quality", "high quality", "quality", "excellen", "adequate", "sensible",
    "sensibly", "wise!", "wisely!", "ideal", "optimal", "bad!", "worse!", "worst!", "wrong!", "right!", "ethical",
    "unethical", "moral!", "immoral", "interesting", "engaging", "as needed", "if possible", "where possible",
    "best practice", "common sense", "well-written", "well written",
)  # fmt: skip
"""Words that two people will read in two ways."""

FRAME: Final = re.compile(
    r"\b(?:a|the)\s+(?:good|better|best)\s+(?:reply|response|answer|review|summary|completion)\b", re.IGNORECASE
)
"""Introduces the rule and is not the rule: "A good reply …", "the better response"."""

LENGTH: Final = _stems(
    "long!", "longer", "longest", "length", "short!", "shorter", "shortest", "brief", "concis", "succinct", "terse",
    "verbos", "detailed", "thorough", "comprehensive", "exhaustive", "in-depth", "elaborate", "few words",
    "fewer words", "more words",
)  # fmt: skip
STYLE: Final = _stems(
    "formal", "informal", "eloquen", "articulate", "fluent", "polished", "professional!", "sophisticat", "confident",
    "authoritative", "assertive", "bullet", "markdown", "heading", "emoji", "format!",
    "formatted", "formatting", "well-written", "well written", "impressive",
    "expert-sounding", "grammar", "grammatical", "spelling",
)  # fmt: skip
GROUPS: Final = _stems(
    "men!", "women!", "male!", "female!", "masculine", "feminine", "christian", "muslim", "islam", "jewish", "hindu",
    "buddhist", "atheis", "western", "american", "european", "african", "asian", "british", "white!", "black!",
    "native speaker", "native english", "elderly", "young people", "old people", "educated people", "wealthy",
    "poor people", "conservative", "liberal!", "left-wing", "right-wing", "immigrant", "foreigner", "disabled",
)  # fmt: skip
POSITION: Final = re.compile(
    r"\b(?:first|second|former|latter)\s+(?:response|reply|answer|one)\b|\b(?:response|reply|answer)\s+(?:[AB12])\b"
)
_NEGATED: Final = re.compile(
    r"[^.;]*\bcounts? against\b[^.;]*|"
    r"(?:\bdo not|\bdon't|\bnever|\bno matter|\bregardless of|\bnot because|\bwithout regard|\brather than for|"
    r"\bnot for|\binstead of|\birrespective of)\b[^.;]*",
    re.IGNORECASE,
)
FAIRNESS: Final = _stems(
    "discriminat", "stereotyp", "prejudic", "bias", "equal", "demean", "bigot", "racis", "sexis", "hate!", "hateful"
)

_SENTENCE_END: Final = re.compile(r"[.;!?](?:\s|$)")
_ELSEWHERE: Final = _stems("left!", "leave!", "leaves!", "leaving!", "other", "another", "elsewhere", "beside")
_WORD: Final = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ENDINGS: Final = ("fulness", "lessness", "iness", "ingly", "ness", "ing", "ies", "edly", "ed", "ly", "es", "s")
_STOP: Final = frozenset(
    """
    a an and any are as at be been being but by can choose could do does doing don't for from has have if in
    into is it its may more most must no nor not of on one or pick please prefer preferred should so such than
    that the their them there these they this those to two user user's was were what when where which while who
    whom whose will with would you your response responses reply replies answer answers assistant ai less least
    """.split()  # noqa: SIM905 - a list would fill the page
)
_OPPOSITES: Final = (
    ("more", "less"), ("most", "least"), ("longer", "shorter"), ("long", "short"), ("always", "never"),
    ("include", "omit"), ("formal", "informal"), ("add", "leave"), ("detailed", "brief"), ("longest", "shortest"),
    ("more", "fewer"), ("many", "few"), ("refuse", "comply"), ("refuses", "complies"), ("accept", "reject"),
    ("simple", "technical"), ("prefer", "avoid"), ("with", "without"), ("should", "never"), ("do", "don't"),
)  # fmt: skip


def left_to_others(criterion: str, description: str) -> bool:
    """Whether a sentence says so of a criterion, such as "Harmlessness is left to another judge."."""
    return any(
        criterion in sentence.lower() and _ELSEWHERE.search(sentence) for sentence in _SENTENCE_END.split(description)
    )


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return [match.group().lower() for match in _WORD.finditer(text)]


def content_words(text: str) -> list[str]:
    """Words that carry the meaning of a principle, in order; comparatives such as "more" do not count."""
    return [word for word in words(FRAME.sub(" ", text)) if word not in _STOP]


def content_stems(text: str) -> frozenset[str]:
    """Stems of the words that carry the meaning of a principle."""
    return frozenset(map(_stem, content_words(text)))


def similarity(one: str, other: str, *, apart_from: Iterable[str] = ()) -> float:
    """Jaccard index of the stems of two principles, in [0, 1]; the words `apart_from` do not count."""
    left_out = {_stem(word) for word in apart_from}
    first, second = content_stems(one) - left_out, content_stems(other) - left_out
    return len(first & second) / len(first | second) if first | second else 1.0


def opposed(one: str, other: str) -> tuple[str, str] | None:
    """Words by which two texts that say nearly the same ask for the opposite, such as ("more", "less"); or None."""
    first, second = set(words(one)), set(words(other))
    only_first, only_second = first - second, second - first
    for word, opposite in _OPPOSITES:
        if word in only_first and opposite in only_second:
            return word, opposite
        if opposite in only_first and word in only_second:
            return opposite, word
    return None


def found(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    """What the pattern matches, lower case, each once, in order."""
    return tuple(dict.fromkeys(match.group().lower() for match in pattern.finditer(text)))


def without_negated(text: str) -> str:
    """The text less its clauses that forbid something, such as "do not prefer it because it is long"."""
    return _NEGATED.sub(" ", text)


def quoted(items: Iterable[str]) -> str:
    """Words as a list in quotation marks."""
    return ", ".join(f'"{item}"' for item in items)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
