from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.support import archive, error_of
from tests.server.live import Live, live_server

ROOT = "root-of-all"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told")


@pytest.fixture(scope="module")
def live(base: Path, data_dir: Path) -> Iterator[Live]:
    with live_server(base, data_dir, admin_key=ROOT) as made:
        yield made


@pytest.fixture(scope="module")
def root(live: Live) -> Iterator[httpx.Client]:
    with live.http(Authorization=f"Bearer {ROOT}") as http:
        yield http


def told(http: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    response = http.get("/v1/events", params={"limit": 1000, **query})
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    assert [event["time"] for event in data] == sorted((event["time"] for event in data), reverse=True)
    return data


def key(http: httpx.Client, **body: Any) -> dict[str, Any]:
    made: dict[str, Any] = http.post("/v1/keys", json={"name": "n", **body}).json()
    return made


def test_changes_of_adapters_say_who_made_them(
    live: Live, root: httpx.Client, packages: dict[str, Path], tmp_path: Path
) -> None:
    operator = key(root, scopes=["admin"])
    files = {"f": archive(packages["lora"], tmp_path)}
    with live.http(Authorization=f"Bearer {operator['key']}") as http:
        began = time.time()
        http.put("/v1/adapters/told", files=files, headers={"x-request-id": "first"})
        http.put("/v1/adapters/told", files={"f": archive(packages["lora-2"], tmp_path)})
        http.post("/v1/adapters/told/rollback")
    root.patch("/v1/adapters/told", json={"version": 2})
    root.patch("/v1/adapters/told", json={"version": 9}, headers={"x-request-id": "last"})
    root.put("/v1/adapters/told", files={"f": b"junk"})
    root.delete("/v1/adapters/told")
    events = told(root, name="told")[::-1]
    assert [(event["action"], event["version"], event["outcome"]) for event in events] == [
        ("upload", 1, "done"),
        ("upload", 2, "done"),
        ("rollback", 1, "done"),
        ("activate", 2, "done"),
        ("activate", 9, "refused"),
        ("upload", None, "refused"),
        ("remove", None, "done"),
    ]
    assert [event["actor"] for event in events] == [operator["id"]] * 3 + ["flag"] * 4
    assert events[0]["request_id"] == "first"
    assert events[0]["detail"]["digest"]
    assert began - 1 < events[0]["time"] < time.time() + 1
    assert {event["address"] for event in events} == {"127.0.0.1"}
    assert len({event["base"] for event in events}) == 1
    assert events[4]["request_id"] == "last"
    assert events[4]["detail"]["code"] == "model_not_found"
    assert "archive" in events[5]["detail"]["reason"]


def test_changes_of_keys_say_what_changed(root: httpx.Client) -> None:
    made = key(root, adapters=["a"])
    path = f"/v1/keys/{made['id']}"
    root.patch(path, json={"adapters": ["a", "b"], "limits": {"max_queue": 3}})
    root.patch(path, json={"adapters": ["a", "b"]})  # which is no change
    root.post(f"{path}/rotate", json={"grace_seconds": 60})
    root.patch(path, json={"expires": 5})
    root.delete(path)
    root.delete(path)
    root.delete(path, params={"forget": True})
    events = told(root, name=made["id"])[::-1]
    actions = ["create", "update", "rotate", "update", "revoke", "forget"]
    assert [event["action"] for event in events] == [f"key.{action}" for action in actions]
    assert [event["outcome"] for event in events] == ["done", "done", "done", "refused", "done", "done"]
    assert events[0]["detail"]["adapters"] == ["a"]
    assert events[1]["detail"]["adapters"] == {"from": ["a"], "to": ["a", "b"]}
    assert events[1]["detail"]["limits"]["to"] == {"max_queue": 3}
    assert events[2]["detail"]["old_secret_until"] > time.time() + 50


def test_who_is_kept_out_is_told_once_a_minute_and_address(live: Live, root: httpx.Client) -> None:
    infers = key(root)
    for attempt in range(5):
        with live.http(Authorization=f"Bearer guess-{attempt}") as http:
            assert http.get("/v1/adapters").status_code == 401
    for _ in range(3):
        with live.http(Authorization=f"Bearer {infers['key']}") as http:
            assert http.get("/v1/adapters").status_code == 403
    refused = told(root, action="access", actor="anonymous")
    assert len(refused) == 1
    assert refused[0]["detail"]["code"] == "invalid_api_key"
    assert refused[0]["outcome"] == "refused"
    assert "guess" not in str(refused)
    forbidden = told(root, actor=infers["id"])
    assert [event["detail"]["code"] for event in forbidden] == ["insufficient_permissions"]
    assert forbidden[0]["detail"]["request"] == "GET /v1/adapters"
    left_out = live.on_loop(lambda: live.context.trail._repetitions.left_out(time.monotonic() + 60))
    assert dict(left_out)[("anonymous", "127.0.0.1", "access", "invalid_api_key")] == 4


def test_pages(root: httpx.Client) -> None:
    ids = [key(root, name=f"page {i}")["id"] for i in range(7)]
    found: list[str] = []
    cursor, pages = None, 0
    while True:
        query: dict[str, str | int] = {"action": "key.create", "limit": 3, **({"cursor": cursor} if cursor else {})}
        page = root.get("/v1/events", params=query).json()
        found += [event["name"] for event in page["data"]]
        pages += 1
        if (cursor := page["next"]) is None:
            break
        if pages == 1:
            ids.append(key(root, name="meanwhile")["id"])  # newer ones do not shift the pages
    assert found[:7] == ids[6::-1]
    assert len(found) == len(set(found))
    assert ids[7] not in found


def test_filters(root: httpx.Client) -> None:
    made = key(root)
    created = told(root, name=made["id"])[0]
    assert told(root, name=made["id"], outcome="refused") == []
    assert told(root, name=made["id"], actor="nobody") == []
    assert told(root, name=made["id"], since=created["time"]) == [created]
    assert told(root, name=made["id"], until=created["time"]) == []
    assert told(root, name=made["id"], since="2020-01-01", until="2999-12-31T23:59:59+02:00") == [created]
    assert told(root, action="key.create", outcome="done", actor="flag")[0] == created


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "1e400"}, "until"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": f"1.5_{2**63}"}, "cursor"),
        ({"outcome": "fine"}, "outcome"),
        ({"actr": "flag"}, "actr"),
    ],
)
def test_wrong_queries(root: httpx.Client, query: dict[str, Any], param: str) -> None:
    error = error_of(root.get("/v1/events", params=query))
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_limited_readers_are_told_of_their_adapters_alone(
    live: Live, root: httpx.Client, packages: dict[str, Path], tmp_path: Path
) -> None:
    files = {"f": archive(packages["lora"], tmp_path)}
    for name in ("own-1", "own_1", "ownx1", "Own-1", "key_of"):
        assert root.put(f"/v1/adapters/{name}", files=files).status_code == 201
    for pattern, names in (("own-*", {"own-1"}), ("own_1", {"own_1"}), ("key_*", {"key_of"})):
        reader = key(root, scopes=["read-only"], adapters=[pattern])
        with live.http(Authorization=f"Bearer {reader['key']}") as http:
            assert {event["name"] for event in told(http)} == names
            assert told(http, name="ownx1") == []
            assert told(http, name=reader["id"]) == []
    for name in ("own-1", "own_1", "ownx1", "Own-1", "key_of"):
        root.delete(f"/v1/adapters/{name}")


def test_what_clients_send_can_be_stored(root: httpx.Client) -> None:
    """NUL, lone surrogates, endless names: no database takes all of them."""
    before = told(root, outcome="refused")
    root.put("/v1/adapters/%00a", files={"f": b"x"})
    root.put("/v1/adapters/%ff%fe", files={"f": b"x"})
    root.post("/v1/adapters", data={"name": "x" * 4000}, files={"f": b"x"})
    root.post("/v1/adapters", data={"name": "\x00\ud800".encode("utf-8", "surrogatepass")}, files={"f": b"x"})
    root.patch("/v1/keys/%00", json={"name": "n"})
    assert len(told(root, outcome="refused")) >= len(before) + 4


def test_old_events_are_forgotten(live: Live, root: httpx.Client, data_dir: Path) -> None:
    made = key(root)
    with sqlite3.connect(data_dir / "catalog.db") as database:
        database.execute("UPDATE events SET time = time - 91 * 86400 WHERE name = ?", [made["id"]])
    database.close()
    kept = len(told(root)) - 1
    import asyncio

    asyncio.run_coroutine_threadsafe(live.context.trail.expire(), live.loop).result(30)
    assert told(root, name=made["id"]) == []
    assert len(told(root)) == kept


def test_where_no_key_is_asked_for_it_is_this_machine(server: Live) -> None:
    with server.http() as http:
        http.patch("/v1/adapters/none-of-it", json={"version": 1})
        assert told(http, name="none-of-it")[0]["actor"] == "local"
    with server.http(Origin="https://evil.example") as http:
        assert http.get("/v1/adapters").status_code == 403
    with server.http() as http:
        assert told(http, action="access")[0]["detail"]["code"] == "origin_not_allowed"
