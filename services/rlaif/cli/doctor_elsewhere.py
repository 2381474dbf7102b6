"""What an installation stands on besides its services: storage of models, Kubeflow Pipelines, metrics."""

from __future__ import annotations

import contextlib
import ssl
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlaif.cli.doctor_findings import Findings, StoppedError
from rlaif.core.errors import RlaifError
from rlaif.runtime.revision import service_revision
from rlaif.runtime.settings import ClientSettings, read_token

if TYPE_CHECKING:
    from rlaif_pipelines.submission import PipelinesClient

_MAX_BYTES: Final = 16 << 20
_SECONDS: Final = 10.0


def check_artifact_root(root: str, findings: Findings) -> None:
    """Something is written there, read again and removed."""
    from rlaif.runtime.store import open_store

    store, policy = open_store(root), f"policies/doctor-{uuid.uuid4().hex[:12]}"
    fix = "give whoever runs this (and the services) the right to write there, and credentials: docs/artifacts.md"

    def write(folder: Path) -> None:
        # The least that passes for weights: a header of two bytes, which says that there are none.
        (folder / "probe.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")

    try:
        with findings.attempt("writing", fix=fix):
            try:
                uri, digest = store.publish_model(policy, "probe", write=write)
            except OSError as error:
                raise RlaifError(f"{root}: {error.strerror or error}") from error
        findings.ok("writing", root)
        with findings.attempt("reading", fix=fix):
            store.fetch(uri, digest=digest)
        findings.ok("reading", "what was written, by its digest")
    except StoppedError:
        pass
    finally:
        with contextlib.suppress(RlaifError, OSError):
            store.remove_policy(policy)


def open_pipelines(host: str) -> PipelinesClient:
    """A client of the API, with the credentials that the environment names; nothing is connected to yet."""
    from rlaif_pipelines.submission import PipelinesClient, find_connection

    return PipelinesClient(find_connection(host=host, timeout_seconds=_SECONDS))


def check_pipelines(client: PipelinesClient, findings: Findings) -> None:
    """The API of Kubeflow Pipelines answers and lets us in."""
    with contextlib.suppress(StoppedError), client:
        with findings.attempt("API", fix="see docs/submit.md for addresses and credentials"):
            client.runs(page_size=1)
        findings.ok("API", f"{client.connection.host} lists runs")


def check_metrics(url: str, settings: ClientSettings, findings: Findings) -> None:
    """The page that Prometheus reads, and which code it says is running."""
    from prometheus_client.parser import text_string_to_metric_families

    authority = None if settings.tls_ca_path is None else str(settings.tls_ca_path)
    # Proxies from the environment are for the internet.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authority)),
    )
    request = urllib.request.Request(url)  # noqa: S310 - http and https alone, checked before
    if token := read_token(settings.token_path):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            text = answer.read(_MAX_BYTES).decode("utf-8", "replace")
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except urllib.error.HTTPError as error:
        fix = "use a token with the role reader or admin" if error.code in (401, 403) else "give the path to /metrics"
        findings.failed("metrics", f"{url} answers {error.code} {error.reason}", fix=fix)
        return
    except (OSError, ValueError) as error:
        findings.failed(
            "metrics",
            f"{url} cannot be read: {error}",
            fix="port 9090 of a pod; networkPolicy.monitoring and monitoring.metricsTls in the chart's values",
        )
        return
    revisions = sorted({each.labels["revision"] for each in samples if each.name == "rlaif_build_info"})
    if revisions:
        findings.ok(
            "metrics",
            f"{url}: {len(samples)} series, revision {', '.join(revisions)}; this command {service_revision()}",
        )
    else:
        findings.failed("metrics", f"{url} shows no metrics of a service of ours", fix="give port 9090 of a pod")
