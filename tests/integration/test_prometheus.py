"""The stack under Debian's Prometheus and Alertmanager: what is asked of it has answers, and faults reach a person.

The rules are the chart's own but for their times: windows, waits and ages are a 60th. Tests go on from each other.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.boards import boards
from monitoring.files import CHART, rule_files
from monitoring.timing import Timing
from prometheus_stack import Prometheus, Webhook, Whims, free_address, serving_whims, until, watching
from reward_fixtures import write_reward_model
from rlaif.cli.addresses import Announcement, announce_path, is_serving, module_of, read_announcement
from rlaif.cli.labels_calibrate import fit, reviewed_labels
from rlaif.cli.processes import Child, ProcessFamily, child_environment
from rlaif.cli.services import StackSettings, start_stack
from rlaif.client.judge import JudgeClient, JudgeOptions, ResponsePair
from rlaif.client.judge_aio import AsyncJudgeClient
from rlaif.client.judge_values import ResponseToScore
from rlaif.client.ledger import LedgerClient
from rlaif.client.preference_labels import human_labels
from rlaif.client.reward import RewardClient
from rlaif.core.conversation import Message
from rlaif.core.errors import RlaifError
from rlaif.core.human_preference import HumanPreference
from rlaif.core.preference import Preference
from rlaif.playground.paths import JUDGE_DIR, POLICY_DIR
from rlaif.playground.world import prompts_of
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import ledger_service_pb2 as pb
from training_fakes import label, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("prometheus-alertmanager") is None,
        reason="Debian's packages prometheus and prometheus-alertmanager are not installed",
    ),
]

SCALE = 1 / 60
PRINCIPLES = "constitutions/playground"
REFUSAL = "I won't help with that. It could hurt someone."
PROMPTS = prompts_of("train")
ONE = JudgeOptions(principle_ids=("polite",))


@dataclass
class Stack:
    """The services, what watches them, and what was seen so far."""

    settings: StackSettings
    family: ProcessFamily
    environment: Mapping[str, str]
    changes: Mapping[str, Mapping[str, Any]]
    prometheus: Prometheus
    webhook: Webhook
    whims: Whims
    found: dict[str, Announcement]
    children: dict[str, Child]
    """Services and trainings."""
    evaluator: ClientSettings
    missing: dict[str, str] = field(default_factory=dict)
    """Expressions that have returned nothing yet, and where they stand."""

    def look(self) -> None:
        """Forgets the expressions that have an answer by now."""
        self.missing = {asked: where for asked, where in self.missing.items() if not self.prometheus.query(asked)}

    def ledger(self) -> LedgerClient:
        return LedgerClient(ClientSettings(target=self.found["oversight"].address))


def test_every_rule_and_every_panel_has_an_answer_while_the_loop_runs(stack: Stack) -> None:
    number = 0

    def loop() -> bool:
        nonlocal number
        number += 1
        work(stack, number)
        stack.look()
        # Trainings go on for ever, and have told all they can.
        for pod, figure in (("reward-0", "rlaif_training_accuracy"), ("rl-0", "rlaif_training")):
            if not any(figure in asked for asked in stack.missing):
                end(stack.children[pod])
        # Calibrated labels come later, with the judge that is started again; trouble with the policy comes below.
        later = ("raw_", "ALERTS", "sync_failures")
        return all(any(name in asked for name in later) for asked in stack.missing)

    until(loop, what=lambda: f"answers to {stack.missing}", seconds=120)
    break_the_published_policy(stack)
    stack.look()
    # Nothing else is wrong with the services.
    told = stack.prometheus.firing()
    assert not told & {"RlaifServiceDown", "RlaifReplicaDown", "RlaifServiceNotReady", "RlaifLatencyBudgetBurn"}
    assert not told & {"RlaifLedgerBroken", "RlaifLedgerVerificationLate", "RlaifJudgePrefersLength"}
    assert all(rule["health"] == "ok" for rule in stack.prometheus.rules())


def test_a_killed_judge_is_told_and_a_new_one_ends_it(stack: Stack, tmp_path: Path) -> None:
    calibration = calibrated(stack, tmp_path)
    end(stack.children["judge"])
    until(lambda: stack.webhook.last("RlaifServiceDown", job="rlaif-judge") == "firing", what="RlaifServiceDown")
    stack.children["judge"] = launched(stack, "judge", {"calibrations": [str(calibration)]})
    until(lambda: is_serving(stack.found["judge"].address, "rlaif.v1.JudgeService"), what="the judge")
    until(lambda: stack.webhook.last("RlaifServiceDown", job="rlaif-judge") == "resolved", what="its end")
    # It applies the calibration now, so that both sides of it are shown.
    number = 1000

    def loop() -> bool:
        nonlocal number
        number += 1
        judged(stack, number)
        stack.look()
        return not [asked for asked in stack.missing if "raw_" in asked]

    until(loop, what="statistics before calibration")


def test_an_altered_ledger_is_told_and_a_mended_one_ends_it(stack: Stack) -> None:
    path = stack.settings.folder / "ledger.sqlite"
    subject = altered(path, "somewhere else")
    until(lambda: stack.webhook.last("RlaifLedgerBroken") == "firing", what="RlaifLedgerBroken")
    altered(path, subject)
    until(lambda: stack.webhook.last("RlaifLedgerBroken") == "resolved", what="its end")


def test_an_engine_that_is_slow_and_a_judge_that_prefers_length_are_told(stack: Stack) -> None:
    stack.whims.prefers_length, stack.whims.seconds = True, 5.5
    number = 2000

    def told() -> bool:
        nonlocal number
        number += 1
        asyncio.run(compare_at_once(stack, number, count=24))
        # Calls come in waves of six seconds, and the short window holds five: its alert may come and go.
        burns = stack.webhook.states("RlaifLatencyBudgetBurn", job="rlaif-evaluator", window="1h")
        return "firing" in burns and stack.webhook.last("RlaifJudgePrefersLength") == "firing"

    until(told, what=lambda: f"both alerts, but {stack.webhook.told[-5:]},", seconds=150)
    stack.whims.prefers_length, stack.whims.seconds = False, 0.0

    def ended() -> bool:
        nonlocal number
        number += 1
        asyncio.run(compare_at_once(stack, number, count=24))
        return (
            stack.webhook.last("RlaifLatencyBudgetBurn", job="rlaif-evaluator", window="1h") == "resolved"
            and stack.webhook.last("RlaifJudgePrefersLength") == "resolved"
        )

    until(ended, what=lambda: f"their end, but {stack.webhook.told[-5:]},", seconds=150)


def test_what_reaches_a_person_says_what_and_where_to_read_on(stack: Stack) -> None:
    stack.look()
    assert stack.missing == {}
    runbooks = (Path(__file__).parents[2] / "docs" / "runbooks.md").read_text(encoding="utf-8")
    assert {labels["alertname"] for _, labels, _ in stack.webhook.told} >= {
        "RlaifServiceDown",
        "RlaifLedgerBroken",
        "RlaifLatencyBudgetBurn",
        "RlaifJudgePrefersLength",
        # What the run told of itself before.
        "RlaifStageFailed",
        "RlaifGateFailed",
        "RlaifTrainingGuardFired",
    }
    for _, labels, said in stack.webhook.told:
        text = " ".join(said.values())
        assert "<no value>" not in text, text
        assert "error expanding" not in text, text
        assert f"## {labels['alertname']}\n" in runbooks
        assert said["dashboard_url"].endswith("&var-namespace=rlaif")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("prometheus")
    settings = StackSettings(
        folder=folder,
        policy=str(POLICY_DIR),
        policy_name="policies/served",
        judge=str(JUDGE_DIR),
        constitution="playground",
        template="compact",
        num_threads=1,
    )
    environment = child_environment(os.environ, num_threads=1, offline=True)
    tiny = write_reward_model(folder / "models" / "tiny", seed=0, num_labels=1)
    changes = {
        # Statistics over the labels of 20 seconds, so that what is mended is seen to be.
        "oversight": {
            "quality": {"refresh_seconds": 0.5, "window_hours": 20 / 3600},
            "verify_every_hours": 2 / 3600,
        },
        "judge": {"listen": {"address": free_address(), "metrics_address": free_address()}},
        "reward": {"reward_models": {"tiny": [str(tiny)]}},
    }
    with ExitStack() as resources:
        whims = Whims()
        resources.callback(whims.released.set)
        url = resources.enter_context(serving_whims(whims))
        family = resources.enter_context(ProcessFamily(owner=f"test:{folder}"))
        children: dict[str, Child] = {}

        def launch(name: str, path: Path) -> Child:
            config = _merged(yaml.safe_load(path.read_text()), changes.get(name, {}))
            path.write_text(yaml.safe_dump(config))
            children[name] = family.start(
                name, module_of(name), "--config", str(path), log_path=settings.log_path(name), environment=environment
            )
            return children[name]

        found = start_stack(settings, launch=launch, told=lambda name: None)
        evaluator, metrics_address = _start_evaluator(folder, url, found, family, environment)
        trainings = _start_trainings(settings, found, family, environment, children=children)
        targets = {
            **{
                f"rlaif-{name}": {f"{name}-0": announcement.metrics_address or ""}
                for name, announcement in found.items()
            },
            "rlaif-evaluator": {"evaluator-0": metrics_address},
            "rlaif-training": trainings,
        }
        rules = []
        for name, text in rule_files(Timing(SCALE)).items():
            rules.append(folder / name)
            rules[-1].write_text(text, encoding="utf-8")
        prometheus, webhook = resources.enter_context(watching(folder, rules=rules, targets=targets))
        yield Stack(
            settings,
            family,
            environment,
            changes,
            prometheus,
            webhook,
            whims,
            found,
            children,
            evaluator,
            missing=expressions(),
        )


def expressions() -> dict[str, str]:
    """Every expression of every dashboard, with its variables filled in, and every record; and where it stands."""
    asked = {}
    for board in boards():
        page = json.loads((CHART / "dashboards" / f"{board.uid}.json").read_text(encoding="utf-8"))
        for panel in page["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$namespace", "rlaif").replace("$__rate_interval", "10s")
                asked[re.sub(r"\$\w+", ".*", expression)] = f"{board.title}: {panel['title']}"
    rules = yaml.safe_load((CHART / "rules" / "recordings.yaml").read_text(encoding="utf-8"))["groups"]
    return asked | {rule["record"]: "a recording rule" for group in rules for rule in group["rules"]}


def work(stack: Stack, number: int) -> None:
    """A round of what callers of all services do, mistakes included."""
    judged(stack, number)
    address = stack.found
    with JudgeClient(address["judge"].address) as judge:
        judge.critique(PRINCIPLES, PROMPTS[number % 50].text, response=REFUSAL)
        with pytest.raises(RlaifError):
            judge.compare("constitutions/none", "Hi", first="a", second="b")
    with RewardClient(address["reward"].address) as rewards:
        rewards.score("rewardModels/judge", [ResponseToScore("Hi", f"Hello {number}.")], constitution=PRINCIPLES)
        rewards.score("rewardModels/tiny", [ResponseToScore("Hi", f"Hello {number}.")])
    asyncio.run(compare_at_once(stack, number, count=3))
    if number == 1:
        tell_of_a_run(stack)


def judged(stack: Stack, number: int) -> None:
    """Pairs that the judge compares, once anew and once from the ledger, and two people each vote on."""
    pairs = [
        ResponsePair((Message("user", prompt.text),), REFUSAL, f"First, take number {number}.{more}", prompt.category)
        # Shorter than the refusal and longer, so that who likes one of the two does not like length.
        for prompt, more in zip(PROMPTS[:12], cycle(("", " Then put it into a dark place. Last, go away.")))
    ]
    with JudgeClient(stack.found["judge"].address) as judge:
        for _ in range(2):
            judge.compare_many(PRINCIPLES, pairs, batch_size=6)
    votes = [
        HumanPreference(
            pair.conversation,
            pair.first,
            pair.second,
            # They do not always agree, with each other or on length.
            preference=Preference.FIRST if (index % 3 == 0) != bool(person and index % 5 == 0) else Preference.SECOND,
            annotator=f"person-{person}",
            category=pair.category,
        )
        for index, pair in enumerate(pairs)
        for person in range(2)
    ]
    with stack.ledger() as ledger:
        ledger.import_labels(list(human_labels(votes)))


async def compare_at_once(stack: Stack, number: int, *, count: int) -> None:
    """Single comparisons by the second judge, at the same time, of responses of different length."""
    async with AsyncJudgeClient(stack.evaluator) as judge:
        await asyncio.gather(
            *(
                judge.compare(
                    PRINCIPLES,
                    f"Question {number}, {index}",
                    first=f"Yes, {number} and {index}.",
                    second=f"That is a question to which there are many answers; this is {number}, then {index}.",
                    options=ONE,
                )
                for index in range(count)
            )
        )


def tell_of_a_run(stack: Stack) -> None:
    """What pipelines write into the ledger, once it is known that nothing was written before."""
    until(lambda: bool(stack.prometheus.query("rlaif_oversight_gates_total")), what="a scrape of oversight")
    with stack.ledger() as ledger:
        for name, passed in (("first", False), ("second", True)):
            ledger.record_event("gate_decided", subject="policies/served", payload={"run": name, "passed": passed})
        ledger.record_event("policy_published", subject="policies/served", payload={"version": 1})
        results = {"guard": {"guard": "kl"}}
        ledger.record_event(
            "stage_finished", subject="runs/first/stages/train", payload={"values": {"results": results}}
        )
        payload = {"launcher": "trainjob", "reason": "OUT_OF_MEMORY"}
        ledger.record_event("stage_failed", subject="runs/second/stages/train-2", payload=payload)


def break_the_published_policy(stack: Stack) -> None:
    """For a moment what is published cannot be read, as on a volume that went away."""
    published = Path(stack.settings.artifact_root) / "policies" / "served" / "desired.json"
    whole = published.read_text()
    published.write_text("{")
    failures = "rate(rlaif_sampler_policy_sync_failures_total[10s])"
    until(lambda: bool(stack.prometheus.query(failures)), what="a failure to sync")
    published.write_text(whole)


def calibrated(stack: Stack, folder: Path) -> Path:
    """A calibration of the judge, fitted on what people said."""
    with stack.ledger() as ledger:
        groups = reviewed_labels(
            ledger.export_labels(source=pb.LABEL_SOURCE_HUMAN), ledger.export_labels(source=pb.LABEL_SOURCE_AI)
        )
    calibration = fit(groups[0], method="temperature").calibration
    assert calibration is not None
    path = folder / "calibration.json"
    path.write_text(json.dumps(calibration.to_json()))
    return path


def altered(path: Path, subject: str) -> str:
    """Writes into an event behind the ledger's back, as an administrator of its database could; what stood there."""
    with sqlite3.connect(path, timeout=30) as connection:
        connection.execute("DROP TRIGGER IF EXISTS events_refuse_update")
        [[before]] = connection.execute("SELECT subject FROM events WHERE sequence = 1").fetchall()
        connection.execute("UPDATE events SET subject = ? WHERE sequence = 1", (subject,))
    connection.close()
    return str(before)


def launched(stack: Stack, name: str, changes: Mapping[str, Any]) -> Child:
    path = stack.settings.config_path(name)
    path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), changes)))
    return stack.family.start(
        name,
        module_of(name),
        "--config",
        str(path),
        log_path=stack.settings.log_path(name),
        environment=stack.environment,
    )


def end(child: Child) -> None:
    """Without a chance to say good-bye."""
    child.process.kill()
    child.process.wait()


def _start_evaluator(
    folder: Path, url: str, found: Mapping[str, Announcement], family: ProcessFamily, environment: Mapping[str, str]
) -> tuple[ClientSettings, str]:
    """A second judge whose model is elsewhere, behind TLS, and a third on its panel; how to call it, its metrics."""
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    third, health = free_address(), {"evaluator": free_address(), "third": free_address()}
    common = {
        "model": "whims",
        "engine": {"kind": "openai", "openai": {"base_url": url, "max_concurrency": 256}},
        "template": "compact",
        "constitutions": ["playground"],
        "reasoning": None,
        # All that come at once are one batch, and wait for the model together.
        "mix_requests": True,
        "queue": {"max_delay_milliseconds": 200},
    }
    configs: dict[str, dict[str, Any]] = {
        "third": common | {"listen": {"address": third, "metrics_address": None, "health_address": health["third"]}},
        "evaluator": common
        | {
            "listen": {
                "health_address": health["evaluator"],
                "announce_path": str(announce_path(folder, "evaluator")),
                "tls": {"certificate_path": str(folder / "cert.pem"), "key_path": str(folder / "key.pem")},
            },
            "ledger": {"target": found["oversight"].address},
            "panel": {"judges": [{"name": "third", "target": third, "timeout_seconds": 5}], "quorum": 1},
        },
    }
    for name, config in configs.items():
        path, log_path = folder / "services" / f"{name}.yaml", folder / "logs" / f"{name}.log"
        path.write_text(yaml.safe_dump(config))
        family.start(name, "rlaif.judge", "--config", str(path), log_path=log_path, environment=environment)
    for name, address in health.items():
        until(lambda address=address: is_serving(address, "rlaif.v1.JudgeService"), what=name)  # type: ignore[misc]
    announcement = read_announcement(announce_path(folder, "evaluator"))
    assert announcement is not None
    assert announcement.metrics_address is not None
    client = ClientSettings(target=announcement.address, tls_ca_path=folder / "ca.pem", timeout_seconds=60)
    return client, announcement.metrics_address


def _start_trainings(
    settings: StackSettings,
    found: Mapping[str, Announcement],
    family: ProcessFamily,
    environment: Mapping[str, str],
    *,
    children: dict[str, Child],
) -> dict[str, str]:
    """A reward model and reinforcement learning, longer than the tests take; their addresses by pod."""
    folder, targets = settings.folder, {"reward-0": free_address(), "rl-0": free_address()}
    prompts = [
        {
            "prompt_id": f"prompt-{number}",
            "messages": [{"role": "user", "content": prompt.text}],
            "category": prompt.category,
            "split": "train",
        }
        for number, prompt in enumerate(PROMPTS[:72])
    ]
    common = {"policy": str(POLICY_DIR), "engine": {"num_threads": 1, "attention": "eager"}}
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "reward-0": (
            "reward",
            common
            | {
                "out": str(folder / "reward"),
                "labels": str(write_lines(folder / "labels.jsonl", [label(n) for n in range(96)])),
                "num_epochs": 5000,
                "batch_pairs": 16,
            },
        ),
        "rl-0": (
            "rl",
            common
            | {
                "out": str(folder / "rl"),
                "prompts": str(write_lines(folder / "prompts.jsonl", prompts)),
                "publish": {"artifact_root": settings.artifact_root, "policy": settings.policy_name},
                "sampler": {"target": found["sampler"].address},
                "rewards": {"target": found["reward"].address},
                "reward": {"name": "rewardModels/judge", "constitution": PRINCIPLES},
                "watch": {"name": "rewardModels/tiny"},
                "watch_every": 1,
                "gold": "playground",
                "num_steps": 5000,
                "prompts_per_step": 4,
                "group_size": 4,
                "quorum": 2,
                "max_tokens": 16,
                "guards": {
                    "kl": {"limit": 1e-9, "action": "lower_rate"},
                    "held_out": {"limit": None},
                    "length": {"limit": None},
                    "entropy": {"limit": None},
                    "repetition": {"limit": None},
                },
            },
        ),
    }
    for pod, (verb, config) in configs.items():
        path = folder / f"{pod}.yaml"
        path.write_text(yaml.safe_dump(config | {"metrics_address": targets[pod]}))
        children[pod] = family.start(
            pod,
            "rlaif_pipelines.training",
            verb,
            "--config",
            str(path),
            log_path=folder / "logs" / f"{pod}.log",
            environment=environment,
        )
    return targets


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, change) if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return merged
