"""Which roles may call which method: the one table of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from rlaif.core.errors import ForbiddenError


class Role(StrEnum):
    """What the holder of a token or certificate may do."""

    READER = "reader"
    """Reads what there is: labels, events, statistics, what is loaded. And /metrics."""
    CALLER = "caller"
    """Asks models: for completions, verdicts, scores, critiques, revisions."""
    TRAINER = "trainer"
    """All that a run does: asks models, loads new ones, writes labels and decisions to the ledger; a judge too."""
    REVIEWER = "reviewer"
    """Checks labels, resolves appeals and incidents, imports people's votes."""
    ADMIN = "admin"
    """Everything."""


METRICS_ROLES = frozenset({Role.READER, Role.ADMIN})
"""Who may read /metrics where that asks for a token."""

_EVERYONE = frozenset(Role)
_ASKING = frozenset({Role.CALLER, Role.TRAINER, Role.ADMIN})
_TRAINING = frozenset({Role.TRAINER, Role.ADMIN})
_READING = frozenset({Role.READER, Role.TRAINER, Role.REVIEWER, Role.ADMIN})
_RECORDING = frozenset({Role.TRAINER, Role.REVIEWER, Role.ADMIN})
_REVIEWING = frozenset({Role.REVIEWER, Role.ADMIN})
_COMPLAINING = frozenset({Role.CALLER, Role.TRAINER, Role.REVIEWER, Role.ADMIN})

METHOD_ROLES: Mapping[str, frozenset[Role]] = {
    "rlaif.v1.SamplerService.SampleCompletions": _ASKING,
    "rlaif.v1.SamplerService.StreamCompletions": _ASKING,
    "rlaif.v1.SamplerService.GetPolicy": _EVERYONE,
    "rlaif.v1.SamplerService.LoadPolicy": _TRAINING,
    "rlaif.v1.JudgeService.CompareResponses": _ASKING,
    "rlaif.v1.JudgeService.BatchCompareResponses": _ASKING,
    "rlaif.v1.JudgeService.RankResponses": _ASKING,
    "rlaif.v1.JudgeService.ScoreResponse": _ASKING,
    "rlaif.v1.JudgeService.BatchScoreResponses": _ASKING,
    "rlaif.v1.JudgeService.CritiqueResponse": _ASKING,
    "rlaif.v1.JudgeService.ReviseResponse": _ASKING,
    "rlaif.v1.JudgeService.AuditConstitution": _COMPLAINING,
    "rlaif.v1.JudgeService.GetConstitution": _EVERYONE,
    "rlaif.v1.JudgeService.ListConstitutions": _EVERYONE,
    "rlaif.v1.JudgeService.GetJudge": _EVERYONE,
    "rlaif.v1.RewardService.ScoreResponses": _ASKING,
    "rlaif.v1.RewardService.GetRewardModel": _EVERYONE,
    "rlaif.v1.RewardService.LoadRewardModel": _TRAINING,
    "rlaif.v1.LedgerService.RecordLabels": _TRAINING,
    "rlaif.v1.LedgerService.LookupLabels": _READING,
    "rlaif.v1.LedgerService.ListLabels": _READING,
    "rlaif.v1.LedgerService.GetLabel": _READING,
    "rlaif.v1.LedgerService.ImportLabels": _RECORDING,
    "rlaif.v1.LedgerService.ExportLabels": _READING,
    "rlaif.v1.LedgerService.RecordEvent": _RECORDING,
    "rlaif.v1.LedgerService.ListEvents": _READING,
    "rlaif.v1.LedgerService.VerifyLedger": _READING,
    "rlaif.v1.ReviewService.ListReviews": _READING,
    "rlaif.v1.ReviewService.ClaimReview": _REVIEWING,
    "rlaif.v1.ReviewService.SubmitReview": _REVIEWING,
    "rlaif.v1.ReviewService.CreateAppeal": _COMPLAINING,
    "rlaif.v1.ReviewService.ListAppeals": _READING,
    "rlaif.v1.ReviewService.ResolveAppeal": _REVIEWING,
    "rlaif.v1.ReviewService.CreateIncident": _COMPLAINING,
    "rlaif.v1.ReviewService.ListIncidents": _READING,
    "rlaif.v1.ReviewService.ResolveIncident": _REVIEWING,
    "rlaif.v1.ReviewService.GetLabelQuality": _READING,
}
"""Roles by method's full name. A method without a row is for admins alone."""

_NOBODY_ELSE = frozenset({Role.ADMIN})


def check_role(method: str, *, actor: str, roles: frozenset[Role]) -> None:
    """ForbiddenError, naming the roles that would do, unless one of `roles` may call `method` ("rlaif.v1.X.Y")."""
    needed = METHOD_ROLES.get(method, _NOBODY_ELSE)
    if roles & needed:
        return
    names = [role.value for role in Role if role in needed]
    raise ForbiddenError(
        f"{actor} may not call {method}: that needs the role {one_of(needed)}",
        reason="ROLE_MISSING",
        metadata={"method": method, "roles_needed": ",".join(names), "roles": ",".join(sorted(roles))},
    )


def one_of(roles: frozenset[Role]) -> str:
    """The roles in words: "caller, trainer or admin"."""
    *others, last = [role.value for role in Role if role in roles]
    return f"{', '.join(others)} or {last}" if others else last
