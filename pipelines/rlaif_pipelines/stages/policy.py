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


def base_policy(context: RunContext) -> PolicyVersion:
    """The policy as it was given, before anything is trained."""
    values = context.result("prepare").values
    return PolicyVersion(0, values["policy_uri"], values["policy_digest"])


def starting_policy(context: RunContext, *, round_number: int) -> PolicyVersion:
    """In round 1 the base, or what the constitutional stage made of it; else what the round before trained."""
    if round_number > 1:
        return trained_policy(context, round_number=round_number - 1)
    return base_policy(context) if context.settings.constitutional_stage == "none" else _version(context, "sft")


def trained_policy(context: RunContext, *, round_number: int) -> PolicyVersion:
    """What a round's training left; without rounds what the constitutional stage left."""
    return _version(context, training_stage(context, round_number=round_number))


def training_stage(context: RunContext, *, round_number: int) -> str:
    """The stage whose policy is evaluated after that round."""
    if context.settings.pipeline == "evaluate-only":
        return "adopt"
    return "sft" if context.settings.constitutional_stage == "only" else stage_name("train", round_number)


def _version(context: RunContext, stage: str) -> PolicyVersion:
    values = context.result(stage).values
    return PolicyVersion(values["version"], values["uri"], values["digest"])
