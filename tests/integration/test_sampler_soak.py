"""Two runs side by side, each training its own policy while many callers sample from its replicas."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers

from model_fixtures import write_model
from rlaif.client.channel import open_aio_channel
from rlaif.engine.settings import EngineSettings
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.runtime.store import open_store
from rlaif.sampler.process import make_service
from rlaif.sampler.settings import SamplerSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc

RUNS = ("policies/a", "policies/b")
NUM_VERSIONS, NUM_REPLICAS, NUM_CALLERS = 20, 2, 32
MAX_TOKENS, NUM_COMPLETIONS = 6, 2
PROMPTS = ((9, 10, 11, 12), (20, 21), (30, 31, 32, 33, 34, 35, 36), (40,))

Greedy = dict[tuple[int, ...], tuple[int, ...]]


def greedy(folder: Path) -> Greedy:
    """What these weights say to each prompt, by plain transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    said = {}
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=3
        )
        said[prompt] = tuple(output[0, len(prompt) :].tolist())
    return said


class Run:
    """One policy: the versions its trainer publishes, and what each says."""

    def __init__(self, policy: str, number: int, root: Path, models: Path) -> None:
        self.policy = policy
        self.store = open_store(root)
        self.folders = [
            write_model(
                models / policy / str(version), seed=1000 * number + version, hidden_size=32, num_hidden_layers=1
            )
            for version in range(NUM_VERSIONS + 1)
        ]
        self.digests = [folder_digest(folder) for folder in self.folders]
        self.said = [greedy(folder) for folder in self.folders]
        self.published = 0
        self.seen: Counter[int] = Counter()

    async def train(self, stubs: list[Any], done: asyncio.Event) -> None:
        """Publishes every version and waits until all replicas serve it, as a trainer does."""
        for version in range(1, NUM_VERSIONS + 1):
            answered = self.seen.total()
            weights = self.folders[version]

            def write(folder: Path, weights: Path = weights) -> None:
                for file in weights.iterdir():
                    (folder / file.name).write_bytes(file.read_bytes())

            await asyncio.to_thread(self.store.publish_version, self.policy, version=version, write=write)
            request = pb.LoadPolicyRequest(name=self.policy, min_version=version)
            states = await asyncio.gather(*(stub.LoadPolicy(request, timeout=60) for stub in stubs))
            assert [state.policy.model.digest for state in states] == [self.digests[version]] * NUM_REPLICAS
            self.published = version
            while self.seen.total() < answered + NUM_CALLERS // 2:  # noqa: ASYNC110 - callers only count
                await asyncio.sleep(0.005)
        done.set()

    async def call(self, stub: Any, *, number: int, done: asyncio.Event) -> None:
        """Samples for as long as the run trains; every answer must be of one version, and of its weights."""
        for turn in itertools.count():
            if done.is_set():
                return
            needed = self.published if turn % 2 else 0
            temperature = 0.0 if (turn + number) % 4 else 1.0
            prompts = [PROMPTS[(number + turn + offset) % len(PROMPTS)] for offset in range(2)]
            response = await stub.SampleCompletions(
                pb.SampleCompletionsRequest(
                    policy=self.policy,
                    prompts=[pb.SamplePrompt(token_ids=prompt) for prompt in prompts],
                    params=pb.SamplingParams(
                        num_completions=NUM_COMPLETIONS, max_tokens=MAX_TOKENS, temperature=temperature, seed=turn
                    ),
                    min_policy_version=needed,
                ),
                timeout=60,
            )
            models = {
                (completion.provenance.model.version, completion.provenance.model.digest)
                for completion in response.completions
            }
            assert len(models) == 1, "a response of two versions"
            [(version, digest)] = models
            assert needed <= version <= self.published + 1
            assert digest == self.digests[version], "the weights of another run or version"
            assert len(response.completions) == len(prompts) * NUM_COMPLETIONS
            for completion in response.completions:
                if not temperature:
                    assert tuple(completion.token_ids) == self.said[version][prompts[completion.prompt_index]]
            self.seen[version] += 1


@pytest.mark.slow
@pytest.mark.parametrize("continuous", [True, False], ids=["continuous", "one by one"])
async def test_twenty_versions_in_two_runs_side_by_side(tmp_path: Path, continuous: bool) -> None:
    root = tmp_path / "store"
    runs = [Run(policy, number, root, tmp_path / "models") for number, policy in enumerate(RUNS)]
    spoken = [tuple(sorted(said.items())) for run in runs for said in run.said]
    assert len(set(spoken)) == len(spoken), "versions that say the same prove nothing"

    async with AsyncExitStack() as stack:
        stubs: dict[str, list[Any]] = {}
        for run in runs:
            settings = SamplerSettings(
                model=str(run.folders[0]),
                policy=run.policy,
                artifact_root=str(root),
                sync_poll_seconds=0.02,
                engine=EngineSettings(num_threads=1, continuous_batching=continuous, max_cache_tokens=1024),
                listen=ListenSettings(metrics_address=None),
            )
            for _ in range(NUM_REPLICAS):
                server = await stack.enter_async_context(serving(make_service(settings), settings.listen))
                channel = open_aio_channel(ClientSettings(target=server.address))
                stack.push_async_callback(channel.close)
                stubs.setdefault(run.policy, []).append(sampler_service_pb2_grpc.SamplerServiceStub(channel))

        resident: list[int] = []

        async def watch() -> None:
            seen = -1
            while True:
                if (published := sum(run.published for run in runs)) > seen:
                    seen = published
                    gc.collect()
                    resident.append(psutil.Process().memory_info().rss)
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        async with asyncio.timeout(600), asyncio.TaskGroup() as tasks:
            for run in runs:
                done = asyncio.Event()
                tasks.create_task(run.train(stubs[run.policy], done))
                for number in range(NUM_CALLERS):
                    stub = stubs[run.policy][number % NUM_REPLICAS]
                    tasks.create_task(run.call(stub, number=number, done=done))
        watching.cancel()

    for run in runs:
        assert run.published == NUM_VERSIONS
        # Every version was met by callers, the one before the last by its own min_policy_version.
        assert set(range(1, NUM_VERSIONS)) <= set(run.seen), sorted(run.seen)
    # After the first third nothing is left to warm up: 40 swaps of weights hold no memory.
    settled = resident[len(resident) // 3 :]
    quarter = max(1, len(settled) // 4)
    grown = sum(settled[-quarter:]) / quarter - sum(settled[:quarter]) / quarter
    assert grown < 48 * 2**20, f"{grown / 2**20:.0f} MiB more after {len(settled)} versions"
