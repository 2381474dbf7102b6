"""What a service may never write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from rlaif.client.channel import open_channel
from rlaif.core.errors import RlaifError
from rlaif.runtime.roles import Role
from rlaif.runtime.settings import ClientSettings, ListenSettings
from rlaif.runtime.tokens import describe_token
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc
from tls_fixtures import Authority

TESTS = Path(__file__).parents[1]


def test_tokens_and_keys_are_not_logged_whether_right_wrong_or_misplaced(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    bob = describe_token("hush-bob", name="bob", roles=[Role.READER])
    tokens_path = tmp_path / "tokens.yaml"
    tokens_path.write_text(yaml.safe_dump([{"name": "bob", "sha256": bob.sha256, "roles": ["reader"]}]))
    (tmp_path / "token").write_text("hush-admin")
    settings = ListenSettings(
        announce_path=tmp_path / "toy.json",
        tls=pair.server(),
        token_path=tmp_path / "token",
        tokens_path=tokens_path,
        log_level="DEBUG",
    )
    (tmp_path / "listen.json").write_text(settings.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-m", "toy_service", str(tmp_path / "listen.json"), "now"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log = read_until(process, "serving")
        target = json.loads((tmp_path / "toy.json").read_text())["address"]
        trusting = ClientSettings(target=target, tls_ca_path=authority.path, timeout_seconds=20)
        with open_channel(trusting) as channel:
            stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)
            for sent in ("Bearer hush-admin", "Bearer hush-wrong", "Bearer hush-bob", "Bearer hush hush", "hush"):
                with suppress(RlaifError):
                    stub.LoadPolicy(pb.LoadPolicyRequest(), metadata=[("authorization", sent)])
        with open_channel(ClientSettings(target=target, timeout_seconds=20)) as channel, pytest.raises(RlaifError):
            sampler_service_pb2_grpc.SamplerServiceStub(channel).GetPolicy(
                pb.GetPolicyRequest(), metadata=[("authorization", "Bearer hush-admin")]
            )
        tokens_path.write_text("- {name: x, sha256: hush-pasted, roles: [admin]}\n")
        log += read_until(process, "changed files cannot be used, the old ones stay")
        process.send_signal(signal.SIGTERM)
        log += process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    for reason in ("NOT_SERVED", "TOKEN_UNKNOWN", "ROLE_MISSING", "TOKEN_MALFORMED"):
        assert f'"{reason}"' in log
    assert '"actor": "token:bob"' in log
    secrets = ["hush", bob.sha256, *pair.key.read_text().splitlines()[1:-1]]
    assert [secret for secret in secrets if secret in log] == []


def read_until(process: subprocess.Popen[str], event: str) -> str:
    assert process.stderr is not None
    read = ""
    for line in iter(process.stderr.readline, ""):
        read += line
        if f'"{event}"' in line:
            return read
    pytest.fail(f"the service never logged {event!r}:\n{read}")
