"""The command against services that ask for TLS, a certificate and a token."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from rlaif.cli import main
from rlaif.oversight.process import make_service
from rlaif.oversight.settings import OversightSettings
from rlaif.runtime.roles import Role
from rlaif.runtime.server import serving
from rlaif.runtime.tokens import describe_token
from tls_fixtures import Authority


async def test_a_ledger_behind_tls_and_tokens_is_read_as_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path)
    client = authority.issue("auditor")
    row = describe_token("the-token", name="auditor", roles=[Role.READER])
    (tmp_path / "tokens.yaml").write_text(
        yaml.safe_dump([{"name": row.name, "sha256": row.sha256, "roles": ["reader"]}])
    )
    settings = OversightSettings.model_validate(
        {
            "database_url": f"sqlite:///{tmp_path}/ledger.sqlite",
            "migrate": True,
            "listen": {
                "metrics_address": None,
                "tls": authority.issue("server", "oversight.example").server(client_ca=authority.path).model_dump(),
                "tokens_path": tmp_path / "tokens.yaml",
            },
        }
    )
    async with serving(make_service(settings), settings.listen) as server:

        async def verify() -> tuple[int, str, str]:
            code = await asyncio.to_thread(main.execute, ["ledger", "verify", "--target", server.address])
            return code, *capsys.readouterr()

        assert "it may speak TLS only (tls_ca_path)" in (await verify())[2]
        monkeypatch.setenv("RLAIF_TLS_CA", str(authority.path))
        assert "tls_server_name says which to expect" in (await verify())[2]
        monkeypatch.setenv("RLAIF_TLS_SERVER_NAME", "oversight.example")
        monkeypatch.setenv("RLAIF_TLS_CERTIFICATE", str(client.certificate))
        code, _, told = await verify()
        assert code == 2
        assert "tls_certificate_path and tls_key_path go together" in told
        monkeypatch.setenv("RLAIF_TLS_KEY", str(client.key))
        code, _, told = await verify()
        assert code == 1
        assert "needs a bearer token" in told
        monkeypatch.setenv("RLAIF_TOKEN", "the-token")
        assert (await verify())[:2] == (0, "whole: 0 events, 0 labels, head " + "0" * 64 + "\n")
