"""How a training ends other than by being done."""

from __future__ import annotations

from rlaif.core.errors import RlaifError


class DivergedError(RlaifError, ArithmeticError):
    """A loss or gradient is not finite; the last checkpoint is from before."""

    reason = "DIVERGED"


class GuardError(RlaifError, RuntimeError):
    """A guard ended the training; the model that is written is the version it went back to."""

    reason = "GUARD"


class PausedError(RlaifError, RuntimeError):
    """A service is away or fails too often; started again, the training goes on from its last checkpoint."""

    reason = "PAUSED"
