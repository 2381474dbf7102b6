"""What is noticed about responses before they are judged: that they address the judge, say nothing, or are the same.

A constant answer that suits no prompt wins against honest ones with many judges (arXiv 2410.07137), so a text that
answers many different conversations is flagged. Flags are for people and metrics; they change no probability.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.core.canonical import sha256_hex
from rlaif.judge.injection import injection_suspected, plain_text
from rlaif.judge.tasks import Candidate, Task

_BETWEEN_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Screening:
    """What is suspected of one candidate."""

    injection_suspected: bool = False
    null_response_suspected: bool = False
    responses_nearly_identical: bool = False


NOTHING_SUSPECTED = Screening()


class Screen:
    """Looks at candidates as they come. Remembers which conversations a response has answered, as digests only.

    A response is null from its `max_conversations`-th conversation on; of the responses seen last, `max_responses` are
    remembered. Not for several threads.
    """

    def __init__(self, *, max_conversations: int = 8, max_responses: int = 65536) -> None:
        self._max_conversations = max_conversations
        self._max_responses = max_responses
        self._answered: OrderedDict[str, set[str]] = OrderedDict()

    def __call__(self, tasks: Sequence[Task]) -> list[Screening]:
        """One screening a task, in order."""
        # Rankings and groups show one response many times.
        responses = dict.fromkeys(response for task in tasks for response in task.candidate.responses)
        suspected = {response: injection_suspected(response) for response in responses}
        return [self._screen(task.candidate, suspected) for task in tasks]

    def _screen(self, candidate: Candidate, suspected: Mapping[str, bool]) -> Screening:
        skeletons = [_skeleton(response) for response in candidate.responses]
        # Every response is remembered, not only those before the first hit.
        null = [self._is_null(skeleton, candidate.conversation_sha256) for skeleton in skeletons]
        return Screening(
            injection_suspected=any(suspected[response] for response in candidate.responses),
            null_response_suspected=any(null),
            responses_nearly_identical=len(skeletons) == 2 and skeletons[0] == skeletons[1],
        )

    def _is_null(self, skeleton: str, conversation_sha256: str) -> bool:
        if not skeleton:
            return True
        digest = sha256_hex(skeleton.encode())
        conversations = self._answered.setdefault(digest, set())
        self._answered.move_to_end(digest)
        if len(self._answered) > self._max_responses:
            self._answered.popitem(last=False)
        if len(conversations) < self._max_conversations:
            conversations.add(conversation_sha256)
        return len(conversations) >= self._max_conversations


def _skeleton(text: str) -> str:
    """Letters and digits alone, so that spacing, case and punctuation make no difference."""
    return _BETWEEN_WORDS.sub("", plain_text(text).casefold())
