"""TRL's trainers as a contender of `make bench-train`, on the same pairs in the same order from the same weights.

Settings are those that are fastest on a CPU: no gradient checkpointing, no logging or saving, precomputed reference
log-probabilities, the pairs of a batch sorted by length where it is cut into passes. TRL 1.16 has no padding-free
batches here: DPO's are disabled in its source, and need FlashAttention elsewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import transformers
from train_workload import Turns, Workload, cheap_reward
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

from rlaif_pipelines.training.config.pairs import LabelFile
from rlaif_pipelines.training.config.reward import RewardTraining
from rlaif_pipelines.training.data import StratifiedPrompts, TrainingPrompt, read_prompts
from rlaif_pipelines.training.fitting import Schedule
from rlaif_pipelines.training.labels import LabelledPair, read_labels
from rlaif_pipelines.training.model import new_reward_model, open_base

SEED = RewardTraining.model_fields["seed"].default


class TakesTurns(TrainerCallback):
    """Waits before the first step of each turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.losses: list[Any] = []
        """Of the passes of the step."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.losses.clear()
        self._turns.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._turns.end(sum(float(loss) for loss in self.losses) / len(self.losses))


def train(trainer_class: Any, workload: Workload, **options: Any) -> None:
    """Trains, remembering the loss of every pass, which the trainer itself only logs."""
    turns = TakesTurns(Turns(workload))

    class Trainer(trainer_class):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **more: Any) -> Any:
            loss = super().compute_loss(*args, **more)
            turns.losses.append(loss.detach())
            return loss

    Trainer(callbacks=[turns], **options).train()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["reward", "dpo", "grpo"])
    parser.add_argument("workload", type=Path)
    options = parser.parse_args()
    workload = Workload(**json.loads(options.workload.read_text()))
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(workload.policy)
    common: dict[str, Any] = {
        "output_dir": str(Path(workload.folder) / f"trl-{options.task}"),
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "max_steps": workload.total_steps,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if options.task == "grpo":
        train_grpo(workload, tokenizer, common)
        return 0
    common |= {
        "per_device_train_batch_size": workload.trl_micro_batch,
        "gradient_accumulation_steps": workload.batch_pairs // workload.trl_micro_batch,
        "max_length": None,
    }
    rows = datasets.Dataset.from_list([as_row(pair) for pair in pairs_in_our_order(workload)])
    if options.task == "reward":
        base = open_base(str(workload.policy))
        model = new_reward_model(base, seed=SEED, precision="float32", attention="sdpa")
        train(
            RewardTrainer,
            workload,
            model=model,
            args=RewardConfig(**common),
            train_dataset=rows,
            processing_class=tokenizer,
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(workload.policy, dtype="float32")
        arguments = DPOConfig(**common, beta=workload.beta, precompute_ref_log_probs=True)
        train(DPOTrainer, workload, model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    return 0


def train_grpo(workload: Workload, tokenizer: Any, common: dict[str, Any]) -> None:
    """GRPO with its own generation; the reward is the same function."""
    completions = workload.prompts_per_step * workload.group_size
    micro_batch = min(completions, workload.trl_micro_batch * 8)
    arguments = GRPOConfig(
        **{name: value for name, value in common.items() if name != "train_sampling_strategy"},
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=completions // micro_batch,
        num_generations=workload.group_size,
        max_completion_length=workload.max_tokens,
        temperature=1.0,
        beta=workload.kl_beta,
        shuffle_dataset=False,
        use_transformers_continuous_batching=workload.trl_continuous_batching,
    )
    rows = [{"prompt": [{"role": "user", "content": last_turn(prompt)}]} for prompt in prompts_in_our_order(workload)]

    def reward(completions: Any, **_: Any) -> list[float]:
        return [cheap_reward(completion[0]["content"]) for completion in completions]

    train(
        GRPOTrainer,
        workload,
        model=AutoModelForCausalLM.from_pretrained(workload.policy, dtype="float32"),
        reward_funcs=reward,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def pairs_in_our_order(workload: Workload) -> list[LabelledPair]:
    """The pairs of every step that ours trains on, those of one step by length."""
    pairs = read_labels([LabelFile(path=workload.labels)]).pairs
    assert len(pairs) == workload.total_steps * workload.batch_pairs, "none is left out"
    schedule = Schedule(num_examples=len(pairs), batch_examples=workload.batch_pairs, num_epochs=1, seed=SEED)
    return [
        pair
        for step in range(schedule.num_steps)
        for pair in sorted((pairs[position] for position in schedule.batch(step)), key=_num_characters)
    ]


def prompts_in_our_order(workload: Workload) -> list[TrainingPrompt]:
    """The prompts of every step that ours samples from."""
    drawn = StratifiedPrompts(read_prompts(workload.prompts), seed=SEED)
    return [
        prompt
        for step in range(workload.total_steps)
        for prompt in drawn.draw(step, num_prompts=workload.prompts_per_step)
    ]


def as_row(pair: LabelledPair) -> dict[str, Any]:
    """A row of TRL's conversational preferences."""
    chosen, rejected = (pair.first, pair.second) if pair.probability_first else (pair.second, pair.first)
    return {
        "prompt": [{"role": message.role, "content": message.content} for message in pair.conversation],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def last_turn(prompt: TrainingPrompt) -> str:
    """What the user said."""
    return prompt.conversation[-1].content


def _num_characters(pair: LabelledPair) -> int:
    return len(pair.conversation[-1].content) + max(len(pair.first), len(pair.second))


if __name__ == "__main__":
    sys.exit(main())
