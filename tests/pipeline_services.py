"""What pipelines meet on loopback without a model: a real ledger, a real judge on no model, a sampler that has none."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import yaml

import pipeline_fakes as fakes
from rlaif.cli.addresses import Announcement, announce_path, grpc_service_of, is_serving, read_announcement
from rlaif.cli.processes import Child, ProcessFamily, child_environment
from rlaif.cli.services import StackSettings, service_config
from rlaif.client.ledger import LedgerClient
from rlaif.core.conversation import Message
from rlaif.playground.paths import POLICY_DIR
from rlaif.runtime.artifacts import PublishedVersion, folder_digest, read_desired
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from rlaif_pipelines.context import RunContext
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages.prepare import create_run

TESTS = Path(__file__).parent
SMALL: dict[str, Any] = {
    "judge": "null",  # a name that is no folder: only the service knows its weights
    "sampling": {"num_prompts": 48, "num_completions": 3, "pairs_per_prompt": 2, "prompts_per_request": 16},
    "judging": {"pairs_per_request": 8},
    # A judge without a model prefers whatever is shown first.
    "gate": {"max_order_inconsistency": 1.0, "min_judge_accuracy": 0.0, "min_num_labels": 8, "min_revisions": 8},
    "evaluation": {"num_harmful": 40, "num_other": 8},
}


@dataclass
class ModellessSampler(sampler_service_pb2_grpc.SamplerServiceServicer):
    """Serves for each policy what is published at its root; says what `pipeline_fakes` says at any version."""

    roots: dict[str, Path] = field(default_factory=dict)
    requests: list[pb.SampleCompletionsRequest] = field(default_factory=list)

    def SampleCompletions(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.requests.append(request)
        served = self._served(request.policy)
        speak = mostly_refuses_harm if served.version else fakes.always_helps
        prompts = [(Message("user", prompt.messages[-1].content),) for prompt in request.prompts]
        found = fakes.FakeSampler(speak=speak, version=served.version).sample(
            request.policy, prompts, num_completions=request.params.num_completions, seed=request.params.seed
        )
        response = pb.SampleCompletionsResponse()
        for number, completions in enumerate(found.completions):
            response.prompt_tokens.add(token_ids=found.prompt_token_ids[number])
            for index, completion in enumerate(completions):
                added = response.completions.add(
                    prompt_index=number,
                    index=index,
                    text=completion.text,
                    token_ids=completion.token_ids,
                    logprobs=completion.logprobs,
                    stop_reason=pb.STOP_REASON_END_OF_TURN,
                )
                added.provenance.model.version = served.version
        return response

    def GetPolicy(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in self.roots:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{request.name} is not served here")
        return pb.GetPolicyResponse(policy=self._policy(request.name))

    def LoadPolicy(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.LoadPolicyResponse(policy=self._policy(request.name))

    def _policy(self, name: str) -> pb.Policy:
        served = self._served(name)
        policy = pb.Policy(name=name, desired_version=served.version, context_length=512)
        policy.model.version, policy.model.digest, policy.model.uri = served.version, served.digest, served.uri
        return policy

    def _served(self, name: str) -> PublishedVersion:
        base = PublishedVersion(name, 0, str(POLICY_DIR), folder_digest(POLICY_DIR))
        return read_desired(self.roots[name], name) or base


def mostly_refuses_harm(prompt_text: str, rng: random.Random) -> str:
    """A policy that was trained, and says not always the same."""
    speak = fakes.refuses_harm if rng.random() < 0.8 else fakes.always_helps
    return speak(prompt_text, rng)


@dataclass
class Services:
    """Addresses, and what stands behind the sampler's."""

    addresses: ServiceAddresses
    sampler: ModellessSampler
    pids: frozenset[int]

    def begin(self, root: Path, **changes: Any) -> RunContext:
        """A run of these services in that folder; its policy is named after the folder."""
        settings = make_settings({**SMALL, "out": root, "policy_resource": f"policies/{root.name}", **changes})
        context = create_run(settings, self.addresses)
        self.sampler.roots[context.policy] = Path(context.artifact_root)
        return context

    def left_running(self) -> list[psutil.Process]:
        """Child processes of this one that are none of the services."""
        return [each for each in psutil.Process().children(recursive=True) if each.pid not in self.pids]

    def ledger(self) -> LedgerClient:
        return LedgerClient(ClientSettings(target=str(self.addresses.ledger)))

    def label_names(self) -> list[str]:
        """Every label of the ledger, oldest first."""
        with self.ledger() as ledger:
            return [label.request_sha256 for label in ledger.export_labels()]


@contextlib.contextmanager
def serving_without_models(folder: Path) -> Iterator[Services]:
    sampler = ModellessSampler()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    sampler_service_pb2_grpc.add_SamplerServiceServicer_to_server(sampler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    settings = StackSettings(
        folder=folder,
        policy="",
        policy_name="",
        judge="null",
        constitution="playground",
        template="compact",
        num_threads=1,
    )
    environment = child_environment(os.environ, num_threads=1, offline=True)
    environment["PYTHONPATH"] = str(TESTS / "bench")
    found: dict[str, Announcement] = {}
    with ProcessFamily(owner=f"test:{folder}") as family:
        for name, module in (("oversight", "rlaif.oversight"), ("judge", "null_judge")):
            path = settings.config_path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(service_config(settings, name, found)))
            child = family.start(
                name, module, "--config", str(path), log_path=settings.log_path(name), environment=environment
            )
            found[name] = _healthy(folder, name, child)
        addresses = ServiceAddresses(
            sampler=f"127.0.0.1:{port}",
            judge=found["judge"].address,
            ledger=found["oversight"].address,
            reward="127.0.0.1:1",  # trainings are told of it, and here none asks it
        )
        pids = frozenset(each.pid for each in psutil.Process().children(recursive=True))
        try:
            yield Services(addresses, sampler, pids)
        finally:
            server.stop(None)


def hooked(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Have tasks load pipeline_hooks, with these variables beside."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS / "kfp_hooks"), str(TESTS)]))
    monkeypatch.setenv("RLAIF_TEST_HOOKS", "1")
    for name in ("RLAIF_TEST_FAIL", "RLAIF_TEST_HANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"RLAIF_TEST_{name.upper()}", value)


def _healthy(folder: Path, name: str, child: Child) -> Announcement:
    while True:
        child.raise_if_dead()
        announcement = read_announcement(announce_path(folder, name))
        if announcement and is_serving(announcement.address, grpc_service_of(name)):
            return announcement
        time.sleep(0.05)
