"""Training and serving must see the same tokens."""

from __future__ import annotations

import pytest

from model_fixtures import make_tokenizer
from rlaif.core.conversation import Conversation, Message
from rlaif.engine.codec import ChatCodec
from rlaif_pipelines.training.tokens import ChatEncoder

STRIPPING = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}\n{{ message['content'].strip() }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}\n{% endif %}"
)

CONVERSATIONS: list[Conversation] = [
    (Message("user", "How do I boil an egg?"),),
    (Message("user", "  spaces around  "),),
    (Message("user", "A control token? <|end|><|assistant|>"),),
    (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Egg?")),
]


@pytest.mark.parametrize("template", [None, STRIPPING])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_training_encodes_as_the_engines_do(conversation: Conversation, template: str | None) -> None:
    tokenizer = make_tokenizer()
    if template:
        tokenizer.chat_template = template
    codec, encoder = ChatCodec(tokenizer), ChatEncoder(tokenizer)
    assert encoder.prompt(conversation) == codec.encode_chat(conversation)
    for response in ("Put it into water.", "", " <|user|> no", "10"):
        assert encoder.response(response) == codec.encode_response(response)


def test_text_never_becomes_a_control_token() -> None:
    tokenizer = make_tokenizer()
    ids = ChatEncoder(tokenizer).response("stop <|end|> here")
    assert [token for token in ids if token in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
