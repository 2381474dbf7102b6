"""Two replicas of the judge are restarted in turn while clients call: none of them notices."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from ledger_fixtures import serving_ledger
from rlaif.client import JudgeClient
from rlaif.client.channel import wait_serving
from rlaif.client.judge_aio import AsyncJudgeClient
from rlaif.client.judge_values import Verdict
from rlaif.runtime.settings import ClientSettings
from tls_fixtures import until

# The judge as it is, but for the model: its engine answers at once.
PROGRAM = Path(__file__).parents[1] / "bench" / "null_judge.py"
CONSTITUTION = "constitutions/playground"
QUESTION = "How do I bake bread?"


@dataclass
class Replica:
    """One judge process; its address stays the same when it is restarted."""

    config: Path
    address: str
    process: Process = field(init=False)

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROGRAM),
            "--config",
            str(self.config),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def is_serving(self) -> None:
        client = ClientSettings(target=self.address)
        await asyncio.to_thread(wait_serving, client, ["rlaif.v1.JudgeService"], timeout_seconds=120)

    async def restart(self) -> int:
        """The exit code of the process that was told to stop, once the next one serves."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            code = await self.process.wait()
        await self.start()
        await self.is_serving()
        return code


@asynccontextmanager
async def replicas(folder: Path, *, num: int, **settings: Any) -> AsyncIterator[list[Replica]]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(num)]
    running: list[Replica] = []
    try:
        for number, address in enumerate(addresses):
            config = folder / f"judge-{number}.yaml"
            listen = {"address": address, "metrics_address": None}
            config.write_text(yaml.safe_dump({"listen": listen, **settings}))
            running.append(Replica(config, address))
            await running[-1].start()
        for replica in running:
            await replica.is_serving()
        yield running
    finally:
        for replica in running:
            if replica.process.returncode is None:
                replica.process.kill()
                await replica.process.wait()


@pytest.mark.slow
async def test_restarting_judges_in_turn_under_load_fails_no_call_and_labels_nothing_twice(tmp_path: Path) -> None:
    async with serving_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        settings = {
            "model": "playground",
            "template": "compact",
            "constitutions": ["playground"],
            "ledger": {"target": ledger.client.target},
            # Calls are in flight for a while, as they are with a model.
            "queue": {"max_delay_milliseconds": 100},
        }
        async with replicas(tmp_path, num=2, **settings) as judges:
            client = ClientSettings(target=f"ipv4:{','.join(judge.address for judge in judges)}", timeout_seconds=30)
            going, numbers = True, count()
            answered: dict[str, list[Verdict]] = {"awaited": [], "blocking": []}

            async def call_on(judge: AsyncJudgeClient) -> None:
                while going:
                    answered["awaited"].append(
                        await judge.compare(CONSTITUTION, QUESTION, first=f"So {next(numbers)}.", second="No.")
                    )

            def call_on_blocking(judge: JudgeClient) -> None:
                while going:
                    answered["blocking"].append(
                        judge.compare(CONSTITUTION, QUESTION, first=f"So {next(numbers)}.", second="No.")
                    )

            async with AsyncJudgeClient(client) as awaited:
                with JudgeClient(client) as blocking:
                    calling = [asyncio.create_task(call_on(awaited)) for _ in range(3)]
                    calling += [asyncio.create_task(asyncio.to_thread(call_on_blocking, blocking)) for _ in range(2)]

                    async def go_on() -> None:
                        before = {name: len(verdicts) for name, verdicts in answered.items()}
                        await until(
                            lambda: all(len(answered[name]) >= before[name] + 20 for name in before), while_=calling
                        )

                    try:
                        await go_on()
                        for judge in judges:
                            assert await judge.restart() == 0
                            await go_on()
                    finally:
                        going = False
                        await asyncio.gather(*calling)
        report = await ledger.verify()
        assert not report.broken_at
        verdicts = [*answered["awaited"], *answered["blocking"]]
        assert report.num_labels == len(verdicts) == next(numbers)
        assert not any(verdict.recorded_before for verdict in verdicts)


def free_ports(num: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
