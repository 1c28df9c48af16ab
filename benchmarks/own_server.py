"""Runs ``hotswap serve`` for measurements of hotswap itself, and reads its metrics and the memory of its processes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from trainer.serving.client import bearer
from trainer.serving.local_server import start_server, wait_until_ready

START_SECONDS = REQUEST_SECONDS = 600  # large bases, and uploads of a thousand adapters


@dataclass(frozen=True)
class OwnServer:
    """A ready server of this machine. ``client`` speaks to it as its administrator, whose ``key`` it is."""

    url: str
    key: str
    client: httpx.Client
    process: psutil.Process

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a JSON request. Raises RuntimeError with the server's words when it is refused."""
        answer = self.client.post(path, json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{path}: {answer.text}")
        return answer.json()

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over its labels, with ``label`` those that have it; 0 when it is not there."""
        text = self.client.get("/metrics").text
        labels = rf"{{.*{re.escape(label)}.*}}" if label else r"(?:{.*})?"
        return sum(float(value) for value in re.findall(rf"^{name}{labels} (\S+)$", text, re.MULTILINE))

    def private_bytes(self) -> dict[str, int]:
        """Memory that is a process's own, shared libraries and files not counted, of the API and engine processes."""
        engine = max(self.process.children(), key=lambda child: int(child.memory_info().rss))
        return {
            name: int(process.memory_full_info().uss) for name, process in (("api", self.process), ("engine", engine))
        }


@contextmanager
def own_server(options: Sequence[str], log: Path) -> Iterator[OwnServer]:
    """``hotswap serve`` with ``options``, ready; its output goes to ``log``.

    Raises ServerStartError when it does not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with start_server(options, log) as server:
        asyncio.run(wait_until_ready(server, START_SECONDS))
        with httpx.Client(base_url=server.url, headers=bearer(server.admin_key), timeout=REQUEST_SECONDS) as client:
            yield OwnServer(server.url, server.admin_key, client, psutil.Process(server.process.pid))
