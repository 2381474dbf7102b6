"""Our trainers against TRL's on a CPU: steps of a reward model, of DPO and of GRPO, the same model, data and batches.

Every contender is a process of its own that trains while the others wait; repetitions go round them, and the ratios are
medians over the repetitions. Reward-model and DPO losses must agree step by step. A GRPO step of ours samples through
the sampler service and publishes the weights to it; TRL's samples by itself. Rewards are one cheap function. Prints a
table, then `ratio <name> <value> goal <goal>` and `figure <name> <value> <unit>` lines; the same goes to
build/bench/train.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import Figures, RunningService, merge_json, service_process
from train_ours import POLICY
from train_workload import Workload, make_policy, parse_turn, write_inputs

GOALS = {"reward_vs_trl": 1.2, "dpo_vs_trl": 1.2, "grpo_vs_trl": 1.5, "peak_memory_vs_trl": 1.0}
TASKS = ("reward", "dpo", "grpo")
LOSS_TOLERANCE = 1e-4
HERE = Path(__file__).parent


class Contender:
    """One trainer in a process of its own."""

    def __init__(self, program: str, task: str, *, folder: Path, more: tuple[str, ...] = ()) -> None:
        self.name = f"{task}_{program}"
        self._log_path = folder / f"{self.name}.log"
        command = [sys.executable, str(HERE / f"train_{program}.py"), task, str(folder / "workload.json"), *more]
        self._log = self._log_path.open("wb")
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def turn(self) -> dict[str, Any]:
        """Has it run one repetition."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with suppress(BrokenPipeError):
            self._child.stdin.write("go\n")
            self._child.stdin.flush()
        for line in self._child.stdout:
            told = parse_turn(line)
            if told is not None:
                return told
        sys.exit(f"{self.name} ended; see {self._log_path}")

    def close(self) -> None:
        """Ends it."""
        self._child.kill()
        self._child.wait()
        self._log.close()


@contextmanager
def contenders(task: str, workload: Workload) -> Iterator[tuple[Contender, Contender, RunningService | None]]:
    """Ours, TRL's, and the sampler where the task needs one."""
    folder = Path(workload.folder)
    with ExitStack() as stack:
        sampler, more = None, ()
        if task == "grpo":
            config = {
                "model": str(workload.policy),
                "policy": POLICY,
                "artifact_root": str(folder / "artifacts"),
                "engine": {"continuous_batching": True},
                "sync_poll_seconds": 0.1,
            }
            sampler = stack.enter_context(service_process(folder, "sampler", config))
            more = ("--sampler", sampler.target)
        ours = Contender("ours", task, folder=folder, more=more)
        stack.callback(ours.close)
        trl = Contender("trl", task, folder=folder)
        stack.callback(trl.close)
        yield ours, trl, sampler


def bench(task: str, workload: Workload, figures: Figures) -> float:
    """Adds the task's rates to the figures; the ratio of the peak memories."""
    samples = workload.batch_pairs if task != "grpo" else workload.prompts_per_step * workload.group_size
    with contenders(task, workload) as (ours, trl, sampler):
        last: dict[str, dict[str, Any]] = {}
        for repetition in range(workload.repetitions + 1):
            for contender in (ours, trl):
                last[contender.name] = told = contender.turn()
                # The first goes to allocators and caches.
                if repetition:
                    figures.add(contender.name, samples * workload.steps / told["seconds"])
            if task != "grpo":
                check_losses(last[ours.name]["losses"], last[trl.name]["losses"], task=task)
            if repetition:
                figures.tell(workload.repetitions)
        figures.compare(f"{task}_vs_trl", ours.name, trl.name)
        our_peak, their_peak = (last[contender.name]["peak_rss_gb"] for contender in (ours, trl))
        if sampler is not None:
            figures.figures["grpo_ours_trainer_peak_rss"] = (our_peak, "GB")
            figures.figures["grpo_ours_sampler_peak_rss"] = (sampler.peak_rss_gb(), "GB")
            our_peak += sampler.peak_rss_gb()
        figures.figures[f"{ours.name}_peak_rss"] = (our_peak, "GB")
        figures.figures[f"{trl.name}_peak_rss"] = (their_peak, "GB")
        return float(our_peak / their_peak)


def check_losses(ours: list[float], theirs: list[float], *, task: str) -> None:
    """Ends the benchmark where the two do not compute the same."""
    apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    if not apart <= LOSS_TOLERANCE:
        sys.exit(f"{task}: the losses are {apart:.2g} apart: ours {ours}, TRL's {theirs}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps of a repetition; of GRPO always one")
    parser.add_argument("--only", choices=TASKS, action="append", help="some tasks alone")
    parser.add_argument("--batch-pairs", type=int, default=Workload.batch_pairs)
    parser.add_argument("--prompts-per-step", type=int, default=Workload.prompts_per_step)
    parser.add_argument("--micro-batch-tokens", type=int, default=Workload.micro_batch_tokens)
    parser.add_argument("--trl-micro-batch", type=int, default=Workload.trl_micro_batch, help="pairs of TRL's passes")
    parser.add_argument("--trl-continuous-batching", action="store_true")
    parser.add_argument("--layers", type=int, default=10, help="of the model; 1 tries the benchmark out")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    folder = (options.out / "train").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_policy(folder / "policy", num_layers=options.layers)
    figures = Figures("samples/s", GOALS)
    memory = {}
    for task in options.only or TASKS:
        workload = Workload(
            folder=str(folder),
            steps=1 if task == "grpo" else options.steps,
            repetitions=options.repetitions,
            batch_pairs=options.batch_pairs,
            prompts_per_step=options.prompts_per_step,
            micro_batch_tokens=options.micro_batch_tokens,
            trl_micro_batch=options.trl_micro_batch,
            trl_continuous_batching=options.trl_continuous_batching,
        )
        (folder / "workload.json").write_text(json.dumps(asdict(workload)))
        write_inputs(workload)
        memory[task] = bench(task, workload, figures)
        figures.figures[f"{task}_peak_memory_vs_trl"] = (memory[task], "times")
    figures.ratios["peak_memory_vs_trl"] = max(memory.values())
    print("\n".join(figures.lines()))
    merge_json(options.out / "train.json", {"threads": options.threads, **figures.as_json()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
