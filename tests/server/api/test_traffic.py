"""Canaries and shadows over a real socket, with real adapters."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.support import BASE, answer, archive, error_of, wanted
from tests.server.live import Live, live_server

BODY: dict[str, Any] = {"prompt": "who?", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all; each test has a name of its own."""
    with live_server(base, tmp_path_factory.mktemp("traffic")) as made:
        yield made
        made.wait_idle()


@pytest.fixture(scope="module")
def texts(base: Path, packages: dict[str, Path]) -> dict[int, str]:
    """What versions 1 and 2 answer."""
    return {1: wanted(base, packages["lora"]), 2: wanted(base, packages["lora-2"])}


@pytest.fixture
def admin(live: Live) -> Iterator[httpx.Client]:
    with live.http() as http:
        yield http


@pytest.fixture
def name(live: Live, packages: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name whose version 1 is live and whose version 2 is a candidate."""
    made = request.node.name[:100].replace("[", "-").replace("]", "")
    with live.http() as http:
        for package, activate in (("lora", True), ("lora-2", False)):
            response = http.put(
                url(made), params={"activate": activate}, files={"f": archive(packages[package], tmp_path)}
            )
            assert response.status_code == 201, response.text
        yield made
        http.delete(url(made))
    live.wait(lambda: not live.on_loop(lambda: live.context.shadows.sequences), "copies to end")


def url(name: str, verb: str = "") -> str:
    return f"/v1/adapters/{name}{verb and '/'}{verb}"


def patch(admin: httpx.Client, name: str, **fields: Any) -> dict[str, Any]:
    response = admin.patch(url(name), json=fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def traffic(admin: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = admin.get(url(name)).json()["traffic"]
    return found


def states(admin: httpx.Client, name: str) -> dict[int, str]:
    return {version["version"]: version["state"] for version in admin.get(url(name)).json()["versions"]}


def ask(http: httpx.Client, name: str, user: Any = None, **fields: Any) -> tuple[int, str]:
    """The version that answered, and its text."""
    body = {**BODY, "model": name, **fields} | ({"user": user} if user else {})
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    said = response.headers["x-hotswap-adapter"]
    assert response.json()["system_fingerprint"].endswith(f":{said}")
    return int(said.partition("@")[2]), response.json()["choices"][0]["text"]


def ask_all(live: Live, name: str, users: list[str | None]) -> list[int]:
    """Who answered each."""
    with live.http() as http, ThreadPoolExecutor(8) as pool:
        return [version for version, _ in pool.map(lambda user: ask(http, name, user, max_tokens=1), users)]


def look(live: Live) -> None:
    """Judge now."""
    asyncio.run_coroutine_threadsafe(live.context.watch.look(), live.loop).result(30)


def test_a_share_of_the_requests_goes_to_the_canary_and_each_says_which(
    live: Live, admin: httpx.Client, name: str, texts: dict[int, str]
) -> None:
    body = patch(admin, name, canary={"version": 2, "weight": 0.3})
    assert body["changed"]
    assert (body["version"], body["state"]) == (1, "live")
    assert body["traffic"]["live"]["weight"] == pytest.approx(0.7)
    assert [(c["version"], c["weight"]) for c in body["traffic"]["canaries"]] == [(2, 0.3)]
    assert states(admin, name) == {1: "live", 2: "canary"}
    assert texts[1] != texts[2]
    with live.http() as http:
        answers = [ask(http, name) for _ in range(120)]
    assert dict(answers) == texts
    count = Counter(version for version, _ in answers)
    assert abs(count[2] - 36) < 5 * math.sqrt(0.3 * 0.7 * 120)
    seen = traffic(admin, name)
    assert (seen["live"]["requests"], seen["canaries"][0]["requests"]) == (count[1], count[2])
    assert seen["canaries"][0]["errors"] == 0
    assert seen["canaries"][0]["window"]["ttft_p50"] > 0
    assert answer(live, f"{name}@2") == texts[2]
    metrics = httpx.get(f"{live.url}/metrics").text
    for version in (1, 2):
        labels = f'adapter="{name}",finish_reason="length",model="{BASE}",version="{version}"'
        assert f"hotswap_requests_total{{{labels}}} {count[version] + (version == 2):.1f}" in metrics
    assert f'hotswap_traffic_share{{adapter="{name}",model="{BASE}",role="canary",version="2"}} 0.3' in metrics


def test_a_user_keeps_a_version_and_growing_moves_users_one_way(live: Live, admin: httpx.Client, name: str) -> None:
    users: list[str | None] = [f"user-{i}" for i in range(40)]
    before = [1] * len(users)
    for weight in (0.2, 0.6, 1.0):
        patch(admin, name, canary={"version": 2, "weight": weight})
        now = ask_all(live, name, users)
        assert now == ask_all(live, name, users), "sticky"
        assert all(a <= b for a, b in zip(before, now, strict=True)), "only from old to new"
        before = now
    assert set(before) == {2}


def test_what_requests_stick_to(live: Live, admin: httpx.Client, name: str) -> None:
    patch(admin, name, canary={"version": 2, "weight": 0.5})
    salt = live.context.registry.traffic(name).salt
    assert salt
    drawn = {who: live.context.registry.find(name, draw(who)) for who in (f"s{i}" for i in range(64))}
    one = next(who for who, key in drawn.items() if key and key.version == 1)
    other = next(who for who, key in drawn.items() if key and key.version == 2)
    with live.http() as http, live.http(**{"x-session-id": other}) as session:
        for _ in range(4):
            assert ask(http, name, one)[0] == 1
            assert ask(http, name, prompt_cache_key=other)[0] == 2
            assert ask(http, name, user=one, prompt_cache_key=other)[0] == 1, "the user counts first"
            assert ask(session, name)[0] == 2
            assert ask(session, name, one)[0] == 1, "what the body says counts first"
            assert ask(http, name, safety_identifier=other)[0] == 2
        assert ask(http, f"{BASE}:{name}", other)[0] == 2
        for odd in (None, "", 1.5, ["x"], {"a": 1}, True):
            assert ask(http, name, user=odd, prompt_cache_key=other)[0] == 2, "what is no text is passed over"
        tokens = http.post("/tokenize", json={"model": name, "prompt": "x", "user": other})
        assert tokens.status_code == 200
        chat = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "user": other}
        assert http.post("/v1/chat/completions", json=chat).headers["x-hotswap-adapter"] == f"{name}@2"


def draw(who: str | None) -> Any:
    from server.catalog.registry import Draw

    return Draw(who)


def test_a_stream_keeps_its_version_through_promotion_and_rollback(live: Live, admin: httpx.Client, name: str) -> None:
    long = {**BODY, "max_tokens": 800, "model": name, "stream": True, "speculation": False}
    alone = http_text(live, {**long, "stream": False, "model": f"{name}@2"})
    patch(admin, name, canary={"version": 2, "weight": 1.0})
    with live.http() as http, http.stream("POST", "/v1/completions", json=long) as stream:
        assert stream.headers["x-hotswap-adapter"] == f"{name}@2"
        lines = stream.iter_lines()
        first = next(lines)
        promoted = admin.post(url(name, "promote"), json={"expected_live": 1})
        assert promoted.status_code == 200, promoted.text
        assert (promoted.json()["version"], promoted.json()["replaced"], promoted.json()["changed"]) == (2, 1, True)
        back = admin.post(url(name, "rollback"))
        assert (back.json()["version"], back.json()["replaced"]) == (1, 2)
        assert states(admin, name) == {1: "live", 2: "draining"}
        rest = [first, *lines]
    chunks = [json.loads(line.removeprefix("data: ")) for line in rest if line and line != "data: [DONE]"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == alone
    found = traffic(admin, name)
    assert (found["canaries"], found["live"], found["ended"]["outcome"]) == ([], None, "promoted")


def http_text(live: Live, body: dict[str, Any]) -> str:
    response = live.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def test_promotion(live: Live, admin: httpx.Client, name: str, texts: dict[int, str]) -> None:
    nothing = error_of(admin.post(url(name, "promote")), 409)
    assert nothing["code"] == "no_canary"
    assert "PATCH" in nothing["message"]
    patch(admin, name, canary={"version": 2, "weight": 0.05}, shadow={"version": 2, "weight": 1})
    stale = error_of(admin.post(url(name, "promote"), json={"expected_live": 7}), 409)
    assert stale["code"] == "live_version_changed"
    assert error_of(admin.post(url(name, "promote"), json={"version": 9}), 404)
    assert admin.post(url(name, "promote"), json={"version": 2}).json()["changed"]
    repeated = admin.post(url(name, "promote"), json={"version": 2})
    assert (repeated.status_code, repeated.json()["changed"]) == (200, False)
    live.wait(lambda: states(admin, name) == {1: "stored", 2: "live"}, "the old version to leave")
    assert answer(live, name) == texts[2]
    assert admin.post(url(name, "rollback")).json()["version"] == 1
    assert answer(live, name) == texts[1]


@pytest.mark.parametrize("how", ["activate", "rollback", "upload"])
def test_a_change_of_the_live_version_ends_the_canary(
    live: Live, admin: httpx.Client, name: str, *, how: str, packages: dict[str, Path], tmp_path: Path
) -> None:
    third = admin.put(url(name), params={"activate": False}, files={"f": archive(packages["prefix"], tmp_path)}).json()
    assert third["version"] == 3
    if how == "rollback":
        admin.patch(url(name), json={"version": 3})
    patch(admin, name, canary={"version": 2, "weight": 0.5}, shadow={"version": 2, "weight": 0.5})
    match how:
        case "activate":
            done = admin.patch(url(name), json={"version": 3})
        case "rollback":
            done = admin.post(url(name, "rollback"))
        case _:
            done = admin.put(url(name), files={"f": archive(packages["prompt"], tmp_path)})
    assert done.is_success, done.text
    found = traffic(admin, name)
    assert (found["canaries"], found["shadow"]) == ([], None)
    assert (found["ended"]["version"], found["ended"]["outcome"]) == (2, "replaced")
    assert states(admin, name)[2] == "candidate", "it has never been live, and waits"
    with live.http() as http:
        assert len({ask(http, name)[0] for _ in range(8)}) == 1


def test_abort(live: Live, admin: httpx.Client, name: str) -> None:
    assert admin.post(url(name, "abort")).json()["changed"] is False
    error_of(admin.post("/v1/adapters/nobody/abort"), 404)
    error_of(admin.post(url(name, "abort"), json={"version": 9}), 404)
    patch(admin, name, canary={"version": 2, "weight": 1.0}, shadow={"version": 2, "weight": 1.0})
    stale = error_of(admin.post(url(name, "abort"), json={"expected_live": 7}), 409)
    assert stale["code"] == "live_version_changed"
    done = admin.post(url(name, "abort"), json={"reason": "looks odd", "expected_live": 1}).json()
    assert (done["ended"], done["changed"]) == ([2], True)
    assert done["traffic"]["ended"] | {"at": 0} == {
        "version": 2, "outcome": "aborted", "reason": "looks odd", "at": 0, "automatic": False
    }  # fmt: skip
    assert states(admin, name) == {1: "live", 2: "candidate"}
    assert set(ask_all(live, name, [None] * 8)) == {1}


def test_an_older_version_is_loaded_for_its_share_and_leaves_afterwards(
    live: Live, admin: httpx.Client, name: str, texts: dict[int, str]
) -> None:
    admin.patch(url(name), json={"version": 2})
    live.wait(lambda: states(admin, name) == {1: "stored", 2: "live"}, "version 1 to leave")
    patch(admin, name, canary={"version": 1, "weight": 1.0})
    assert states(admin, name) == {1: "canary", 2: "live"}
    assert answer(live, name) == texts[1]
    patch(admin, name, canary=None)
    assert answer(live, name) == texts[2]
    live.wait(lambda: states(admin, name) == {1: "stored", 2: "live"}, "version 1 to leave again")


def test_a_deleted_canary_falls_back(live: Live, admin: httpx.Client, name: str) -> None:
    patch(admin, name, canary={"version": 2, "weight": 1.0})
    assert admin.delete(f"{url(name)}/versions/2").status_code == 200
    assert set(ask_all(live, name, [None] * 4)) == {1}
    assert traffic(admin, name)["ended"]["outcome"] == "deleted"


def test_a_failed_canary_falls_back_and_is_reported(
    live: Live, admin: httpx.Client, name: str, texts: dict[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    patch(admin, name, canary={"version": 2, "weight": 1.0})
    key = live.context.registry.version(name, 2).key
    live.on_loop(lambda: live.context.lifecycle.residency.lost(key, "its files have changed"))
    assert ask_all(live, name, ["a", "b", None]) == [1, 1, 1]
    found = traffic(admin, name)["canaries"][0]
    assert (found["failure"], found["fallbacks"], found["weight"]) == ("its files have changed", 3, 1.0)
    look(live)
    look(live)
    told = [record.message for record in caplog.records if "cannot be served" in record.message]
    assert len(told) == 1
    metrics = httpx.get(f"{live.url}/metrics").text
    assert f'hotswap_canary_fallbacks_total{{adapter="{name}",model="{BASE}",version="2"}} 3.0' in metrics
    assert patch(admin, name, canary={"version": 2, "weight": 0.99})["changed"], "it is loaded again"
    assert traffic(admin, name)["canaries"][0]["failure"] is None
    patch(admin, name, canary={"version": 2, "weight": 1})
    assert answer(live, name) == texts[2]


def test_a_canary_that_cannot_be_loaded_any_more_falls_back(
    base: Path, packages: dict[str, Path], tmp_path: Path, texts: dict[int, str]
) -> None:
    """From its first request on, after a restart that loads nothing before it is asked for."""
    with live_server(base, tmp_path / "data", adapters=(("a", str(packages["lora"])),)) as first, first.http() as http:
        http.put(url("a"), params={"activate": False}, files={"f": archive(packages["lora-2"], tmp_path)})
        patch(http, "a", canary={"version": 2, "weight": 1.0})
        assert ask(http, "a") == (2, texts[2])
        path = first.context.registry.version("a", 2).path
    (path / "adapter_model.safetensors").unlink()
    with live_server(base, tmp_path / "data", load_adapters="lazy") as again, again.http() as http:
        assert [ask(http, "a"), ask(http, "a")] == [(1, texts[1]), (1, texts[1])]
        canary = traffic(http, "a")["canaries"][0]
        assert (canary["fallbacks"], canary["weight"]) == (2, 1.0)
        assert canary["failure"]
        error_of(again.post("/v1/completions", {**BODY, "model": "a@2"}), 503)


def test_what_cannot_be(live: Live, admin: httpx.Client, name: str) -> None:
    def refused(status: int = 400, **fields: Any) -> dict[str, Any]:
        return error_of(admin.patch(url(name), json=fields), status)

    canary = {"version": 2, "weight": 0.1}
    assert refused(409, canary={"version": 1, "weight": 0.1})["code"] == "version_is_live"
    assert "no version '7'" in refused(404, canary={"version": 7, "weight": 0.1})["message"]
    assert "one kind" in refused(canary=canary, version=2)["message"]
    assert refused(canary={"version": 2})["param"] == "canary.weight"
    assert refused(canary={"weight": 0.5})["param"] == "canary.version"
    assert refused(shadow={"weight": 0.5})["param"] == "shadow.version"
    for weight in (-0.1, 1.1, "5%", None):
        assert refused(canary={"version": 2, "weight": weight})["param"] == "canary.weight"
    assert "come to 1.2" in refused(canary=[{"version": 2, "weight": 0.6}, {"version": 3, "weight": 0.6}])["message"]
    assert "twice" in refused(canary=[canary, canary])["message"]
    misspelt = refused(canary={**canary, "rules": {"max_eror_rate": 0.1}})
    assert (misspelt["param"], "no field" in misspelt["message"]) == ("canary.rules.max_eror_rate", True)
    assert "METRIC" in refused(canary={**canary, "rules": {"gates": ["f1>better"]}})["message"]
    assert "shadow" in refused(canary={**canary, "rules": {"min_agreement": 0.9}})["message"]
    for steps in ([0.05], [0.5, 0.2], [0.1]):
        assert refused(canary={**canary, "steps": steps, "step_requests": 5})["param"] == "canary.steps"
    assert "step_seconds" in refused(canary={**canary, "steps": [0.5]})["message"]
    assert refused(409, canary=canary, expected_live=7)["code"] == "live_version_changed"
    error_of(admin.patch(url("nobody"), json={"canary": canary}), 404)
    assert traffic(admin, name) is None, "nothing has changed"
    assert patch(admin, name, canary=canary)["changed"]
    assert not patch(admin, name, canary=canary)["changed"], "said again"
    assert patch(admin, name, canary={"weight": 0.2})["traffic"]["canaries"][0]["version"] == 2


def test_a_name_without_a_live_version_has_no_canary(
    live: Live, admin: httpx.Client, packages: dict[str, Path], tmp_path: Path
) -> None:
    data = archive(packages["lora"], tmp_path)
    admin.put(url("unborn"), params={"activate": False}, files={"f": data})
    error = error_of(admin.patch(url("unborn"), json={"canary": {"version": 1, "weight": 0.1}}), 404)
    assert "not served yet" in error["message"]
    admin.delete(url("unborn"))


# ---- shadows ----


def settled(live: Live, admin: httpx.Client, name: str, copies: int) -> dict[str, Any]:
    """What is known of the shadow once so many copies were answered, dropped or failed."""

    def done() -> bool:
        found = traffic(admin, name)["shadow"]
        return bool(found["copies"] + found["dropped"] + found["failed"] == copies)

    live.wait(done, f"{copies} copies")
    shadow: dict[str, Any] = traffic(admin, name)["shadow"]
    return shadow


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
    )
    with live.http() as http:
        text = ask(http, name)[1]
        for number, fields in enumerate((*asked, {"stop": text[3:5], "max_tokens": 30}), 1):
            settled(live, admin, name, number)
            ask(http, name, **fields)
    found = settled(live, admin, name, 5)
    assert (found["copies"], found["compared"], found["exact"], found["agreement"]) == (5, 5, 1.0, 1.0)


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
    slow = {**BODY, "max_tokens": 1500, "speculation": False}
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
        busy = pool.submit(tight.post, "/v1/completions", {**slow, "model": BASE})
        tight.wait(lambda: tight.stats.num_running == 1, "one to run")
        with tight.http() as http:
            long = ask(http, "a", max_tokens=600, speculation=False)
            tight.wait(lambda: tight.stats.num_running == 2, "its copy to run beside")
            assert ask(http, "a")[0] == 1, "there is a place for a client"
            found = settled(tight, admin, "a", 2)
            assert (found["dropped"], found["copies"]) == (1, 1), "the copy gave way; the next found a seat"
            assert long[0] == 1
            assert busy.result(60).status_code == 200
            ask(http, "a", n=2)
            assert settled(tight, admin, "a", 3)["dropped"] == 2, "more than copies may take"
        tight.wait_idle()


# ---- rules ----


def feed(
    live: Live, name: str, version: int, count: int, *, ttft: float = 0.1, itl: float = 0.01, errors: int = 0
) -> None:
    """Let the figures have seen requests."""
    key, figures = live.context.registry.version(name, version).key, live.context.traffic.figures

    def tell() -> None:
        for _ in range(errors):
            figures.failed(key)
        for _ in range(count - errors):
            figures.served(key, ttft, itl)

    live.on_loop(tell)


@pytest.mark.parametrize(
    ("rules", "canary"),
    [
        ({"max_error_rate": 0.1}, {"errors": 3}),
        ({"max_error_rate_above_live": 0.1}, {"errors": 3}),
        ({"max_ttft_p50_ratio": 1.5}, {"ttft": 0.2}),
        ({"max_ttft_p95_ratio": 1.5}, {"ttft": 0.2}),
        ({"max_itl_p50_ratio": 1.5}, {"itl": 0.02}),
        ({"max_itl_p95_ratio": 1.5}, {"itl": 0.02}),
    ],
)
def test_each_rule_aborts(
    live: Live, admin: httpx.Client, name: str, *, rules: dict[str, float], canary: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    patch(admin, name, canary={"version": 2, "weight": 0.5, "rules": {**rules, "min_requests": 20}})
    feed(live, name, 1, 20)
    feed(live, name, 2, 19, **canary)
    look(live)
    (rule,) = rules
    found = traffic(admin, name)["canaries"]
    assert found[0]["verdicts"][0]["value"] is None, "too few to judge by"
    feed(live, name, 2, 1, ttft=canary.get("ttft", 0.1), itl=canary.get("itl", 0.01))
    caplog.set_level("INFO", "server.audit")
    look(live)
    found = traffic(admin, name)
    assert found["canaries"] == []
    assert (found["ended"]["outcome"], found["ended"]["automatic"]) == ("aborted", True)
    assert rule in found["ended"]["reason"]
    assert states(admin, name) == {1: "live", 2: "candidate"}
    told = [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]
    assert [(line["action"], line["version"], rule in line["reason"]) for line in told] == [("abort", 2, True)]
    assert any(record.levelname == "WARNING" and "aborted" in record.message for record in caplog.records)


def test_a_sound_canary_stays(live: Live, admin: httpx.Client, name: str) -> None:
    rules = {
        "max_error_rate": 0.1, "max_ttft_p95_ratio": 1.5, "max_itl_p95_ratio": 1.5, "min_requests": 20,
        "gates": ["f1>=live-0.1"],
    }  # fmt: skip
    patch(admin, name, canary={"version": 2, "weight": 0.5, "rules": rules})
    feed(live, name, 1, 50, errors=40)
    feed(live, name, 2, 50, errors=5)
    look(live)
    found = traffic(admin, name)["canaries"][0]
    assert [verdict["breached"] for verdict in found["verdicts"]] == [False] * 4
    assert found["rules"]["gates"] == ["f1>=live-0.1"]


def test_disagreement_aborts(live: Live, admin: httpx.Client, name: str) -> None:
    rules = {"min_agreement": 0.9, "min_exact": 0.9, "min_requests": 2}
    patch(admin, name, canary={"version": 2, "weight": 0.0, "rules": rules}, shadow={"version": 2, "weight": 1.0})
    assert "shadow" in error_of(admin.patch(url(name), json={"shadow": None}))["message"], "the rules need it"
    with live.http() as http:
        for number in (1, 2):
            ask(http, name)
            settled(live, admin, name, number)
            if number == 1:
                look(live)
                assert traffic(admin, name)["canaries"]
    look(live)
    found = traffic(admin, name)
    assert (found["canaries"], found["shadow"]) == ([], None)
    assert "min_agreement" in found["ended"]["reason"]


def test_an_evaluators_scores_abort(live: Live, admin: httpx.Client, name: str) -> None:
    def score(version: int | None, **scores: float) -> dict[str, Any]:
        response = admin.post(url(name, "scores"), json={"version": version, "scores": scores})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    score(1, f1=0.80)
    patch(admin, name, canary={"version": 2, "weight": 0.1, "rules": {"gates": ["f1>=live-0.01", "perplexity<=9"]}})
    look(live)
    assert traffic(admin, name)["canaries"]
    assert score(None, f1=0.79, perplexity=8.0)["scores"] == {"f1": 0.79, "perplexity": 8.0}
    look(live)
    assert traffic(admin, name)["canaries"], "both hold"
    assert score(2, perplexity=9.5)["scores"] == {"f1": 0.79, "perplexity": 9.5}
    look(live)
    assert "perplexity<=9 is 9.5" in traffic(admin, name)["ended"]["reason"]
    headers = {"content-type": "application/json"}
    for scores in (None, {}, {"f 1": 1}, {"f1": "?"}, {"f1": None}):
        wrong = json.dumps({"scores": scores})
        error_of(admin.post(url(name, "scores"), content=wrong, headers=headers))
    error_of(admin.post(url(name, "scores"), json={"version": 9, "scores": {"f1": 1}}), 404)
    error_of(admin.post(url(name, "scores"), json={"scores": {"f1": 1}}), 409)


def test_steps_lead_to_promotion_while_nothing_is_breached(live: Live, admin: httpx.Client, name: str) -> None:
    rules = {"max_error_rate": 0.1, "min_requests": 5}
    patch(admin, name, canary={"version": 2, "weight": 0.1, "rules": rules, "steps": [0.5, 1.0], "step_requests": 10})
    look(live)
    feed(live, name, 2, 9)
    look(live)
    assert traffic(admin, name)["canaries"][0]["weight"] == 0.1
    feed(live, name, 2, 1)
    look(live)
    found = traffic(admin, name)["canaries"][0]
    assert (found["weight"], found["steps"]) == (0.5, [1.0])
    look(live)
    feed(live, name, 2, 10)
    look(live)
    found = traffic(admin, name)
    assert (found["canaries"], found["ended"]["outcome"]) == ([], "promoted")
    assert states(admin, name)[2] == "live"


def test_the_watch_runs_by_itself(live: Live, admin: httpx.Client, name: str) -> None:
    patch(admin, name, canary={"version": 2, "weight": 0.5, "rules": {"max_error_rate": 0.1, "min_requests": 1}})
    feed(live, name, 2, 1, errors=1)
    begun = time.monotonic()
    live.wait(lambda: not traffic(admin, name)["canaries"], "the abort")
    assert time.monotonic() - begun < 10
