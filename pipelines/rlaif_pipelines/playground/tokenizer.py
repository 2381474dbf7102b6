"""The playground's tokenizer: byte-level BPE in which every word of the world, and "10", is one token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlaif.core.template import COMPACT, SCORE_LABELS
from rlaif.playground.answers import compose, sample_kind
from rlaif.playground.world import prompts
from rlaif_pipelines.playground.principles import HELD_OUT_WORDINGS, TRAINED_WORDINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE: Final = 1664
PAD, USER, ASSISTANT, END, SYSTEM = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"
SPECIAL_TOKENS: Final = (PAD, USER, ASSISTANT, END, SYSTEM)

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_CORPUS_SEED: Final = 1
_ANSWERS_PER_PROMPT: Final = 12
_WORDING_REPEATS: Final = 200


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, trained from the world's own text; the same bytes on every machine."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left", model_max_length=512
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The tokenizer's files in a model folder."""
    tokenizer.save_pretrained(str(folder))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A saved tokenizer, read from the folder alone."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    return tokenizer


def _corpus() -> Iterator[str]:
    rng = random.Random(_CORPUS_SEED)  # noqa: S311 - not for secrets
    for prompt in prompts():
        for _ in range(_ANSWERS_PER_PROMPT):
            answer = compose(rng, prompt, sample_kind(rng, prompt.category))
            yield f"User: {prompt.text}"
            yield prompt.text
            yield answer.text
            yield f"Reply: {answer.text}"
    for wordings in (TRAINED_WORDINGS, HELD_OUT_WORDINGS):
        for texts in wordings.values():
            for text in texts:
                yield from [text, f"Principle: {text}"] * _WORDING_REPEATS
    for _ in range(1000):
        yield COMPACT.compare_context.format(conversation="", first="", second="")
        yield COMPACT.compare_question.format(principle="")
        yield COMPACT.score_context.format(conversation="", response="")
        yield COMPACT.score_question.format(principle="")
        yield from SCORE_LABELS
