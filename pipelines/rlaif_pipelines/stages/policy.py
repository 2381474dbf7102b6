"""Which version of the policy a round begins with, and which one a round left."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif_pipelines.context import RunContext, stage_name


@dataclass(frozen=True)
class PolicyVersion:
    """One version of the run's policy: optimiser steps since the base, model folder, digest."""

    version: int
    uri: str
    digest: str


def starting_policy(context: RunContext, *, round_number: int) -> PolicyVersion:
    """The base in round 1, else what the round before trained."""
    if round_number > 1:
        return trained_policy(context, round_number=round_number - 1)
    values = context.result("prepare").values
    return PolicyVersion(0, values["policy_uri"], values["policy_digest"])


def trained_policy(context: RunContext, *, round_number: int) -> PolicyVersion:
    """What a round's training left."""
    values = context.result(stage_name("train", round_number)).values
    return PolicyVersion(values["version"], values["uri"], values["digest"])
