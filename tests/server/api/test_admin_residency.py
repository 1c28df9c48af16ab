"""Over HTTP: more adapters than there is room for, where each is, and what cold starts take."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server.api.support import STEADY, answer, error_of, events, wanted
from tests.server.catalog.spoil import flip_a_bit
from tests.server.live import Live, live_server

NAMES = ("lora", "prefix", "prompt", "lora-2")


def metric(live: Live, name: str) -> float:
    """The sum of one metric, labels and all as they are written."""
    with live.http() as http:
        text = http.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE))


def residency(live: Live) -> dict[str, str]:
    with live.http() as http:
        return {entry["name"]: entry["residency"] for entry in http.get("/v1/adapters").json()["data"]}


@pytest.mark.numeric
def test_all_are_served_with_room_for_two(base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    adapters = [(name, str(packages[name])) for name in NAMES]
    with live_server(base, tmp_path / "data", adapters=adapters, max_resident=2, threads=2) as live:
        assert residency(live) == {"lora": "store", "prefix": "store", "prompt": "device", "lora-2": "device"}
        for name in NAMES:
            assert answer(live, name) == wanted(base, packages[name]), name
            assert residency(live)[name] == "device"
            live.wait(lambda: live.stats.adapters_resident == 2, "two to be resident")
        assert metric(live, 'hotswap_adapter_evictions_total{reason="room"}') >= 4
        assert metric(live, "hotswap_adapter_cold_loads_total") >= 4
        assert metric(live, 'hotswap_adapters_resident{model="tiny",tier="device"}') == 2
        assert metric(live, 'hotswap_adapters_resident{model="tiny",tier="store"}') == 4
        assert metric(live, 'hotswap_adapter_bytes{model="tiny",tier="store"}') > 0
        for stage in ("queue", "read", "validate", "copy", "prefill"):
            assert metric(live, f'hotswap_adapter_cold_start_seconds_count{{stage="{stage}"}}') >= 4, stage
        with live.http() as http:
            body = http.get("/v1/adapters/lora").json()
        assert body["residency"] == body["versions"][0]["residency"] == residency(live)["lora"]


def test_many_at_once_for_all_are_answered(base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    adapters = [(name, str(packages[name])) for name in NAMES]
    with live_server(base, tmp_path / "data", adapters=adapters, max_resident=1) as live:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda name: answer(live, name), NAMES * 4))
        assert answers == answers[:4] * 4
        assert len(set(answers)) == 4
        streamed = events(live, "/v1/completions", {"model": "lora", "prompt": "who?", "max_tokens": 4, **STEADY})
        assert streamed[-1]["choices"][0]["finish_reason"] == "length"
        live.wait_idle()


def test_a_cold_adapter_that_cannot_be_loaded_says_why_and_harms_nobody(
    base: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    adapters = [(name, str(packages[name])) for name in ("lora", "prefix")]
    with live_server(base, tmp_path / "data", adapters=adapters, max_resident=1) as live:
        flip_a_bit(live.context.registry.live("lora").path)
        for stream in (False, True):
            body = {"model": "lora", "prompt": "who?", "stream": stream}
            error = error_of(live.post("/v1/completions", body), 503)
            assert error["code"] == "adapter_failed"
            assert "not those that were uploaded" in error["message"]
        assert len(answer(live, "prefix"))
        live.wait_idle()


def test_a_request_that_waits_for_room_ends_at_its_deadline(
    base: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    adapters = [(name, str(packages[name])) for name in ("lora", "prefix")]
    with live_server(base, tmp_path / "data", adapters=adapters, max_resident=1) as live:
        residencies, held = live.context.residency, live.on_loop(lambda: live.context.registry.lease("lora"))
        live.on_loop(lambda: residencies.want(held))
        live.wait(lambda: residencies.tier(held.key) == "device", "the adapter of a request that runs")
        late = live.post("/v1/completions", {"model": "prefix", "prompt": "who?", "timeout": 0.05})
        assert "waited for its adapter" in error_of(late, 408)["message"]
        live.on_loop(held.release)
        assert len(answer(live, "prefix"))
        live.wait_idle()
