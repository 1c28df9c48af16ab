"""Canaries over a real socket, with real adapters."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.support import BASE, answer, archive, error_of
from tests.server.api.traffic.calls import BODY, ask, ask_all, look, patch, states, traffic, url
from tests.server.live import Live, live_server, slow_steps


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
    long = {**BODY, "max_tokens": 400, "model": name, "stream": True, "speculation": False}
    alone = http_text(live, {**long, "stream": False, "model": f"{name}@2"})
    patch(admin, name, canary={"version": 2, "weight": 1.0})
    with live.http() as http, ExitStack() as stack:
        with slow_steps():
            stream = stack.enter_context(http.stream("POST", "/v1/completions", json=long))
            assert stream.headers["x-hotswap-adapter"] == f"{name}@2"
            lines = stream.iter_lines()
            first = next(lines)
            promoted = admin.post(url(name, "promote"), json={"expected_live": 1})
            assert promoted.status_code == 200, promoted.text
            change = promoted.json()
            assert (change["version"], change["replaced"], change["changed"]) == (2, 1, True)
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
