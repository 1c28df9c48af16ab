"""A Prometheus of our own that scrapes one server."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server.catalog.databases import free_port
from tests.server.live import wait_until

SCRAPE = "500ms"


@dataclass(frozen=True)
class Prometheus:
    """A running one. Times are in Unix seconds."""

    http: httpx.Client
    started: float

    def has_data(self, expr: str) -> bool:
        """Whether an expression had a finite value at any moment since the start. Raises where it is wrong."""
        params = {"query": expr, "start": self.started, "end": time.time(), "step": 0.5}
        series = self._get("/api/v1/query_range", **params)["result"]
        values = (float(value) for one in series for _, value in one.get("values", ()))
        return any(math.isfinite(value) for value in values)

    def instant(self, expr: str) -> list[dict[str, Any]]:
        """What an expression gives now: dicts with ``metric`` and ``value``."""
        found: list[dict[str, Any]] = self._get("/api/v1/query", query=expr)["result"]
        return found

    def label_values(self, label: str, selector: str) -> list[str]:
        """The values of a label among the series that a selector finds."""
        values: list[str] = self._get(f"/api/v1/label/{label}/values", **{"match[]": selector})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with how their last evaluation went."""
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **params: Any) -> Any:
        response = self.http.get(path, params=params)
        answer = response.json()
        assert answer["status"] == "success", (params, answer)
        return answer["data"]


@contextmanager
def scraping(program: Path, folder: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """One that scrapes ``target`` (host:port) as the job hotswap, and evaluates ``rules`` every second."""
    config = {
        "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "hotswap", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = [
        str(program), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False, timeout=30.0) as http:
            wait_until(lambda: _is_ready(process, http, folder / "log"), "Prometheus to start")
            yield Prometheus(http, time.time())
    finally:
        process.kill()
        process.wait()


def _is_ready(process: subprocess.Popen[bytes], http: httpx.Client, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        time.sleep(0.05)
        return False
