"""Supervised fine-tuning on tiny models: it learns, it repeats, it goes on, and its loss is everybody's loss."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_fixtures import make_llama
from model_fixtures import model_folder as model_folder
from rlaif.runtime.artifacts import folder_digest, read_desired
from rlaif_pipelines.jobs.local import JobSpec, run_job
from rlaif_pipelines.training import fitting, sft
from rlaif_pipelines.training.config.sft import SftTraining
from rlaif_pipelines.training.losses import sft_loss
from rlaif_pipelines.training.model import PolicyLogprobs
from rlaif_pipelines.training.packing import Tree, layout_for
from training_fakes import WORDS, write_lines

ENGINE = {"num_threads": 1, "attention": "eager"}
IGNORED = -100


def conversation(number: int) -> dict[str, Any]:
    """A question about a word, answered by the word; every third has a second question."""
    rng = random.Random(number)
    messages = [
        {"role": role, "content": text}
        for word in rng.sample(WORDS, 2 if number % 3 == 0 else 1)
        for role, text in (("user", f"Tell me about {word} {number}"), ("assistant", f"good {word}"))
    ]
    return {"messages": messages, "weight": 1.0 + number % 2}


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [conversation(number) for number in range(64)] + [conversation(97) | {"weight": 0}]
    return write_lines(tmp_path_factory.mktemp("conversations") / "conversations.jsonl", rows)


def sft_settings(out: Path, *, model: Path, conversations: Path, **changes: Any) -> SftTraining:
    values = {
        "out": out / "job",
        "policy": str(model),
        "conversations": conversations,
        "num_epochs": 3,
        "batch_conversations": 16,
        "held_out_fraction": 0.2,
        "engine": ENGINE,
        "optimizer": {"learning_rate": 3e-3},
        "publish": {"artifact_root": out / "artifacts", "policy": "policies/test", "base_version": 5},
    }
    return SftTraining.model_validate(values | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, conversations: Path) -> Path:
    out = tmp_path_factory.mktemp("sft")
    sft.run(sft_settings(out, model=model_folder, conversations=conversations))
    return out


def results_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "job" / "training.json").read_text())["results"])


def test_a_policy_learns_to_say_what_it_is_shown_and_is_published(trained: Path) -> None:
    results = results_of(trained)
    assert results["counts"]["trained"] + results["counts"]["held_out"] == 64
    assert results["counts"]["held_out"] == results["num_conversations"] > 0
    assert results["counts"]["weightless"] == 1
    assert results["loss"] < 0.5 * results["before"]["loss"]
    assert results["perplexity"] == pytest.approx(math.exp(results["loss"]))
    published = read_desired(trained / "artifacts", "policies/test")
    assert published is not None
    assert (published.version, published.digest) == (5 + results["num_steps"], results["digest"])
    assert published.digest == folder_digest(trained / "job" / "model")
    assert "held-out loss" in (trained / "job" / "model" / "README.md").read_text()


def test_only_the_last_reply_is_learnt_if_so_told(tmp_path: Path, model_folder: Path, conversations: Path) -> None:
    counts = [
        sft.run(
            sft_settings(
                tmp_path / loss_on, model=model_folder, conversations=conversations, loss_on=loss_on, num_epochs=1
            )
        )["counts"]
        for loss_on in ("all_replies", "last_reply")
    ]
    assert counts[0]["trained"] == counts[1]["trained"]
    assert counts[0]["trained_tokens"] > counts[1]["trained_tokens"]


def test_an_interrupted_training_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, model_folder: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = sft_settings(tmp_path, model=model_folder, conversations=conversations, checkpoint_every=2)
    save = fitting.save_checkpoint

    def save_and_die(root: Path, *, step: int, **more: Any) -> None:
        save(root, step=step, **more)
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        sft.run(settings)
    monkeypatch.undo()
    sft.run(settings)
    assert folder_digest(tmp_path / "job" / "model") == folder_digest(trained / "job" / "model")
    rows = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, rows[0]["num_steps"] + 1))


@pytest.mark.parametrize("change", [{"micro_batch_tokens": 96}, {"zero_stage": 3}])
def test_micro_batches_and_zero_change_nothing(
    change: dict[str, Any], trained: Path, tmp_path: Path, model_folder: Path, conversations: Path
) -> None:
    results = sft.run(
        sft_settings(tmp_path, model=model_folder, conversations=conversations, engine=ENGINE | change, publish=None)
    )
    assert results["loss"] == pytest.approx(results_of(trained)["loss"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    trained: Path, tmp_path: Path, model_folder: Path, conversations: Path
) -> None:
    settings = sft_settings(
        tmp_path, model=model_folder, conversations=conversations, engine=ENGINE | {"zero_stage": 2}, publish=None
    )
    config = tmp_path / "config.json"
    config.write_text(settings.model_dump_json())
    result = run_job(JobSpec("sft", config, tmp_path / "job.log", num_processes=2))
    assert (result.exit_code, result.last_words) == (0, "")
    assert results_of(tmp_path)["loss"] == pytest.approx(results_of(trained)["loss"], abs=1e-4)


class Batch:
    """Random rows of random lengths, of which a random part is learnt; and our loss of some rows, with gradients."""

    def __init__(self, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = make_llama(vocabulary_size=61, seed=seed).train()
        self.ids_BT = torch.randint(5, 61, (4, 12), generator=generator)
        self.mask_BT = torch.arange(12) < torch.tensor([12, 9, 7, 4])[:, None]
        self.learnt_BT = self.mask_BT & (torch.rand(4, 12, generator=generator) < 0.6)
        self.learnt_BT[:, 0] = False
        self.learnt_BT[:, 3] = True
        self.inputs = {
            "input_ids": self.ids_BT,
            "attention_mask": self.mask_BT.long(),
            "labels": self.ids_BT.masked_fill(~self.learnt_BT, IGNORED),
        }

    def ours(self) -> tuple[Tensor, dict[str, Tensor]]:
        lengths = self.mask_BT.sum(dim=1).tolist()
        trees = [
            Tree((), (ids[:length],), asked=(learnt[:length],))
            for ids, learnt, length in zip(self.ids_BT.tolist(), self.learnt_BT.tolist(), lengths, strict=True)
        ]
        layout = layout_for(self.model, pad_id=0)
        assert layout.shares_prefixes, "several rows in one: what is compared is packed"
        logprobs, _ = PolicyLogprobs(self.model)(*layout.rows(trees).for_logprobs)
        return self.with_gradients(sft_loss(logprobs, weights_N=torch.ones_like(logprobs)))

    def with_gradients(self, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        return loss, dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert ours[0].item() == pytest.approx(theirs[0].item(), abs=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(
            gradient, theirs[1][name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_that_of_transformers(seed: int) -> None:
    batch = Batch(seed=seed)
    assert_same(batch.ours(), batch.with_gradients(batch.model(**batch.inputs).loss))


def test_the_loss_is_that_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from model_fixtures import make_tokenizer

    batch = Batch(seed=2)
    trainer = trl.SFTTrainer(
        model=batch.model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False
        ),
        processing_class=make_tokenizer(),
        train_dataset=Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[IGNORED, 6, 7]]}),
    )
    assert_same(batch.ours(), batch.with_gradients(trainer.compute_loss(batch.model, dict(batch.inputs))))
    # Micro-batches: TRL divides each by the tokens of them all, as `fitting` does by shares of the batch's weight.
    num_learnt = batch.learnt_BT.sum()
    halves = [{name: tensor[rows] for name, tensor in batch.inputs.items()} for rows in (slice(0, 2), slice(2, 4))]
    parts = [trainer.compute_loss(batch.model, half, num_items_in_batch=num_learnt) for half in halves]
    assert_same(batch.ours(), batch.with_gradients(sum(parts[1:], parts[0])))
