"""Runs ``hotswap serve`` for measurements of hotswap itself, and reads its metrics and the memory of its processes."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

START_SECONDS, STOP_SECONDS = 600, 60


@dataclass(frozen=True)
class OwnServer:
    """A ready server of this machine. ``client`` speaks to it."""

    client: httpx.Client
    process: psutil.Process

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a JSON request. Raises RuntimeError with the server's words when it is refused."""
        answer = self.client.post(path, json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{path}: {answer.text}")
        return answer.json()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 when it is not there."""
        text = self.client.get("/metrics").text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def private_bytes(self) -> dict[str, int]:
        """Memory that is a process's own, shared libraries and files not counted, of the API and engine processes."""
        engine = max(self.process.children(), key=lambda child: int(child.memory_info().rss))
        return {
            name: int(process.memory_full_info().uss) for name, process in (("api", self.process), ("engine", engine))
        }


@contextmanager
def own_server(options: Sequence[str], log: Path) -> Iterator[OwnServer]:
    """``hotswap serve`` with ``options``, ready; its output goes to ``log``.

    Raises RuntimeError when it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hotswap", "serve", "--port", str(port), *options]
    with log.open("wb") as out, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(client, process, log)
            yield OwnServer(client, psutil.Process(process.pid))
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace').strip()[-500:]}")
