"""One comparison as the statistics see it: what the judge said, what people said, and which slice it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.core.calibration import CalibrationKey
from rlaif.core.preference import Preference, preference_of

_LENGTH_BOUNDS = (256, 1024, 4096)


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A label of the judge beside the votes of people on the same two responses.

    Which response is "first" must not depend on who is better, or kappa means nothing: take any fixed order of texts.
    """

    pair: str
    """Identity of conversation and responses; several labels may share it."""
    probability_first: float | None
    """P(first preferred), calibrated where a calibration applied; None exactly when the judge abstained."""
    raw_probability_first: float | None = None
    """The same before calibration."""
    order_consistent: bool = True
    probability_when_first: float | None = None
    """P(first preferred) when it was shown first, over all principles; None when it is not known."""
    probability_when_second: float | None = None
    """P(first preferred) when it was shown second."""
    human_votes: tuple[float, ...] = ()
    """P(first preferred) according to each person who voted: 1, 0, or 1/2 for a tie."""
    panel_votes: tuple[float, ...] = ()
    """P(first preferred) according to each judge of a panel that voted."""
    num_characters: tuple[int, int] | None = None
    """Lengths of both responses; None when neither texts nor lengths were kept."""
    conversation: str = ""
    """Identity of the conversation."""
    judge: str = ""
    constitution: str = ""
    category: str = ""
    language: str = ""
    key: CalibrationKey | None = None
    """Judge, template and constitution by digest; None when one of them is not known."""
    calibration: str = ""
    """Calibration that was applied, empty for none."""

    @property
    def preference(self) -> Preference:
        """What the judge prefers."""
        return Preference.ABSTAIN if self.probability_first is None else preference_of(self.probability_first)

    @property
    def human_share(self) -> float | None:
        """Mean of the people's votes: how likely a person prefers the first; None without a vote."""
        return sum(self.human_votes) / len(self.human_votes) if self.human_votes else None

    @property
    def length_class(self) -> str:
        """Range of characters that the longer response falls in; empty when lengths are not known."""
        if self.num_characters is None:
            return ""
        longest = max(self.num_characters)
        lower = 0
        for bound in _LENGTH_BOUNDS:
            if longest < bound:
                return f"{lower}-{bound - 1}"
            lower = bound
        return f"{lower}+"
