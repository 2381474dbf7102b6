"""What the benchmarks share: service processes, random-weight models, texts of real lengths, the lines they print."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from rlaif.cli.addresses import GRPC_SERVICES, announce_path, is_serving, read_announcement
from rlaif.playground.paths import POLICY_DIR

TOKENS_PER_WORD = 1.3
CONVERSATION_WORDS = (3.93, 1.11)
RESPONSE_WORDS = (3.10, 1.01)
"""Mean and sd of ln(words) in the harmless dialogues of HH-RLHF (fits over 4,624 of them)."""
MAX_WORDS = 300
_START_SECONDS = 300


@dataclass(frozen=True)
class RunningService:
    """Where a service listens, and its process."""

    target: str
    pid: int

    def peak_rss_gb(self) -> float:
        """Its largest resident memory so far, and that of the processes that it started: vLLM's engine is one."""
        process = psutil.Process(self.pid)
        return sum(_peak_rss_kb(each.pid) for each in (process, *process.children(recursive=True))) / 1e6

    def cpu_seconds(self) -> float:
        """Processor time it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_rss_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


@contextmanager
def service_process(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    *,
    program: Sequence[str] = (),
    cores: Sequence[int] | None = None,
) -> Iterator[RunningService]:
    """A service that is healthy, ended afterwards. `program` replaces the service's own module."""
    announce = announce_path(folder, name)
    announce.parent.mkdir(parents=True, exist_ok=True)
    listen = {"address": "127.0.0.1:0", "announce_path": str(announce), "default_deadline_seconds": 600.0}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"listen": listen, **config}))
    pin = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    command = [*pin, sys.executable, *(program or ("-m", f"rlaif.{name}")), "--config", str(path)]
    with ExitStack() as stack:
        log = stack.enter_context((folder / f"{name}.log").open("wb"))
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(_end, child)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and child.poll() is None:
            announcement = read_announcement(announce)
            if announcement and is_serving(announcement.address, GRPC_SERVICES[name]):
                yield RunningService(announcement.address, child.pid)
                return
            time.sleep(0.1)
        sys.exit(f"{name} did not start; see {folder / name}.log")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    child.wait()


def make_model(folder: Path, *, reward_model: bool = False) -> None:
    """A Llama of 50 M random parameters with the playground's tokenizer, as a policy or as a reward model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(POLICY_DIR)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=640,
        intermediate_size=1720,
        num_hidden_layers=10,
        num_attention_heads=10,
        max_position_embeddings=4096,
        tie_word_embeddings=not reward_model,
        num_labels=1 if reward_model else 2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = (LlamaForSequenceClassification if reward_model else LlamaForCausalLM)(config)
    model.save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    print(f"{folder.name}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters, float32")


class Texts:
    """Endless texts of the playground's words with HH-RLHF's lengths."""

    def __init__(self, seed: int) -> None:
        from rlaif.playground.world import prompts

        self._rng = random.Random(seed)
        self._words = sorted({word for prompt in prompts() for word in prompt.text.split()})

    def prompt(self) -> str:
        """A user's turn."""
        return self._text(CONVERSATION_WORDS)

    def response(self) -> str:
        """A reply."""
        return self._text(RESPONSE_WORDS)

    def num_tokens(self, *, limit: int) -> int:
        """Length of a reply, tokens."""
        return min(limit, max(4, round(TOKENS_PER_WORD * self._rng.lognormvariate(*RESPONSE_WORDS))))

    def _text(self, shape: tuple[float, float]) -> str:
        number = min(MAX_WORDS, max(3, round(TOKENS_PER_WORD * self._rng.lognormvariate(*shape))))
        return " ".join(self._rng.choices(self._words, k=number))


@dataclass
class Figures:
    """What a benchmark found: rates of every repetition, ratios of them, single figures."""

    unit: str
    goals: Mapping[str, float]
    rates: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    figures: dict[str, tuple[float, str]] = field(default_factory=dict)

    def add(self, name: str, rate: float) -> None:
        """The rate of one repetition."""
        self.rates.setdefault(name, []).append(rate)

    def tell(self, repetitions: int) -> None:
        """Prints the last repetition."""
        number = max(map(len, self.rates.values()))
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.rates.items())
        print(f"repetition {number} of {repetitions}: {last} {self.unit}", flush=True)

    def compare(self, ratio: str, ours: str, theirs: str) -> None:
        """Median over the repetitions of ours / theirs."""
        pairs = zip(self.rates[ours], self.rates[theirs], strict=True)
        self.ratios[ratio] = statistics.median(one / other for one, other in pairs)

    def lines(self) -> Iterator[str]:
        """A table, then a line a ratio and a figure."""
        for name, values in self.rates.items():
            spread = f"({min(values):.4g} to {max(values):.4g})"
            yield f"{name:<36}{statistics.median(values):>12.4g} {self.unit}   {spread}"
        for name, ratio in self.ratios.items():
            goal = f" goal {self.goals[name]:g}" if name in self.goals else ""
            yield f"ratio {name} {ratio:.3f}{goal}"
        for name, (value, unit) in self.figures.items():
            yield f"figure {name} {value:.4g} {unit}"

    def as_json(self) -> dict[str, Any]:
        """The same as an object."""
        return {
            "unit": self.unit,
            "rates": self.rates,
            "ratios": self.ratios,
            "figures": {name: {"value": value, "unit": unit} for name, (value, unit) in self.figures.items()},
        }


def merge_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces these keys of the object in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}, indent=2) + "\n")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
