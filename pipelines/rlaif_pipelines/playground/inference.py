"""What the builder asks of its own models: samples from the policy; verdicts, scores and revisions from the judge.

Shapes: B contexts, Q questions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rlaif.core.template import SCORE_LABELS, VERDICT_LABELS
from rlaif.playground.world import Prompt
from rlaif_pipelines.playground.judge_examples import JudgePrompts, pack
from rlaif_pipelines.playground.tokenizer import ASSISTANT, END, USER

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MAX_NEW_TOKENS: Final = 72
_SAMPLES_PER_BATCH: Final = 256
_CONTEXTS_PER_BATCH: Final = 64
MAX_WRITTEN_TOKENS: Final = 96


@dataclass(frozen=True)
class Writing:
    """What the judge wrote about one reply, and instead of it."""

    critique: str
    revision: str


def sample_texts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt], *, seed: int
) -> list[str]:
    """One answer a prompt at temperature 1."""
    import torch

    torch.manual_seed(seed)
    model.eval()
    texts: list[str] = []
    for start in range(0, len(prompts), _SAMPLES_PER_BATCH):
        chats = [f"{USER}{prompt.text}{END}{ASSISTANT}" for prompt in prompts[start : start + _SAMPLES_PER_BATCH]]
        encoded = tokenizer(chats, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts += tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def probabilities_first(
    model: LlamaForCausalLM,
    prompts: JudgePrompts,
    pairs: Sequence[tuple[Prompt, str, str]],
    wordings: Sequence[str],
) -> list[list[float]]:
    """For each pair and wording the probability that the reply shown first is the better, in the order given."""
    items = [(prompt, (first, second)) for prompt, first, second in pairs]
    rows = _label_probabilities(model, prompts, items, wordings, labels=VERDICT_LABELS)
    return [[first for first, _ in row] for row in rows]


def expected_scores(
    model: LlamaForCausalLM,
    prompts: JudgePrompts,
    replies: Sequence[tuple[Prompt, str]],
    wordings: Sequence[str],
) -> list[list[float]]:
    """For each reply and wording the expected score, 1 to 10."""
    items = [(prompt, (reply,)) for prompt, reply in replies]
    rows = _label_probabilities(model, prompts, items, wordings, labels=SCORE_LABELS)
    return [[sum(score * p for score, p in enumerate(chances, 1)) for chances in row] for row in rows]


def write(
    model: LlamaForCausalLM,
    prompts: JudgePrompts,
    tokenizer: PreTrainedTokenizerFast,
    replies: Sequence[tuple[Prompt, str]],
    principles: Sequence[str],
) -> list[Writing]:
    """For each reply, greedily, a critique under the principle of the same index and a revision after that critique."""
    items = [(prompt, (reply,)) for prompt, reply in replies]
    criticised = [
        [*context, *question]
        for context, question in zip(
            prompts.contexts(items, form="critique"),
            prompts.writing_questions([(principle, None) for principle in principles]),
            strict=True,
        )
    ]
    critiques = _continued(model, tokenizer, criticised)
    revised = [
        [*context, *question]
        for context, question in zip(
            prompts.contexts(items, form="revise"),
            prompts.writing_questions(list(zip(principles, critiques, strict=True))),
            strict=True,
        )
    ]
    revisions = _continued(model, tokenizer, revised)
    return [Writing(critique, revision) for critique, revision in zip(critiques, revisions, strict=True)]


def _continued(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: Sequence[Sequence[int]]) -> list[str]:
    """The greedy continuation of each prompt, to the end of the turn."""
    import torch

    model.eval()
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    texts = [""] * len(ids)
    for start in range(0, len(order), _CONTEXTS_PER_BATCH):
        chunk = order[start : start + _CONTEXTS_PER_BATCH]
        encoded = tokenizer.pad({"input_ids": [list(ids[index]) for index in chunk]}, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                do_sample=False,
                max_new_tokens=MAX_WRITTEN_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
        written = tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chunk, written, strict=True):
            texts[index] = text
    return texts


def _label_probabilities(
    model: LlamaForCausalLM,
    prompts: JudgePrompts,
    items: Sequence[tuple[Prompt, Sequence[str]]],
    wordings: Sequence[str],
    *,
    labels: Sequence[str],
) -> list[list[list[float]]]:
    import torch

    model.eval()
    compare = len(labels) == len(VERDICT_LABELS)
    contexts = prompts.contexts(items, form="compare" if compare else "score")
    questions = [prompts.question(wording, compare=compare) for wording in wordings]
    label_ids = prompts.label_ids(labels)
    order = sorted(range(len(items)), key=lambda index: len(contexts[index]))
    found: list[list[list[float]]] = [[] for _ in items]
    for start in range(0, len(order), _CONTEXTS_PER_BATCH):
        chunk = order[start : start + _CONTEXTS_PER_BATCH]
        packed = pack([contexts[index] for index in chunk], [questions] * len(chunk))
        with torch.inference_mode():
            hidden = model.model(
                input_ids=packed.ids_BT,
                position_ids=packed.positions_BT,
                attention_mask=packed.mask_B1TT,
                use_cache=False,
            ).last_hidden_state
            logits_QV = model.lm_head(hidden[packed.verdict_rows_Q, packed.verdict_positions_Q]).float()
        chances = torch.softmax(logits_QV[:, label_ids], -1).view(len(chunk), len(wordings), len(labels)).tolist()
        for index, row in zip(chunk, chances, strict=True):
            found[index] = row
    return found
