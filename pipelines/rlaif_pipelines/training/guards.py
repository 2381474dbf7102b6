"""Guards: what the figures of a step must hold, or the training stops or slows down. Figures in, firings out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, Literal

from rlaif_pipelines.training.config.rl import Guard, GuardSettings

GuardName = Literal["kl", "held_out", "length", "entropy", "repetition"]

_NGRAM = 4
_LOWERED = 0.5
_SMALLEST_ERROR = 1e-6


@dataclass(frozen=True)
class Firing:
    """A guard whose limit was passed; `sentence` says it with its numbers."""

    guard: GuardName
    action: Literal["stop", "lower_rate"]
    step: int
    """The step whose figures fired it, counted from 1."""
    value: float
    limit: float
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class HeldOutScore:
    """What the second opinion says of one version's completions of the prompts set apart."""

    num_steps: int
    """Steps that those weights had been trained for."""
    version: int
    scores: tuple[float | None, ...]
    """Mean score of each prompt's completions; None where none was scored."""
    reward: float | None = None
    """Mean training reward of the steps up to here, since the measurement before."""

    @property
    def mean(self) -> float | None:
        """Over the prompts that have a score."""
        present = [score for score in self.scores if score is not None]
        return fmean(present) if present else None


@dataclass
class _Window:
    """The latest values of a figure, and the mean of its first ones."""

    size: int
    recent: list[float] = field(default_factory=list)
    baseline: float | None = None

    def add(self, value: float) -> None:
        self.recent = [*self.recent, value][-self.size :]
        if self.baseline is None and len(self.recent) == self.size:
            self.baseline = fmean(self.recent)

    @property
    def mean(self) -> float | None:
        """None until the window is full."""
        return fmean(self.recent) if len(self.recent) == self.size else None


class Guards:
    """Watches a training. What it remembers goes through a checkpoint bit by bit."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._windows: dict[GuardName, _Window] = {
            "kl": _Window(settings.kl.window),
            "length": _Window(settings.length.window),
            "entropy": _Window(settings.entropy.window),
            "repetition": _Window(settings.repetition.window),
        }
        self._rewards: list[float] = []
        self._num_falls = 0
        self.best: HeldOutScore | None = None
        """The measurement with the highest mean so far."""
        self.fall: float | None = None
        """Of the last step's held-out score from the best before it, in standard errors; None where it has none."""
        self.rate_factor = 1.0
        """What the learning rate is multiplied by."""
        self.used: dict[GuardName, float] = {}
        """How much of its limit each guard found used at the last step: 0 nothing, over 1 it fires; as far as known."""

    def observe(
        self, step: int, *, figures: Mapping[str, Any], held_out: HeldOutScore | None = None
    ) -> tuple[Firing, ...]:
        """The guards that fire on this step's figures; one that fires begins a fresh window.

        A figure that is None or not finite is no evidence. `held_out` is of the weights that the step's rollouts came
        from.
        """
        if _is_number(figures.get("reward")):
            self._rewards.append(float(figures["reward"]))
        self.fall, self.used = None, {}
        found = [self._kl(step, figures.get("kl"))]
        if held_out is not None:
            found.append(self._held_out(step, held_out))
        found += [
            self._length(step, figures.get("completion_tokens")),
            self._entropy(step, figures.get("entropy")),
            self._repetition(step, figures.get("repetition")),
        ]
        fired = tuple(firing for firing in found if firing is not None)
        if any(firing.action == "lower_rate" for firing in fired):
            self.rate_factor *= _LOWERED
        return fired

    def to_json(self) -> dict[str, Any]:
        """All that it remembers."""
        return {
            "windows": {name: [window.recent, window.baseline] for name, window in self._windows.items()},
            "rewards": self._rewards,
            "num_falls": self._num_falls,
            "best": asdict(self.best) if self.best else None,
            "rate_factor": self.rate_factor,
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Goes back to what `to_json` gave."""
        for name, window in self._windows.items():
            window.recent, window.baseline = values["windows"][name]
        self._rewards = list(values["rewards"])
        self._num_falls = values["num_falls"]
        best = values["best"]
        self.best = HeldOutScore(**{**best, "scores": tuple(best["scores"])}) if best else None
        self.rate_factor = values["rate_factor"]

    def _kl(self, step: int, value: Any) -> Firing | None:
        settings, mean = self._settings.kl, self._mean("kl", value)
        if settings.limit is None or mean is None:
            return None
        self.used["kl"] = mean / settings.limit
        if mean <= settings.limit:
            return None
        said = f"the policy is {mean:.2f} nats a completion away from the reference; the limit is {settings.limit:g}"
        return self._fire("kl", settings, step=step, value=mean, limit=settings.limit, sentence=said)

    def _length(self, step: int, value: Any) -> Firing | None:
        settings, mean = self._settings.length, self._mean("length", value)
        baseline = self._windows["length"].baseline
        if settings.limit is None or not mean or not baseline:
            return None
        factor = max(mean / baseline, baseline / mean)
        self.used["length"] = (factor - 1) / (settings.limit - 1)
        if factor <= settings.limit:
            return None
        said = (
            f"completions went from {baseline:.1f} to {mean:.1f} tokens, a factor {factor:.2f}; the limit is "
            f"{settings.limit:g}"
        )
        return self._fire("length", settings, step=step, value=factor, limit=settings.limit, sentence=said)

    def _entropy(self, step: int, value: Any) -> Firing | None:
        settings, mean = self._settings.entropy, self._mean("entropy", value)
        baseline = self._windows["entropy"].baseline
        if settings.limit is None or mean is None or not baseline:
            return None
        share = mean / baseline
        self.used["entropy"] = (1 - share) / (1 - settings.limit)
        if share >= settings.limit:
            return None
        said = (
            f"the entropy went from {baseline:.3f} to {mean:.3f} nats a token, a share of {share:.2f}; the limit is "
            f"{settings.limit:g}"
        )
        return self._fire("entropy", settings, step=step, value=share, limit=settings.limit, sentence=said)

    def _repetition(self, step: int, value: Any) -> Firing | None:
        settings, mean = self._settings.repetition, self._mean("repetition", value)
        baseline = self._windows["repetition"].baseline
        if settings.limit is None or mean is None or baseline is None:
            return None
        self.used["repetition"] = (mean - baseline) / settings.limit
        if mean - baseline <= settings.limit:
            return None
        said = (
            f"repeated 4-grams went from {baseline:.1%} to {mean:.1%} of a completion; the limit is a rise of "
            f"{settings.limit:.0%}"
        )
        return self._fire("repetition", settings, step=step, value=mean - baseline, limit=settings.limit, sentence=said)

    def _held_out(self, step: int, score: HeldOutScore) -> Firing | None:
        """Reward up since the best measurement, held-out score down by more than chance."""
        settings = self._settings.held_out
        now = replace(score, reward=fmean(self._rewards) if self._rewards else None)
        self._rewards = []
        if now.mean is None:
            return None
        if self.best is not None:
            self.fall = paired_fall(self.best.scores, now.scores)
        if self.best is None or self.best.mean is None or now.mean > self.best.mean:
            self.best, self._num_falls = now, 0
            return None
        if settings.limit is None:
            return None
        best, fall = self.best, self.fall
        if fall is not None:
            self.used["held_out"] = fall / settings.limit
        reward_rose = now.reward is not None and best.reward is not None and now.reward > best.reward
        if fall is None or fall <= settings.limit or not reward_rose:
            self._num_falls = 0
            return None
        self._num_falls += 1
        if self._num_falls < settings.window:
            return None
        said = (
            f"the reward rose from {best.reward:.3f} to {now.reward:.3f} while the held-out score fell from "
            f"{best.mean:.3f} after step {best.num_steps} to {now.mean:.3f}, {fall:.1f} standard errors, "
            f"{self._num_falls} times in a row; the limit is {settings.limit:g}"
        )
        return self._fire("held_out", settings, step=step, value=fall, limit=settings.limit, sentence=said)

    def _mean(self, name: GuardName, value: Any) -> float | None:
        """The window's mean with this value in it; None where there is no new value, or too few."""
        if not _is_number(value):
            return None
        self._windows[name].add(float(value))
        return self._windows[name].mean

    def _fire(
        self, name: GuardName, settings: Guard, *, step: int, value: float, limit: float, sentence: str
    ) -> Firing:
        if name == "held_out":
            self._num_falls = 0
        else:
            self._windows[name].recent = []
        return Firing(guard=name, action=settings.action, step=step, value=value, limit=limit, sentence=sentence)


def paired_fall(before: Sequence[float | None], after: Sequence[float | None]) -> float | None:
    """How far scores of the same prompts fell, in standard errors of the mean difference; negative is a rise.

    None with fewer than two pairs.
    """
    falls = [old - new for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    if len(falls) < 2:
        return None
    mean, error = fmean(falls), stdev(falls) / math.sqrt(len(falls))
    return mean / max(error, _SMALLEST_ERROR)


def repeated_share(token_ids: Sequence[int]) -> float:
    """Share of a completion's 4-grams that it has said before; 0 where it has fewer than two."""
    grams = [tuple(token_ids[start : start + _NGRAM]) for start in range(len(token_ids) - _NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
