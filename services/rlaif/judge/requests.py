"""Requests off the wire into checked candidates and options; what is wrong is named by field and limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.core.conversation import Conversation, check_language
from rlaif.core.errors import InvalidInputError, UnsupportedError
from rlaif.judge.generation import Decoding
from rlaif.judge.tasks import Candidate, JudgingOptions, Reasoning
from rlaif.runtime.messages import TextLimits, check_size, read_conversation
from rlaif.v1 import conversation_pb2, judge_service_pb2

MIN_RANKED, MAX_RANKED = 2, 16
MAX_CATEGORY_BYTES = 64
MAX_REASONING_SAMPLES = 16
MAX_PROBE_PAIRS = 256


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may hold."""

    text: TextLimits
    max_items: int
    max_request_bytes: int


@dataclass(frozen=True)
class OptionDefaults:
    """What the server assumes where a request is silent."""

    min_verdict_mass: float
    abstain_on_injection: bool
    keep_texts: bool
    reasoning: Decoding | None
    """How rationales are drawn where they are asked for; None refuses them."""


class RequestReader:
    """Reads requests under one set of limits and defaults."""

    def __init__(self, limits: RequestLimits, *, defaults: OptionDefaults) -> None:
        self._limits = limits
        self._defaults = defaults

    def pair(self, request: judge_service_pb2.CompareResponsesRequest) -> Candidate:
        """The pair of a single comparison."""
        return self._pair(request, prefix="")

    def pairs(self, request: judge_service_pb2.BatchCompareResponsesRequest) -> list[Candidate]:
        """The pairs of a batch."""
        self._check_count(len(request.pairs), field="pairs")
        candidates = [self._pair(pair, prefix=f"pairs[{index}].") for index, pair in enumerate(request.pairs)]
        self._check_total(candidates, field="pairs")
        return candidates

    def response(self, request: judge_service_pb2.ScoreResponseRequest) -> Candidate:
        """The response of a single score."""
        conversation = self._conversation(request.messages, field="messages")
        self._check_response(request.response, field="response")
        return Candidate(conversation, (request.response,), self._category(request.category, prefix=""))

    def responses(self, request: judge_service_pb2.BatchScoreResponsesRequest) -> list[Candidate]:
        """The responses of a batch; a response may be empty."""
        self._check_count(len(request.responses), field="responses")
        candidates = []
        for index, item in enumerate(request.responses):
            conversation = self._conversation(item.messages, field=f"responses[{index}].messages")
            self._check_size(item.response, field=f"responses[{index}].response")
            category = self._category(item.category, prefix=f"responses[{index}].")
            candidates.append(Candidate(conversation, (item.response,), category))
        self._check_total(candidates, field="responses")
        return candidates

    def ranked(self, request: judge_service_pb2.RankResponsesRequest) -> Candidate:
        """Conversation and responses of a ranking."""
        conversation = self._conversation(request.messages, field="messages")
        if not MIN_RANKED <= len(request.responses) <= MAX_RANKED:
            raise InvalidInputError(
                f"{len(request.responses)} responses cannot be ranked; {MIN_RANKED} to {MAX_RANKED} can",
                field="responses",
            )
        seen: dict[str, int] = {}
        for index, response in enumerate(request.responses):
            self._check_response(response, field=f"responses[{index}]")
            if response in seen:
                raise InvalidInputError(
                    f"the response equals responses[{seen[response]}]",
                    field=f"responses[{index}]",
                    reason="IDENTICAL_RESPONSES",
                )
            seen[response] = index
        return Candidate(conversation, tuple(request.responses), self._category(request.category, prefix=""))

    def options(self, options: judge_service_pb2.JudgeOptions) -> JudgingOptions:
        """Options with the server's defaults filled in."""
        mass = self._defaults.min_verdict_mass
        if options.HasField("min_verdict_mass"):
            mass = options.min_verdict_mass
            if not (math.isfinite(mass) and 0 <= mass <= 1):
                raise InvalidInputError(f"{mass} is not a probability in [0, 1]", field="options.min_verdict_mass")
        check_principle_ids(options.principle_ids, field="options.principle_ids")
        return JudgingOptions(
            principle_ids=tuple(options.principle_ids),
            num_sampled_principles=options.num_sampled_principles,
            seed=options.seed,
            min_verdict_mass=mass,
            abstain_on_injection=self._defaults.abstain_on_injection,
            keep_texts=self._keep_texts(options.record),
            ignore_recorded=options.ignore_recorded,
            reasoning=self._reasoning(options),
        )

    def _reasoning(self, options: judge_service_pb2.JudgeOptions) -> Reasoning | None:
        num_samples = options.num_reasoning_samples
        if num_samples and not options.reasoning:
            raise InvalidInputError(
                "samples of a rationale need `reasoning` to be set", field="options.num_reasoning_samples"
            )
        if num_samples > MAX_REASONING_SAMPLES:
            raise InvalidInputError(
                f"{num_samples} rationales are more than the limit of {MAX_REASONING_SAMPLES}",
                field="options.num_reasoning_samples",
            )
        if not options.reasoning:
            return None
        if self._defaults.reasoning is None:
            raise UnsupportedError(
                "this judge's model writes no rationales", reason="REASONING_UNSUPPORTED", field="options.reasoning"
            )
        return Reasoning(num_samples or 1, self._defaults.reasoning)

    def written_on(
        self, request: judge_service_pb2.CritiqueResponseRequest | judge_service_pb2.ReviseResponseRequest
    ) -> Candidate:
        """The response to criticise or to rewrite."""
        conversation = self._conversation(request.messages, field="messages")
        self._check_response(request.response, field="response")
        return Candidate(conversation, (request.response,), self._category(request.category, prefix=""))

    def critique(self, request: judge_service_pb2.ReviseResponseRequest) -> str:
        """The critique to answer."""
        if not request.critique.strip():
            raise InvalidInputError("the critique is empty", field="critique")
        self._check_size(request.critique, field="critique")
        return request.critique.strip()

    def probe_pairs(self, request: judge_service_pb2.AuditConstitutionRequest) -> list[Candidate]:
        """The pairs on which principles are tried, possibly none."""
        if len(request.probe_pairs) > MAX_PROBE_PAIRS:
            raise InvalidInputError(
                f"{len(request.probe_pairs)} pairs are more than the limit of {MAX_PROBE_PAIRS}", field="probe_pairs"
            )
        pairs = [self._pair(pair, prefix=f"probe_pairs[{index}].") for index, pair in enumerate(request.probe_pairs)]
        self._check_total(pairs, field="probe_pairs")
        return pairs

    def _keep_texts(self, record: int) -> bool:
        if record == judge_service_pb2.RECORD_MODE_UNSPECIFIED:
            return self._defaults.keep_texts
        if record not in (judge_service_pb2.RECORD_MODE_DIGESTS, judge_service_pb2.RECORD_MODE_TEXTS):
            raise InvalidInputError(f"{record} is no record mode", field="options.record")
        return record == judge_service_pb2.RECORD_MODE_TEXTS

    def _pair(
        self, pair: judge_service_pb2.CompareResponsesRequest | judge_service_pb2.Pair, *, prefix: str
    ) -> Candidate:
        conversation = self._conversation(pair.messages, field=f"{prefix}messages")
        self._check_response(pair.first, field=f"{prefix}first")
        self._check_response(pair.second, field=f"{prefix}second")
        if pair.first == pair.second:
            raise InvalidInputError(
                "both responses are the same; there is nothing to prefer",
                field=f"{prefix}second",
                reason="IDENTICAL_RESPONSES",
            )
        category = self._category(pair.category, prefix=prefix)
        language = check_language(pair.language, field=f"{prefix}language")
        return Candidate(conversation, (pair.first, pair.second), category, language)

    def _category(self, category: str, *, prefix: str) -> str:
        size_bytes = len(category.encode())
        if size_bytes > MAX_CATEGORY_BYTES:
            raise InvalidInputError(
                f"{size_bytes} bytes are more than the limit of {MAX_CATEGORY_BYTES}", field=f"{prefix}category"
            )
        if not category.isprintable():
            # The ledger takes none, once all the work is done.
            raise InvalidInputError("a category is of printable characters", field=f"{prefix}category")
        return category

    def _conversation(self, messages: Sequence[conversation_pb2.Message], *, field: str) -> Conversation:
        return read_conversation(messages, field=field, limits=self._limits.text)

    def _check_response(self, response: str, *, field: str) -> None:
        if not response.strip():
            raise InvalidInputError("the response is empty", field=field)
        self._check_size(response, field=field)

    def _check_size(self, text: str, *, field: str) -> None:
        check_size(text, field=field, limits=self._limits.text)

    def _check_count(self, num_items: int, *, field: str) -> None:
        if not 1 <= num_items <= self._limits.max_items:
            raise InvalidInputError(
                f"{num_items} items are outside the limits of 1 to {self._limits.max_items}", field=field
            )

    def _check_total(self, candidates: Sequence[Candidate], *, field: str) -> None:
        total = sum(
            sum(len(message.content.encode()) for message in candidate.conversation)
            + sum(len(response.encode()) for response in candidate.responses)
            for candidate in candidates
        )
        if total > self._limits.max_request_bytes:
            raise InvalidInputError(
                f"{total} bytes of text are more than the limit of {self._limits.max_request_bytes} a request",
                field=field,
                reason="REQUEST_TOO_LARGE",
            )


def check_principle_ids(principle_ids: Sequence[str], *, field: str) -> None:
    """InvalidInputError when one stands twice."""
    seen = set()
    for index, principle_id in enumerate(principle_ids):
        if principle_id in seen:
            raise InvalidInputError(f"principle {principle_id!r} stands twice", field=f"{field}[{index}]")
        seen.add(principle_id)
