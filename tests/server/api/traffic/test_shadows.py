"""Copies of requests to shadows, over a real socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.server.api.support import BASE, archive
from tests.server.api.traffic.calls import BODY, ask, patch, settled, states, traffic, url
from tests.server.live import Live, live_server, slow_steps


def test_a_shadow_that_differs(live: Live, admin: httpx.Client, name: str, texts: dict[int, str]) -> None:
    patch(admin, name, shadow={"version": 2, "weight": 1.0})
    assert states(admin, name) == {1: "live", 2: "shadow"}
    with live.http() as http:
        for number in range(1, 4):
            assert ask(http, name) == (1, texts[1])
            settled(live, admin, name, number)
    found = traffic(admin, name)["shadow"]
    common = next(i for i in range(8) if texts[1][i] != texts[2][i])
    assert (found["copies"], found["compared"], found["exact"]) == (3, 3, 0)
    assert 0 <= found["agreement"] < 1
    assert found["agreement"] <= (common + 1) / 8
    assert found["latency_ratio"] > 0
    seen = traffic(admin, name)["live"]
    assert seen["requests"] == 3
    metrics = httpx.get(f"{live.url}/metrics").text
    labels = f'adapter="{name}",model="{BASE}"'
    assert (
        f'hotswap_shadow_requests_total{{adapter="{name}",model="{BASE}",outcome="answered",version="2"}} 3' in metrics
    )
    assert f'hotswap_shadow_agreement_ratio_count{{{labels},version="2"}} 3' in metrics
    assert f'hotswap_shadow_latency_ratio_count{{{labels},version="2"}} 3' in metrics
    requests = f'hotswap_requests_total{{adapter="{name}",finish_reason="length",model="{BASE}",version="2"}}'
    assert f"{requests} 1" not in metrics, "copies are no requests of clients"


def test_an_equal_shadow_agrees(
    live: Live, admin: httpx.Client, name: str, packages: dict[str, Path], tmp_path: Path
) -> None:
    """Twice one factor and half the other: a version that answers alike, chosen, drawn, several at once, stopped."""
    from safetensors.torch import load_file, save_file

    twin = tmp_path / "twin"
    twin.mkdir()
    for file in packages["lora"].iterdir():
        if file.is_file():
            (twin / file.name).write_bytes(file.read_bytes())
    weights = load_file(twin / "adapter_model.safetensors")
    other = {name: tensor * (2.0 if "lora_A" in name else 0.5) for name, tensor in weights.items()}
    save_file(other, twin / "adapter_model.safetensors", metadata={"format": "pt"})
    made = admin.put(url(name), params={"activate": False}, files={"f": archive(twin, tmp_path)})
    assert (made.status_code, made.json()["version"]) == (201, 3), made.text
    patch(admin, name, shadow={"version": 3, "weight": 1.0})
    asked: tuple[dict[str, Any], ...] = (
        {"temperature": 1.0, "seed": 7, "n": 2},
        {"prompt": ["who?", "what?"], "logprobs": 2, "echo": True},
        {"ignore_eos": False, "max_tokens": 40},
        {"ignore_eos": False, "structured_outputs": {"choice": ["yes", "no"]}},
    )
    with live.http() as http:
        text = ask(http, name)[1]
        for number, fields in enumerate((*asked, {"stop": text[3:5], "max_tokens": 30}), 1):
            settled(live, admin, name, number)
            ask(http, name, **fields)
    found = settled(live, admin, name, 6)
    assert (found["copies"], found["compared"], found["exact"], found["agreement"]) == (6, 6, 1.0, 1.0)


def test_drawn_answers_without_a_seed_say_nothing_of_tokens(live: Live, admin: httpx.Client, name: str) -> None:
    patch(admin, name, shadow={"version": 2, "weight": 1.0})
    with live.http() as http:
        ask(http, name, temperature=1.0)
    found = settled(live, admin, name, 1)
    assert (found["copies"], found["compared"], found["agreement"], found["exact"]) == (1, 0, None, None)
    assert found["latency_ratio"] > 0


def test_only_what_the_live_version_answers_by_its_name_is_copied(live: Live, admin: httpx.Client, name: str) -> None:
    patch(admin, name, canary={"version": 2, "weight": 1.0}, shadow={"version": 2, "weight": 1.0})
    with live.http() as http:
        ask(http, name)
        ask(http, f"{name}@1")
    patch(admin, name, canary={"version": 2, "weight": 0.0})
    with live.http() as http:
        ask(http, name)
    assert settled(live, admin, name, 1)["copies"] == 1


def test_copies_take_nothing_from_clients(base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    """With all seats taken copies are dropped and counted, and one that runs gives its seat to a client."""
    steady: dict[str, Any] = {**BODY, "speculation": False}
    with (
        live_server(
            base, tmp_path / "data", adapters=(("a", str(packages["lora"])),),
            engine={"max_num_seqs": 2}, max_waiting_requests=0,
        ) as tight,
        tight.http() as admin,
        ThreadPoolExecutor(4) as pool,
    ):  # fmt: skip
        admin.put(url("a"), params={"activate": False}, files={"f": archive(packages["lora-2"], tmp_path)})
        patch(admin, "a", shadow={"version": 2, "weight": 1.0})
        with tight.http() as http:
            with slow_steps():
                busy = pool.submit(tight.post, "/v1/completions", {**steady, "model": BASE, "max_tokens": 1900})
                tight.wait(lambda: tight.stats.num_running == 1, "one to run")
                assert ask(http, "a", max_tokens=150, speculation=False)[0] == 1
                tight.wait(lambda: tight.stats.num_running == 2, "its copy to run beside")
                assert ask(http, "a")[0] == 1, "there is a place for a client"
                found = settled(tight, admin, "a", 2)
                assert (found["dropped"], found["copies"]) == (1, 1), "the copy gave way; the next found a seat"
            assert busy.result(60).status_code == 200
            ask(http, "a", n=2)
            assert settled(tight, admin, "a", 3)["dropped"] == 2, "more than copies may take"
        tight.wait_idle()
