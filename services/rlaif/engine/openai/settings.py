"""Which OpenAI-compatible server runs the model, and how it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlaif.runtime.settings import PositiveSeconds, SettingsModel

_OWN_KEYS = frozenset(
    {
        *("model", "messages", "prompt", "n", "seed", "stream", "stop", "max_tokens", "max_completion_tokens", "echo"),
        *("temperature", "top_p", "logprobs", "top_logprobs", "logprob_token_ids", "response_format"),
        *("structured_outputs", "guided_choice", "guided_regex", "guided_json"),
    }
)


class OpenAiSettings(SettingsModel):
    """A server that speaks the OpenAI protocol: vLLM's own, TGI, SGLang, a vendor. Its model is named beside it."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Where the protocol begins, usually ending in /v1; credentials do not belong in it."""
    mode: Literal["completions", "chat"] = "chat"
    """completions sends exact token ids to /completions and needs `tokenizer`; chat sends messages."""
    tokenizer: str = ""
    """Folder or hub id of the tokenizer that the server's model uses, chat template included; completions only."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the API key; null sends none."""
    api_key_path: Path | None = None
    """File that holds the API key, for example of a mounted secret."""
    model_digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Digest of the server's model folder, where you answer for it that it serves just these weights; completions
    only. Labels are then answered from the ledger; without it the weights are unknown, and never are."""
    timeout_seconds: PositiveSeconds = 120.0
    """Longest time of one request, its retries included."""
    max_retries: int = Field(default=4, ge=0, le=20)
    """Times that a request is sent again after HTTP 408, 429 and 5xx and after a lost connection."""
    max_concurrency: int = Field(default=32, ge=1, le=4096)
    """Most requests at the server at a time; the others wait, those of the smallest priority first."""
    top_logprobs: int = Field(default=20, ge=2, le=20)
    """Most tokens whose log-probability is asked for where labels cannot be named by their ids."""
    constraints: Literal["auto", "structured_outputs", "guided", "json_schema", "none"] = "auto"
    """How the server is told what a text must be: vLLM's field, older vLLM's fields, response_format; auto tries."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Field that bounds a chat answer; some vendors' newer models take the second only."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Fields to add to every request, for example {"chat_template_kwargs": {"enable_thinking": false}}; no secrets."""

    @field_validator("base_url")
    @classmethod
    def _is_a_bare_url(cls, value: str) -> str:
        parts = urlsplit(value)
        # The value is not repeated: whoever put a key into it would find it in the log.
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an http:// or https:// URL is needed")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("the URL must hold no credentials, query or fragment; keys go into api_key_env or _path")
        return value.rstrip("/")

    @field_validator("extra_body")
    @classmethod
    def _leaves_our_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OWN_KEYS & set(value)):
            raise ValueError(f"{', '.join(taken)} cannot be set here: the engine sets it itself")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> OpenAiSettings:
        if self.mode == "completions" and not self.tokenizer:
            raise ValueError("mode completions needs tokenizer, a folder or hub id; mode chat needs none")
        if self.mode == "chat" and self.tokenizer:
            raise ValueError("mode chat uses no tokenizer: leave it out, or set mode completions")
        if self.mode == "chat" and self.model_digest:
            raise ValueError(
                "mode chat takes no model_digest: the server's own tokenizer and chat template decide what the model "
                "is shown; use mode completions"
            )
        if self.api_key_env is not None and self.api_key_path is not None:
            raise ValueError("api_key_env and api_key_path are both set; one is enough")
        return self
