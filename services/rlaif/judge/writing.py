"""Constitutional AI's two steps: a critique of a response under principles, and a response that answers the critique.

After arXiv 2212.08073 §3.1. A constitution's instructions follow the principle's text; its exemplars come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.core.constitution import Constitution, Principle
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, UnsupportedError
from rlaif.core.preference import AbstentionReason
from rlaif.core.template import JudgeTemplate, WrittenExample
from rlaif.engine.protocol import Engine, TokenIds
from rlaif.judge.generation import Decoding, PlanningThread, RunGenerate, Text, read_text, text_request
from rlaif.judge.metrics import JudgeMetrics
from rlaif.judge.tasks import Candidate
from rlaif.judge.wire import ProvenanceMaker
from rlaif.v1 import provenance_pb2


@dataclass(frozen=True)
class WritingOptions:
    """How critiques and revisions are written. `max_examples` of the constitution's exemplars are shown."""

    critique: Decoding
    revision: Decoding
    audit: Decoding
    max_examples: int


@dataclass(frozen=True)
class Revision:
    """A rewritten response; empty exactly when `abstention_reason` is set."""

    text: str
    unchanged: bool
    abstention_reason: AbstentionReason | None = None


class Writer:
    """Writes with one engine; `run_generate` is where the engine's batches are formed."""

    def __init__(
        self,
        engine: Engine,
        *,
        template: JudgeTemplate,
        run_generate: RunGenerate,
        plan: PlanningThread,
        options: WritingOptions,
        make_provenance: ProvenanceMaker,
        metrics: JudgeMetrics,
    ) -> None:
        self._engine = engine
        self._template = template
        self._run_generate = run_generate
        self._plan = plan
        self._options = options
        self._make_provenance = make_provenance
        self._metrics = metrics

    def provenance(self, constitution: Constitution, *, seed: int) -> provenance_pb2.Provenance:
        """How a critique or revision is made now."""
        return self._make_provenance.of(constitution, template_sha256=self._template.writing_sha256, seed=seed)

    def audit_provenance(self, constitution: Constitution) -> provenance_pb2.Provenance:
        """How an audit is made now."""
        return self._make_provenance.of(constitution, template_sha256=self._template.audit_sha256, seed=0)

    async def critique(
        self, candidate: Candidate, *, constitution: Constitution, principles: Sequence[Principle], seed: int
    ) -> Text:
        """What is wrong with the response under these principles."""
        rules = {each.principle_id: _rule(each, constitution.critique_instruction(each)) for each in principles}
        context = self._template.criticism(
            candidate.conversation, response=candidate.responses[0], examples=self._examples(principles, rules)
        )
        question = self._template.criticism_question(" ".join(dict.fromkeys(rules.values())))
        text = await self._write(context, question, decoding=self._options.critique, seed=seed)
        self._metrics.count_text("critique", outcome=_outcome(text))
        return text

    async def revise(
        self,
        candidate: Candidate,
        *,
        critique: str,
        constitution: Constitution,
        principles: Sequence[Principle],
        seed: int,
    ) -> Revision:
        """The response rewritten so that the critique no longer applies."""
        rules = {each.principle_id: _rule(each, constitution.revision_instruction(each)) for each in principles}
        [response] = candidate.responses
        context = self._template.revision(
            candidate.conversation, response=response, examples=self._examples(principles, rules)
        )
        question = self._template.revision_question(" ".join(dict.fromkeys(rules.values())), critique=critique)
        text = await self._write(context, question, decoding=self._options.revision, seed=seed)
        unchanged = text.content == response.strip()
        self._metrics.count_text("revision", outcome="unchanged" if unchanged else _outcome(text))
        return Revision(text.content, unchanged, text.abstention_reason)

    async def audit(self, constitution: Constitution) -> Text:
        """The judge model's review of a constitution as a rubric; UnsupportedError when it cannot be asked for one."""
        if not self._template.audit_context:
            raise UnsupportedError(
                f"a judge on the {self._template.name} template writes no audit; the mechanical findings need none",
                reason="WRITTEN_AUDIT_UNSUPPORTED",
                field="written_audit",
            )
        rules = "\n".join(
            f"{principle.principle_id} (weight {principle.weight:g}): {principle.text}"
            for principle in constitution.principles
        )
        context, question = self._template.audit(rules), self._template.audit_question
        text = await self._write(context, question, decoding=self._options.audit, seed=0)
        self._metrics.count_text("audit", outcome=_outcome(text))
        return text

    def _examples(self, principles: Sequence[Principle], rules: dict[str, str]) -> list[WrittenExample]:
        examples = [
            WrittenExample(
                conversation=(Message("user", exemplar.prompt),),
                response=exemplar.response,
                principle=rules[principle.principle_id],
                critique=exemplar.critique,
                revision=exemplar.revision,
            )
            for principle in principles
            for exemplar in principle.exemplars
        ]
        return examples[: self._options.max_examples]

    async def _write(self, context: str, question: str, *, decoding: Decoding, seed: int) -> Text:
        prompt = await self._plan(self._prompt, context, question)
        [[generation]] = await self._run_generate([text_request(prompt, decoding=decoding, seed=seed)])
        return read_text(generation)

    def _prompt(self, context: str, question: str) -> TokenIds:
        prefix, suffix = self._engine.encode_judge_prompt(context, question)
        num_tokens, limit = len(prefix) + len(suffix), self._engine.context_length
        if num_tokens >= limit:
            raise InvalidInputError(
                f"the judge's prompt of {num_tokens} tokens leaves no room in its context of {limit}",
                field="messages",
                reason="PROMPT_TOO_LONG",
            )
        return prefix + suffix


def _outcome(text: Text) -> str:
    return "written" if text.abstention_reason is None else text.abstention_reason.value


def _rule(principle: Principle, instruction: str) -> str:
    return f"{principle.text} {instruction}".rstrip()
