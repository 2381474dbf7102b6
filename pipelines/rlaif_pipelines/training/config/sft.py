"""What supervised fine-tuning is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlaif_pipelines.training.config.common import Fraction, PublishSettings, TrainingSettings


class SftTraining(TrainingSettings):
    """Policy from conversations that show what to say."""

    policy: str = Field(min_length=1)
    """Folder of the policy to start from."""
    conversations: Path
    """JSON lines: {"messages": [...]} or {"prompt": ..., "response": ...}, each with an optional weight."""
    loss_on: Literal["all_replies", "last_reply"] = "all_replies"
    """Which assistant turns of a conversation are learnt; what is not is only read."""
    num_epochs: int = Field(default=2, ge=1)
    """Passes over the conversations."""
    batch_conversations: int = Field(default=32, ge=1)
    """Conversations of one optimiser step."""
    held_out_fraction: Fraction = 0.1
    """Share of the prompts whose conversations only measure."""
    publish: PublishSettings | None = None
    """Where the result becomes the policy's next version; unset means nowhere."""
