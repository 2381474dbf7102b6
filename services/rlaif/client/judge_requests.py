"""What a judge is asked, as messages on the wire; the blocking and the awaited client share them."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.client.judge_messages import Rules, constitution_message, conversation_messages
from rlaif.client.judge_values import Asked, JudgeOptions, ResponsePair, ResponseToScore, ToScore
from rlaif.v1 import judge_service_pb2 as pb

_RECORD_MODES = {
    None: pb.RECORD_MODE_UNSPECIFIED,
    "digests": pb.RECORD_MODE_DIGESTS,
    "texts": pb.RECORD_MODE_TEXTS,
}


def compare_request(rules: Rules, pair: ResponsePair, options: JudgeOptions) -> pb.CompareResponsesRequest:
    """One comparison."""
    return pb.CompareResponsesRequest(
        constitution=_name(rules),
        inline_constitution=_inline(rules),
        messages=conversation_messages(pair.conversation),
        first=pair.first,
        second=pair.second,
        category=pair.category,
        language=pair.language,
        options=_options(options),
    )


def compare_batch_request(
    rules: Rules, pairs: Sequence[ResponsePair], options: JudgeOptions
) -> pb.BatchCompareResponsesRequest:
    """One batch of comparisons."""
    return pb.BatchCompareResponsesRequest(
        constitution=_name(rules),
        inline_constitution=_inline(rules),
        pairs=map(_pair, pairs),
        options=_options(options),
    )


def score_request(rules: Rules, item: ResponseToScore, options: JudgeOptions) -> pb.ScoreResponseRequest:
    """One score."""
    return pb.ScoreResponseRequest(
        constitution=_name(rules),
        inline_constitution=_inline(rules),
        messages=conversation_messages(item.conversation),
        response=item.response,
        category=item.category,
        options=_options(options),
    )


def score_batch_request(rules: Rules, items: Sequence[ToScore], options: JudgeOptions) -> pb.BatchScoreResponsesRequest:
    """One batch of scores."""
    return pb.BatchScoreResponsesRequest(
        constitution=_name(rules),
        inline_constitution=_inline(rules),
        responses=[
            pb.ResponseToScore(
                messages=conversation_messages(item.conversation), response=item.response, category=item.category
            )
            for item in (ResponseToScore(*each) for each in items)
        ],
        options=_options(options),
    )


def rank_request(
    rules: Rules, conversation: Asked, responses: Sequence[str], options: JudgeOptions, *, category: str
) -> pb.RankResponsesRequest:
    """One ranking."""
    return pb.RankResponsesRequest(
        constitution=_name(rules),
        inline_constitution=_inline(rules),
        messages=conversation_messages(conversation),
        responses=responses,
        category=category,
        options=_options(options),
    )


def critique_request(rules: Rules, item: ResponseToScore, options: JudgeOptions) -> pb.CritiqueResponseRequest:
    """One critique."""
    return pb.CritiqueResponseRequest(
        constitution=_name(rules),
        inline_constitution=_inline(rules),
        messages=conversation_messages(item.conversation),
        response=item.response,
        category=item.category,
        options=_options(options),
    )


def revise_request(
    rules: Rules, item: ResponseToScore, *, critique: str, principle_ids: Sequence[str], seed: int
) -> pb.ReviseResponseRequest:
    """One rewrite."""
    return pb.ReviseResponseRequest(
        constitution=_name(rules),
        inline_constitution=_inline(rules),
        messages=conversation_messages(item.conversation),
        response=item.response,
        category=item.category,
        critique=critique,
        principle_ids=principle_ids,
        seed=seed,
    )


def audit_request(
    rules: Rules, probe_pairs: Sequence[ResponsePair], *, written_audit: bool
) -> pb.AuditConstitutionRequest:
    """One audit."""
    return pb.AuditConstitutionRequest(
        constitution=_name(rules),
        inline_constitution=_inline(rules),
        probe_pairs=map(_pair, probe_pairs),
        written_audit=written_audit,
    )


def _name(rules: Rules) -> str:
    return rules if isinstance(rules, str) else ""


def _inline(rules: Rules) -> pb.Constitution | None:
    return None if isinstance(rules, str) else constitution_message(rules)


def _pair(pair: ResponsePair) -> pb.Pair:
    return pb.Pair(
        messages=conversation_messages(pair.conversation),
        first=pair.first,
        second=pair.second,
        category=pair.category,
        language=pair.language,
    )


def _options(options: JudgeOptions) -> pb.JudgeOptions:
    return pb.JudgeOptions(
        principle_ids=options.principle_ids,
        num_sampled_principles=options.num_sampled_principles,
        seed=options.seed,
        reasoning=options.reasoning,
        num_reasoning_samples=options.num_reasoning_samples,
        min_verdict_mass=options.min_verdict_mass,
        record=_RECORD_MODES[options.record],
        ignore_recorded=options.ignore_recorded,
    )
