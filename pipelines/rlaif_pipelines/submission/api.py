"""The generated client of the Kubeflow Pipelines API, with limits on time and retries, and errors of ours."""

from __future__ import annotations

from typing import Any, Final

import kfp_server_api
import urllib3

from rlaif_pipelines.submission.connection import Connection
from rlaif_pipelines.submission.failures import Peer, is_html

_CONNECT_SECONDS: Final = 10.0
_RETRIES: Final = 3
_BUSY: Final = (429, 502, 503, 504)


class Api(kfp_server_api.ApiClient):
    """Sends requests of the generated classes. Reads are tried again, writes never: they might happen twice."""

    def __init__(self, connection: Connection) -> None:
        self._timeout = (min(_CONNECT_SECONDS, connection.timeout_seconds), connection.timeout_seconds)
        self.peer = Peer(
            host=connection.host,
            namespace=connection.namespace,
            credentials=connection.credentials.source,
            timeout_seconds=connection.timeout_seconds,
        )
        super().__init__(_configuration(connection))
        for name, value in connection.credentials.headers.items():
            self.set_default_header(name, value)

    def request(
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: Any = None,
        post_params: Any = None,
        body: Any = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> Any:
        """The answer to one request; an error of ours when there is none, or it is not the API's."""
        try:
            response = super().request(
                method,
                url,
                query_params=query_params,
                headers=headers,
                post_params=post_params,
                body=body,
                _preload_content=_preload_content,
                _request_timeout=_request_timeout or self._timeout,
            )
        except kfp_server_api.ApiException as error:
            # Without a response the generated client tells of TLS alone.
            if not error.status:
                raise self.peer.lost(urllib3.exceptions.SSLError(str(error.reason)), write=method != "GET") from None
            raise self.peer.refused(
                error.status, body=error.body or b"", headers=error.headers or {}, write=method != "GET"
            ) from None
        except urllib3.exceptions.HTTPError as error:
            raise self.peer.lost(error, write=method != "GET") from None
        if _preload_content and is_html(response.urllib3_response):
            raise self.peer.not_the_api("answers with a web page")
        return response

    def text_of(self, path: str, *, most_bytes: int) -> bytes:
        """What a GET of a path that the generated classes lack answers, its last `most_bytes`."""
        headers = dict(self.default_headers)
        settings: dict[str, Any] = self.configuration.auth_settings()
        if settings:
            headers["Authorization"] = settings["Bearer"]["value"]
        response = self.request("GET", f"{self.configuration.host}{path}", headers=headers, _preload_content=False)
        tail = b""
        for chunk in response.stream(1 << 20):
            tail = (tail + chunk)[-most_bytes:]
        response.release_conn()
        return tail


def _configuration(connection: Connection) -> kfp_server_api.Configuration:
    configuration = kfp_server_api.Configuration(host=connection.host)
    configuration.ssl_ca_cert = None if connection.ca_file is None else str(connection.ca_file)
    configuration.retries = urllib3.Retry(
        total=None,
        connect=0,
        read=_RETRIES,
        status=_RETRIES,
        other=0,
        redirect=0,
        allowed_methods={"GET"},
        status_forcelist=_BUSY,
        backoff_factor=connection.retry_pause_seconds,
        backoff_max=10.0,
        raise_on_status=False,
        raise_on_redirect=False,
    )
    credentials = connection.credentials

    def refresh(configuration: kfp_server_api.Configuration) -> None:
        configuration.api_key["authorization"] = credentials.bearer()

    if credentials.token or credentials.token_file:
        configuration.api_key_prefix["authorization"] = "Bearer"
        refresh(configuration)
        configuration.refresh_api_key_hook = refresh
    return configuration
