"""Answers as they come, in a file that a later attempt reads: what was answered once is not asked again."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """Plain answers by what was asked. Safe to use from several threads; a line cut off by a crash is forgotten."""

    def __init__(self, path: Path) -> None:
        whole, _, _ = path.read_bytes().rpartition(b"\n") if path.is_file() else (b"", b"", b"")
        self._known = {json.dumps(entry["asked"]): entry["answer"] for entry in map(json.loads, whole.splitlines())}
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.ftruncate(self._descriptor, len(whole) + 1 if whole else 0)
        self._lock = threading.Lock()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def answer(self, asked: Sequence[str | int], ask: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """The answer there is, or what `ask` gives, which is written down first."""
        key = json.dumps(list(asked))
        if key not in self._known:
            found = ask()
            line = json.dumps({"asked": list(asked), "answer": found}, ensure_ascii=False) + "\n"
            with self._lock:
                os.write(self._descriptor, line.encode())
            self._known[key] = found
        return self._known[key]
