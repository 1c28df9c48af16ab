"""The answers of a batch as they come: lines in two files of its folder, which outlive the server. Blocks."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import msgspec

from server.catalog.store import disk_errors

OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"


class Answers:
    """What there is of a batch's answers in ``folder``: the ids of requests that were ``completed`` or ``failed``."""

    @disk_errors()
    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.output, self.errors = folder / OUTPUT, folder / ERRORS
        self.completed, self.failed = _read(self.output), _read(self.errors)

    def has(self, id: str) -> bool:
        """Whether that request need not be sent again."""
        return id in self.completed or id in self.failed

    @disk_errors()
    def add(self, id: str, status: int, body: Any, request_id: str) -> None:
        """The answer of one request."""
        response = {"status_code": status, "request_id": request_id, "body": body}
        self._append(id, response, None, good=status < 400)

    @disk_errors()
    def add_error(self, id: str, code: str, message: str) -> None:
        """One request was not answered."""
        self._append(id, None, {"code": code, "message": message}, good=False)

    def _append(self, id: str, response: Any, error: Any, *, good: bool) -> None:
        line = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": id, "response": response, "error": error}
        with (self.output if good else self.errors).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
        (self.completed if good else self.failed).add(id)


def _read(path: Path) -> set[str]:
    """The ids in a file, of which a last line that a crash tore off is cut away."""
    if not path.is_file():
        return set()
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return {msgspec.json.decode(line)["custom_id"] for line in data[:end].splitlines()}
