"""What each service says when it is called as a user calls it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

from rlaif.cli.addresses import grpc_service_of
from rlaif.cli.doctor_findings import Findings, StoppedError
from rlaif.cli.doctor_network import Replica, check_tls, is_local, reachable
from rlaif.client.channel import open_channel
from rlaif.client.judge import JudgeClient, JudgeOptions
from rlaif.client.judge_values import Provenance, ResponseToScore
from rlaif.client.ledger import LedgerClient
from rlaif.client.reward import RewardClient
from rlaif.client.sampler import SamplerClient
from rlaif.core.conversation import Message
from rlaif.core.errors import DeadlineError, NotFoundError
from rlaif.runtime.revision import service_revision
from rlaif.runtime.settings import ClientSettings, read_token

_HEALTH_SECONDS: Final = 10.0
_SLOW_SECONDS: Final = 5.0
_CLOCK_SECONDS: Final = 5.0
_QUESTION: Final = "How do I clean a window?"
_REFUSAL: Final = "I won't help with that. It could hurt someone."
_ANSWER: Final = "First, mix soap and water. Then wipe the glass. Last, dry it."

Answer = TypeVar("Answer")


class Services:
    """Check-ups of services, in an order in which later ones may use what earlier ones said."""

    def __init__(self, *, policy: str, reward_model: str) -> None:
        self._policy, self._reward_model = policy, reward_model
        self._constitution = ""

    def check(self, name: str, settings: ClientSettings, findings: Findings) -> None:
        """From the name's address to a value that the service makes; ends where what follows cannot succeed."""
        ask = {"oversight": self._oversight, "sampler": self._sampler, "reward": self._reward}.get(name, self._judge)
        try:
            replicas = reachable(settings, findings)
            check_tls(settings, replicas, findings)
            _check_health(grpc_service_of(name), settings, replicas, findings)
            ask(settings, findings)
        except StoppedError:
            pass

    def _judge(self, settings: ClientSettings, findings: Findings) -> None:
        with JudgeClient(settings) as judge:
            state = _let_in(judge.get_judge, settings, findings)
            with findings.attempt("model"):
                has = [each.name for each in judge.list_constitutions()]
            digest = state.model_digest[:12] or "weights that cannot be identified"
            findings.ok("model", f"{state.model_uri} ({digest}), {state.context_length_tokens} tokens")
            if not has:
                findings.failed("constitutions", "none", fix="judge.constitutions in the chart's values")
                return
            findings.ok("constitutions", ", ".join(has))
            self._constitution = self._constitution or has[0]
            started, moment = time.perf_counter(), datetime.now(UTC)
            with findings.attempt("comparison"):
                # What the ledger knows already would say nothing of the model.
                verdict = judge.compare(
                    has[0], _QUESTION, first=_REFUSAL, second=_ANSWER, options=JudgeOptions(ignore_recorded=True)
                )
            seconds = time.perf_counter() - started
        said = f"{verdict.preference}, in {seconds:.2f} s"
        if verdict.abstention_reason is not None:
            fix = "see RlaifAbstentionsHigh in docs/runbooks.md"
            findings.look("comparison", f"it abstains ({verdict.abstention_reason}), in {seconds:.2f} s", fix=fix)
        elif seconds > _SLOW_SECONDS:
            findings.look("comparison", said, fix="see RlaifLatencyBudgetBurn in docs/runbooks.md")
        else:
            findings.ok("comparison", f"{said}, probability of the first {verdict.probability_first:.2f}")
        if verdict.label:
            findings.ok("label recorded", verdict.label[:20])
        else:
            findings.look("label recorded", "no", fix="give the judge a ledger, or do not train on its labels")
        _check_origin(verdict.provenance, moment, seconds, findings)

    def _sampler(self, settings: ClientSettings, findings: Findings) -> None:
        with SamplerClient(settings) as sampler:
            policy = _let_in(lambda: sampler.get_policy(self._policy), settings, findings)
            seen = f"{policy.name} version {policy.version} ({policy.digest[:12]})"
            if policy.version == policy.desired_version:
                findings.ok("policy", seen)
            else:
                fix = "see RlaifPolicyStale in docs/runbooks.md"
                findings.look("policy", f"{seen}, and version {policy.desired_version} is published", fix=fix)
            started = time.perf_counter()
            with findings.attempt("completion"):
                batch = sampler.sample(
                    self._policy, [(Message("user", _QUESTION),)], num_completions=1, max_tokens=4, seed=0
                )
            [[completion]] = batch.completions
            seconds = time.perf_counter() - started
            findings.ok("completion", f"{len(completion.token_ids)} tokens in {seconds:.2f} s")

    def _reward(self, settings: ClientSettings, findings: Findings) -> None:
        with RewardClient(settings) as reward:
            model = _let_in(lambda: reward.get_reward_model(self._reward_model), settings, findings)
            components = ", ".join(each.component for each in model.components)
            findings.ok("reward model", f"{model.name}: {components}")
            judged = any(each.kind == "judge" for each in model.components)
            if judged and not self._constitution:
                return  # which constitutions there are, the judge alone knows
            started = time.perf_counter()
            constitution = self._constitution if judged else ""
            with findings.attempt("reward"):
                [result] = reward.score(model.name, [ResponseToScore(_QUESTION, _ANSWER)], constitution=constitution)
            seconds = time.perf_counter() - started
        if result.value is None:
            fix = "see RlaifRewardsFailing in docs/runbooks.md"
            findings.look("reward", f"none: {result.failure_reason} by {result.failed_component}", fix=fix)
        else:
            findings.ok("reward", f"{result.value:.2f} in {seconds:.2f} s")

    def _oversight(self, settings: ClientSettings, findings: Findings) -> None:
        seconds = settings.timeout_seconds
        with LedgerClient(settings) as ledger:
            _let_in(lambda: next(ledger.list_events(), None), settings, findings)
            with findings.attempt("ledger"):
                try:
                    found = ledger.verify(timeout_seconds=seconds)
                except DeadlineError:
                    fix = f"give it longer: rlaif ledger verify --target {settings.target}"
                    findings.look("ledger", f"it takes longer than {seconds:g} s to verify", fix=fix)
                    return
        if found.broken_at:
            fix = "stop trainings, copy the database; see RlaifLedgerBroken in docs/runbooks.md"
            findings.failed("ledger", f"broken at {found.broken_at}: {found.fault.replace('_', ' ')}", fix=fix)
        else:
            findings.ok("ledger", f"whole: {found.num_events} events, {found.num_labels} labels")


def _let_in(call: Callable[[], Answer], settings: ClientSettings, findings: Findings) -> Answer:
    """What the first call gives, and by what right it was let in."""
    with findings.attempt("access"):
        answer = call()
    if read_token(settings.token_path) is not None:
        findings.ok("access", "the token is accepted")
    elif settings.tls_certificate_path is not None:
        findings.ok("access", "the certificate is accepted")
    elif is_local(settings):
        findings.ok("access", "without a token, on this machine alone")
    else:
        findings.look("access", "anyone who reaches it may call", fix="tokens.existingSecret in the chart's values")
    return answer


def _check_origin(provenance: Provenance, moment: datetime, seconds: float, findings: Findings) -> None:
    """Which code made the value, and by which clock."""
    theirs, own = provenance.service_revision, service_revision()
    if theirs == own or not theirs[:1].isdigit():
        # Images say which commit they are of, which no version can be held against.
        findings.ok("version", theirs if theirs == own else f"revision {theirs}; this command is {own}")
    else:
        fix = f"upgrade one of them: helm upgrade, or pip install kube-rlaif=={theirs}"
        findings.look("version", f"it runs {theirs}, this command is {own}", fix=fix)
    if provenance.create_time is None:
        return
    ahead = (provenance.create_time - moment).total_seconds() - seconds / 2
    if abs(ahead) > _CLOCK_SECONDS + seconds / 2:
        findings.look("clock", f"{ahead:+.0f} s from this machine's", fix="set both by NTP: certificates go by time")
    else:
        findings.ok("clock", f"{ahead:+.1f} s from this machine's")


def _check_health(service: str, settings: ClientSettings, replicas: list[Replica], findings: Findings) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    loading = []
    for replica in replicas:
        with open_channel(replica.settings(settings)) as channel, findings.attempt("health"):
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=_HEALTH_SECONDS
                )
            except NotFoundError as error:
                wrong = f"{replica.address} serves something else than {service}"
                findings.failed("health", wrong, fix="give the address of the right service")
                raise StoppedError from error
        if answer.status != answer.SERVING:
            loading.append(replica.address)
    if len(loading) == len(replicas):
        fix = "wait while it loads; its log says why (`service is not ready`): RlaifServiceNotReady in docs/runbooks.md"
        findings.failed("health", "not serving", fix=fix)
        raise StoppedError
    if loading:
        findings.look("health", f"{', '.join(loading)} not serving", fix="look at that replica's log")
    else:
        findings.ok("health", f"{len(replicas)} of {len(replicas)} serving")
