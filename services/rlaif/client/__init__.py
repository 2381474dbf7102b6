"""What another program needs to call the judge: light, and the same words as the services use."""

from rlaif.client.judge import JudgeClient
from rlaif.client.judge_aio import AsyncJudgeClient
from rlaif.client.judge_values import JudgeOptions, ResponsePair, ResponseToScore
from rlaif.core.conversation import Message
from rlaif.core.errors import RlaifError
from rlaif.runtime.settings import ClientSettings

__all__ = [
    "AsyncJudgeClient",
    "ClientSettings",
    "JudgeClient",
    "JudgeOptions",
    "Message",
    "ResponsePair",
    "ResponseToScore",
    "RlaifError",
]
