"""Which prompts leave the policy room to answer."""

from __future__ import annotations

from rlaif.core.conversation import Conversation


class PromptFitter:
    """Measures prompts in the policy's own tokens, chat template included."""

    def __init__(self, policy_uri: str, *, max_tokens: int) -> None:
        # Both need the policy's libraries, which only runs on other people's prompts have to load here.
        from rlaif_pipelines.training.model import open_base
        from rlaif_pipelines.training.tokens import ChatEncoder

        base = open_base(policy_uri)
        self._encoder = ChatEncoder(base.tokenizer)
        self.max_prompt_tokens = base.context_length - max_tokens

    def fits(self, conversation: Conversation) -> bool:
        """Whether the prompt and the longest completion are within the policy's context."""
        return len(self._encoder.prompt(conversation)) <= self.max_prompt_tokens
