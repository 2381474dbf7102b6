"""How a service starts, says that it serves, and stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rlaif.client.channel import open_channel, wait_serving
from rlaif.core.errors import DeadlineError, SettingsError, UnavailableError
from rlaif.runtime.server import Server, serving
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from tls_fixtures import until
from toy_service import NAME, ToySampler, toy_service

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
TESTS = Path(__file__).parents[1]
QUIET = ListenSettings(metrics_address=None)


async def check(health: Any, service: str) -> int:
    return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_says_serving_only_once_the_service_has_loaded() -> None:
    loaded = asyncio.Event()
    server = Server(toy_service(ToySampler(), start=loaded.wait), QUIET)
    await server.bind()
    async with grpc.aio.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        starting = asyncio.create_task(server.start())
        assert [await check(health, name) for name in ("", NAME)] == [NOT_SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(pb.GetPolicyRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        loaded.set()
        await starting
        assert [await check(health, name) for name in ("", NAME)] == [SERVING, SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(health, "rlaif.v1.Other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await server.stop()


async def test_watchers_see_each_change_and_do_not_hold_up_the_drain() -> None:
    server = Server(toy_service(ToySampler()), QUIET)
    await server.bind()
    async with grpc.aio.insecure_channel(server.address) as channel:
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME)) for _ in range(2)
        ]
        assert [(await anext(aiter(watch))).status for watch in watches] == [NOT_SERVING, NOT_SERVING]
        await server.start()
        assert (await anext(aiter(watches[0]))).status == SERVING
        # One watcher that leaves must not silence the other.
        watches[0].cancel()
        assert (await anext(aiter(watches[1]))).status == SERVING
        async with asyncio.timeout(10):
            await server.stop()
        assert [response.status async for response in watches[1]] == [NOT_SERVING]


async def test_health_follows_what_the_service_says_of_itself_and_calls_are_still_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rlaif.runtime.server._READINESS_SECONDS", 0.01)
    caplog.set_level("INFO")
    cause = ""

    def unready() -> str:
        if cause == "crash":
            raise OSError("the disk is gone")
        return cause

    async with (
        serving(toy_service(ToySampler(), unready=unready), QUIET) as server,
        grpc.aio.insecure_channel(server.address) as channel,
        asyncio.timeout(20),
    ):
        watch = aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME)))
        assert (await anext(watch)).status == SERVING
        for cause in ("the engine is lost", "", "crash", ""):
            assert (await anext(watch)).status == (NOT_SERVING if cause else SERVING)
            await sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(pb.GetPolicyRequest())
    told = [record for record in caplog.records if "ready" in record.getMessage()]
    assert [record.getMessage() for record in told] == ["service is not ready", "service is ready again"] * 2
    causes = [record.rlaif_fields["cause"] for record in told[::2]]  # type: ignore[attr-defined]
    assert causes == ["the engine is lost", "its readiness check failed: the disk is gone"]


async def test_a_reflection_stream_left_open_does_not_hold_up_the_drain() -> None:
    async with serving(toy_service(ToySampler()), QUIET) as server:
        channel = grpc.aio.insecure_channel(server.address)
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await stream.read()).list_services_response.service}
        assert names >= {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        drained = asyncio.get_running_loop().time() + 10
    assert asyncio.get_running_loop().time() < drained
    await channel.close()


async def test_probes_read_not_serving_while_the_last_calls_are_answered() -> None:
    servicer = ToySampler()
    server = Server(toy_service(servicer), QUIET.model_copy(update={"health_address": "127.0.0.1:0"}))
    await server.bind()
    await server.start()
    assert server.health_address is not None
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        grpc.aio.insecure_channel(server.health_address) as probing,
        asyncio.timeout(20),
    ):
        slow = sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(pb.GetPolicyRequest(name="sleep:1"))
        await until(lambda: servicer.num_calls == 1)
        stopping = asyncio.create_task(server.stop())
        health = health_pb2_grpc.HealthStub(probing)
        while await check(health, NAME) == SERVING:
            pass
        assert not slow.done()
        await slow
        await stopping


async def test_a_port_in_use_is_refused_whether_for_calls_or_metrics() -> None:
    async with serving(toy_service(ToySampler()), ListenSettings()) as first:
        taken_by_first = (first.address, first.metrics_address, first.address)
        for field, taken in zip(("address", "metrics_address", "health_address"), taken_by_first, strict=True):
            with pytest.raises(SettingsError, match="the port is in use") as caught:
                async with serving(toy_service(ToySampler()), ListenSettings.model_validate({field: taken})):
                    pytest.fail("two servers on one port")
            assert caught.value.reason == "ADDRESS_IN_USE"
            assert caught.value.field == f"listen.{field}"


async def test_metrics_are_read_over_http() -> None:
    async with serving(toy_service(ToySampler(), name="read"), ListenSettings()) as server:
        assert server.metrics_address is not None
        host, port = server.metrics_address.split(":")
        for request, status in (("GET /metrics", "200"), ("GET /", "404"), ("POST /metrics", "405")):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\n".encode())
            head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
            writer.close()
            assert head.split()[1] == status
            assert f"Content-Length: {len(body.encode())}" in head
            if status == "200":
                assert "rlaif_read_requests_in_flight 0.0" in body
                assert "rlaif_read_ready_ratio 1.0" in body


class Child:
    """The toy service in a process of its own."""

    def __init__(self, folder: Path, *, start: str = "now", **listen: Any) -> None:
        self.announce_path = folder / "toy.json"
        settings = ListenSettings.model_validate({"announce_path": self.announce_path, **listen})
        (folder / "listen.json").write_text(settings.model_dump_json())
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toy_service", str(folder / "listen.json"), start],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def client(self) -> ClientSettings:
        for line in iter(self.process.stderr.readline, ""):  # type: ignore[union-attr]
            if json.loads(line)["event"] == "serving":
                return ClientSettings(target=json.loads(self.announce_path.read_text())["address"])
        pytest.fail("the service did not start")

    def end(self) -> tuple[int, list[str]]:
        _, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stderr.splitlines()


@contextmanager
def child(folder: Path, **settings: Any) -> Iterator[Child]:
    running = Child(folder, **settings)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_call_in_flight_is_answered_before_the_process_ends(tmp_path: Path, number: signal.Signals) -> None:
    with child(tmp_path) as running, grpc.insecure_channel(running.client().target) as channel:
        announced = json.loads(running.announce_path.read_text())
        assert announced["service"] == "toy"
        assert announced["pid"] == running.process.pid
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
        stream = stub.StreamCompletions(pb.StreamCompletionsRequest(policy="sleep:0.5"))
        assert next(stream).completion.index == 0
        running.process.send_signal(number)
        assert [response.completion.index for response in stream] == [1, 2]
        code, lines = running.end()
    assert code == 0
    assert [json.loads(line)["event"] for line in lines] == ["draining", "stopped"]
    assert not running.announce_path.exists()


def test_a_call_that_outlasts_the_drain_is_cut_off(tmp_path: Path) -> None:
    with child(tmp_path, drain_seconds=0.2) as running, grpc.insecure_channel(running.client().target) as channel:
        call = sampler_service_pb2_grpc.SamplerServiceStub(channel).StreamCompletions(
            pb.StreamCompletionsRequest(policy="sleep:60")
        )
        assert next(call).completion.index == 0
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    with child(tmp_path) as running, grpc.insecure_channel(running.client().target) as channel:
        call = sampler_service_pb2_grpc.SamplerServiceStub(channel).StreamCompletions(
            pb.StreamCompletionsRequest(policy="sleep:60")
        )
        assert next(call).completion.index == 0
        running.process.send_signal(signal.SIGTERM)
        assert json.loads(running.process.stderr.readline())["event"] == "draining"  # type: ignore[union-attr]
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 128 + signal.SIGTERM


def test_a_process_that_is_still_loading_ends_when_told_to(tmp_path: Path) -> None:
    with child(tmp_path, start="hang", address=f"127.0.0.1:{free_port()}") as running:
        while not running.announce_path.exists():
            assert running.process.poll() is None
        target = json.loads(running.announce_path.read_text())["address"]
        with pytest.raises(DeadlineError, match="does not serve"):
            wait_serving(ClientSettings(target=target), [NAME], timeout_seconds=0.2)
        with open_channel(ClientSettings(target=target)) as channel, pytest.raises(UnavailableError) as caught:
            sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(pb.GetPolicyRequest())
        assert caught.value.reason == "NOT_READY"
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("start", "code", "sentence"),
    [
        ("refuse", 2, "toy: the model has no tokenizer"),
        ("crash", 1, "toy: cannot serve: the model file is cut short"),
    ],
)
def test_a_service_that_cannot_start_ends_with_one_sentence(
    tmp_path: Path, start: str, code: int, sentence: str
) -> None:
    with child(tmp_path, start=start) as running:
        ended, lines = running.end()
    assert ended == code
    assert lines[-1] == sentence
    assert all(json.loads(line)["service"] == "toy" for line in lines[:-1])


def test_a_port_in_use_ends_the_process_with_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with child(tmp_path, address=address) as running:
            code, lines = running.end()
    assert code == 2
    assert lines == [f"toy: cannot listen on {address} (listen.address): the port is in use"]
    assert not running.announce_path.exists()
