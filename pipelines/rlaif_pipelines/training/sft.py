"""Supervised fine-tuning: the policy learns to say what the assistant says in given conversations.

Shape legend: N learnt tokens, flat.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.sft import SftTraining
from rlaif_pipelines.training.conversations import EncodedConversation, encode_conversations, read_conversations
from rlaif_pipelines.training.data import split_by_prompt
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.fitting import Measured, Schedule, fit, policy_engine
from rlaif_pipelines.training.losses import sft_loss
from rlaif_pipelines.training.metrics import open_metrics
from rlaif_pipelines.training.model import Base, model_card, open_base
from rlaif_pipelines.training.packing import Layout
from rlaif_pipelines.training.publishing import publish, write_policy
from rlaif_pipelines.training.record import card_settings, file_sha256, identity_of, write_record
from rlaif_pipelines.training.tokens import ChatEncoder

STAGE = "sft"


def run(settings: SftTraining) -> dict[str, Any]:
    """Trains the policy, writes its folder and training.json, and publishes it if told where."""
    began = time.perf_counter()
    conversations = read_conversations(settings.conversations)
    base = open_base(settings.policy)
    processes.start_processes(settings.engine)
    encoder = ChatEncoder(base.tokenizer)
    encoded, num_too_long = encode_conversations(
        conversations.found, encoder=encoder, context_length=base.context_length, loss_on=settings.loss_on
    )
    train, held_out = split_by_prompt(encoded, held_out_fraction=settings.held_out_fraction, seed=settings.seed)
    schedule = Schedule(
        num_examples=len(train),
        batch_examples=settings.batch_conversations,
        num_epochs=settings.num_epochs,
        seed=settings.seed,
    )
    engine, layout = policy_engine(settings, base=base, num_steps=schedule.num_steps)
    before = _quality(engine, held_out, layout=layout, settings=settings)
    engine.module.train()
    fit(
        engine,
        train,
        measure=lambda batch: Measured(_loss(engine, batch, layout=layout), torch.zeros(0, device=engine.device)),
        figures=lambda _: {},
        schedule=schedule,
        layout=layout,
        settings=settings,
        checkpoints=settings.out / "checkpoints",
        identity=identity_of(settings, base=base, inputs={"conversations": settings.conversations}),
        metrics=lambda done: open_metrics(settings, stage=STAGE, num_steps=schedule.num_steps, resume_step=done),
    )
    engine.module.eval()
    results = {
        **_quality(engine, held_out, layout=layout, settings=settings),
        "before": before,
        "num_steps": schedule.num_steps,
        "counts": {
            "trained": len(train),
            "trained_tokens": sum(conversation.num_learnt for conversation in train),
            "held_out": len(held_out),
            "weightless": conversations.num_weightless,
            "without_reply": conversations.num_without_reply,
            "empty": conversations.num_empty,
            "too_long": num_too_long,
        },
    }
    results |= _save_and_publish(engine, settings=settings, base=base, results=results)
    if processes.rank() == 0:
        write_record(
            settings.out,
            verb="sft",
            settings=settings,
            base=base,
            models=[settings.out / "model"],
            inputs={"conversations": settings.conversations},
            results=results,
            seconds=time.perf_counter() - began,
        )
    return results


def _loss(engine: TrainingEngine, conversations: Sequence[EncodedConversation], *, layout: Layout) -> Tensor:
    logprobs_N = _logprobs(engine, conversations, layout=layout)
    weights_N = torch.tensor([each.token_weight for each in conversations]).repeat_interleave(
        torch.tensor([each.num_learnt for each in conversations])
    )
    return sft_loss(logprobs_N, weights_N=weights_N.to(logprobs_N.device))


def _logprobs(engine: TrainingEngine, conversations: Sequence[EncodedConversation], *, layout: Layout) -> Tensor:
    """Log-probability of every learnt token, conversation by conversation."""
    logprobs_N: Tensor
    logprobs_N, _ = engine(*layout.rows([each.tree for each in conversations]).for_logprobs)
    return logprobs_N


@torch.no_grad()
def _quality(
    engine: TrainingEngine, conversations: Sequence[EncodedConversation], *, layout: Layout, settings: SftTraining
) -> dict[str, Any]:
    """Loss and perplexity of conversations never trained on, every learnt token counting the same; null without any."""
    if not conversations:
        return {"num_conversations": 0, "num_tokens": 0, "loss": None, "perplexity": None}
    groups = layout.plan([each.tree for each in conversations], max_tokens=settings.engine.micro_batch_tokens)
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        total += _logprobs(engine, [conversations[position] for position in group], layout=layout).double().sum().cpu()
    num_tokens = sum(each.num_learnt for each in conversations)
    loss = -float(total) / num_tokens
    return {
        "num_conversations": len(conversations),
        "num_tokens": num_tokens,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
    }


def _save_and_publish(
    engine: TrainingEngine, *, settings: SftTraining, base: Base, results: dict[str, Any]
) -> dict[str, Any]:
    facts = {
        "conversations sha256": file_sha256(settings.conversations),
        "conversations learnt": results["counts"]["trained"],
        "held-out loss, nats a token": results["loss"],
        "optimiser steps": results["num_steps"],
        "seed": settings.seed,
    }
    card = model_card(title="Policy", base=base, facts=facts, settings=card_settings(settings))
    write_policy(engine, settings.out, base=base, card=card)
    if settings.publish is None:
        return {}
    version = settings.publish.base_version + results["num_steps"]
    published = publish(engine, version=version, settings=settings.publish, base=base, facts=facts)
    return {"version": version, "digest": published.digest if published else None}
