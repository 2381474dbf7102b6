"""A server of the OpenAI protocol on loopback whose answers come from a real model, and which can be made to misbehave.

Two manners: `vllm` knows vLLM's additions (token ids, log-probabilities of any token, echo, structured_outputs);
`plain` is a vendor that refuses every field it does not know and lists five tokens at most.
"""

from __future__ import annotations

import functools
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from rlaif.core.conversation import Message
from rlaif.engine.codec import ChatCodec

Manner = Literal["vllm", "plain"]
Fault = Callable[["_Handler", str, Mapping[str, Any]], bool]
"""Answers in the server's place and returns True, or lets it answer."""

MODEL = "tiny"
_STANDARD = {"model", "max_tokens", "temperature", "top_p", "seed", "stop", "logprobs", "n", "stream"}
_PLAIN_FIELDS = {
    "/completions": _STANDARD | {"prompt"},
    "/chat/completions": _STANDARD | {"messages", "top_logprobs", "response_format"},
}


class RefusedError(Exception):
    """Answered as the protocol's error."""

    def __init__(self, status: int, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class ModelServer:
    """One model behind the protocol. `requests` holds what came, `fault` is asked before each answer."""

    def __init__(
        self, folder: Path, *, manner: Manner = "vllm", logprobs: bool = True, constraints: bool = True
    ) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.codec = ChatCodec(self.tokenizer)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.context_length = int(self.model.config.max_position_embeddings)
        self.manner, self.logprobs, self.constraints = manner, logprobs, constraints
        self.api_key = ""
        self.greedy = False
        """Draws the likeliest token whatever is asked."""
        self.bias: Mapping[int, float] = {}
        """Added to the logits of these tokens in completions."""
        self.fault: Fault | None = None
        self.requests: list[tuple[str, Mapping[str, Any]]] = []
        self.headers: list[Mapping[str, str]] = []
        self.released = threading.Event()
        """Ends answers that a fault holds back."""
        self._lock = threading.Lock()
        # A judge without log-probabilities draws a hundred times from one prompt.
        self._logits = functools.lru_cache(maxsize=1024)(self._next_logits)

    def answer(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self._check_fields(path, body)
        with self._lock, torch.inference_mode():
            return {"id": "x", "object": "completion", "model": MODEL, "choices": [self._choice(path, body)]}

    def models(self) -> Mapping[str, Any]:
        entry: dict[str, Any] = {"id": MODEL, "object": "model", "owned_by": self.manner}
        return {"object": "list", "data": [entry | {"max_model_len": self.context_length} if self.vllm else entry]}

    @property
    def vllm(self) -> bool:
        return self.manner == "vllm"

    def _check_fields(self, path: str, body: Mapping[str, Any]) -> None:
        if not self.vllm and (unknown := sorted(set(body) - _PLAIN_FIELDS[path])):
            raise RefusedError(400, f"Unrecognized request argument supplied: {unknown[0]}")
        if body["model"] != MODEL:
            raise RefusedError(404, f"The model `{body['model']}` does not exist.", code="model_not_found")
        wanted = body.get("top_logprobs", body.get("logprobs") or 0)
        if body.get("logprobs") and not self.logprobs:
            raise RefusedError(400, "logprobs are not supported by this model")
        if not self.vllm and not isinstance(wanted, bool) and wanted > 5:
            raise RefusedError(400, "logprobs must be at most 5")
        if not self.constraints and {"response_format", "structured_outputs"} & set(body):
            raise RefusedError(400, "structured outputs are not supported by this model")

    def _choice(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        chat = path == "/chat/completions"
        if chat:
            turns = [Message(turn["role"], turn["content"]) for turn in body["messages"]]
            prompt = list(self.codec.encode_chat(turns))
        else:
            prompt = list(body["prompt"])
        if len(prompt) + body["max_tokens"] > self.context_length:
            raise RefusedError(
                400,
                f"This model's maximum context length is {self.context_length} tokens. However, you requested "
                f"{len(prompt) + body['max_tokens']} tokens.",
                code="context_length_exceeded",
            )
        tokens, scores, ended = self._draw(prompt, body)
        text = self.codec.decode(tokens)
        stop_reason: str | None = None
        for stop in body.get("stop") or []:
            if stop in text:
                text, stop_reason, ended = text[: text.find(stop)], stop, True
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if ended else "length"}
        if self.vllm:
            choice["stop_reason"] = stop_reason
        if body.get("echo"):
            scores = [None, *self._log_softmax(prompt)[:-1]] if body.get("logprobs") else []
            tokens, text = prompt, self.tokenizer.decode(prompt)
        if chat:
            choice |= {"message": {"role": "assistant", "content": text}, "logprobs": None}
            if body.get("logprobs"):
                entries = [self._chat_entry(*each, body) for each in zip(tokens, scores, strict=True)]
                choice["logprobs"] = {"content": entries}
            return choice
        choice |= {"text": text, "logprobs": None}
        if body.get("logprobs"):
            choice["logprobs"] = self._completion_logprobs(tokens, scores, body)
        return choice

    def _draw(self, prompt: Sequence[int], body: Mapping[str, Any]) -> tuple[list[int], list[Any], bool]:
        """Tokens with their [V] log-probabilities, and whether the turn ended."""
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        allowed = self._allowed(body)
        end = self.codec.end_of_turn
        tokens: list[int] = []
        scores: list[Any] = []
        while len(tokens) < body["max_tokens"]:
            logits = self._logits((*prompt, *tokens)).clone()
            for token, added in self.bias.items():
                logits[token] += added
            scores.append(torch.log_softmax(logits, dim=-1))
            if allowed is not None:
                choices = {answer[len(tokens)] for answer in allowed if answer[: len(tokens)] == tokens}
                mask = torch.full_like(logits, -math.inf)
                mask[sorted(choices)] = 0.0
                logits = logits + mask
            tokens.append(int(logits.argmax()) if self.greedy else _pick(logits, body, generator))
            if tokens[-1] == end:
                return tokens, scores, True
            if body.get("stop") and any(stop in self.tokenizer.decode(tokens) for stop in body["stop"]):
                return tokens, scores, True
        return tokens, scores, False

    def _next_logits(self, ids: tuple[int, ...]) -> torch.Tensor:
        """[V] logits of what follows."""
        return self.model(torch.tensor([ids])).logits[0, -1].float().clone()

    def _allowed(self, body: Mapping[str, Any]) -> list[list[int]] | None:
        texts: Sequence[str] | None = None
        if "structured_outputs" in body:
            texts = body["structured_outputs"]["choice"]
        elif "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
            [[name, property_schema]] = schema["properties"].items()
            texts = [json.dumps({name: value}) for value in property_schema["enum"]]
        if texts is None:
            return None
        return [[*self.codec.encode_response(text)] for text in texts]

    def _log_softmax(self, ids: Sequence[int]) -> list[torch.Tensor]:
        return list(torch.log_softmax(self.model(torch.tensor([ids])).logits[0].float(), dim=-1))

    def _top(self, score: torch.Tensor, most: int) -> list[int]:
        return [int(token) for token in score.topk(most).indices]

    def _name(self, token: int, body: Mapping[str, Any]) -> str:
        if self.vllm and body.get("return_tokens_as_token_ids"):
            return f"token_id:{token}"
        return str(self.tokenizer.decode([token]))

    def _chat_entry(self, token: int, score: torch.Tensor, body: Mapping[str, Any]) -> Mapping[str, Any]:
        def entry(each: int) -> dict[str, Any]:
            return {"token": self._name(each, body), "logprob": float(score[each]), "bytes": None}

        return entry(token) | {"top_logprobs": [entry(top) for top in self._top(score, body.get("top_logprobs", 0))]}

    def _completion_logprobs(
        self, tokens: Sequence[int], scores: Sequence[Any], body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        tops: list[Any] = []
        for token, score in zip(tokens, scores, strict=True):
            if score is None:
                tops.append(None)
                continue
            ids = (self.vllm and body.get("logprob_token_ids")) or self._top(score, body["logprobs"])
            tops.append({self._name(each, body): float(score[each]) for each in (*ids, token)})
        return {
            "tokens": [self._name(token, body) for token in tokens],
            "token_logprobs": [
                None if score is None else float(score[token]) for token, score in zip(tokens, scores, strict=True)
            ],
            "top_logprobs": tops,
        }


def _pick(logits: torch.Tensor, body: Mapping[str, Any], generator: torch.Generator) -> int:
    temperature, top_p = body.get("temperature", 1.0), body.get("top_p", 1.0)
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = torch.where(before < top_p, probabilities, 0.0)
    return int(order[torch.multinomial(kept, 1, generator=generator)])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: Mapping[str, Any]) -> None:
        served, path = self.server.served, self.path.removeprefix("/v1")
        served.requests.append((path, body))
        served.headers.append({name.lower(): value for name, value in self.headers.items()})
        if served.fault is not None and served.fault(self, path, body):
            return
        if served.api_key and self.headers.get("Authorization") != f"Bearer {served.api_key}":
            self.send_error_object(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
            return
        try:
            self.send_json(200, served.models() if path == "/models" else served.answer(path, body))
        except RefusedError as error:
            self.send_error_object(error.status, str(error), code=error.code)

    def send_error_object(self, status: int, message: str, *, code: str = "") -> None:
        self.send_json(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}})

    def send_json(self, status: int, value: Any) -> None:
        self.send_bytes(status, json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def send_bytes(self, status: int, data: bytes, *, headers: Mapping[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        return


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, served: ModelServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served = served
        self.connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away in the middle of an answer is what some tests are about.
        return


@contextmanager
def serving_model(served: ModelServer) -> Iterator[str]:
    """Its base URL, for as long as the block runs."""
    http = _Http(served)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    finally:
        served.released.set()
        http.shutdown()
        http.server_close()
        for connection in http.connections:
            # Else a connection that was kept alive would go on being served.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()
