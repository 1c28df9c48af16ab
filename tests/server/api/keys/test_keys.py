"""The life of keys, what their scopes allow, and that no secret is written anywhere."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from server.catalog.keys import KEY_PATTERN, without_keys
from server.logs import JsonFormatter
from tests.server.api.keys.calls import ROOT, call, completion, create
from tests.server.api.support import BASE, error_of
from tests.server.api.test_auth import ROUTES
from tests.server.live import Live, wait_until

# ---- the life of a key ----


def test_a_key_is_shown_once(keyed: Live) -> None:
    response = call(keyed, ROOT, "POST", "/v1/keys", json={"name": " mine ", "expires": "2099-01-01T00:00:00Z"})
    assert response.headers["cache-control"] == "no-store"
    made = response.json()
    secret = made.pop("key")
    assert KEY_PATTERN.fullmatch(secret)
    assert made["hint"] == f"hs-...{secret[-4:]}"
    assert (made["name"], made["scopes"], made["adapters"], made["base"]) == ("mine", ["inference"], None, True)
    assert (made["state"], made["expires"], made["last_used"], made["revoked"]) == ("active", 4070908800, None, None)
    assert set(made["limits"].values()) == {None}
    assert call(keyed, ROOT, "GET", f"/v1/keys/{made['id']}").json() == made
    listed = call(keyed, ROOT, "GET", "/v1/keys")
    assert made in listed.json()["data"]
    assert secret not in listed.text


def test_changes_hold_from_the_next_request_on(keyed: Live) -> None:
    made = create(keyed, adapters=["team-a-*"], limits={"requests_per_minute": 7, "max_queue": 0})
    id, key = made["id"], made["key"]
    assert completion(keyed, key, model="team-a-x").status_code == 200
    assert completion(keyed, key, model="team-b-x").status_code == 404
    changed = call(keyed, ROOT, "PATCH", f"/v1/keys/{id}", json={"adapters": ["team-b-x"], "base": False, "name": "b"})
    assert changed.json()["adapters"] == ["team-b-x"]
    assert changed.json()["limits"]["requests_per_minute"] == 7, "what is not given stays"
    assert completion(keyed, key, model="team-a-x").status_code == 404
    assert completion(keyed, key, model="team-b-x").status_code == 200
    assert completion(keyed, key).status_code == 404, "the base"
    changed = call(keyed, ROOT, "PATCH", f"/v1/keys/{id}", json={"adapters": None, "limits": {"max_queue": None}})
    assert changed.json()["limits"] == {
        "requests_per_minute": 7, "tokens_per_minute": None, "max_concurrency": None, "max_queue": None,
    }  # fmt: skip
    assert completion(keyed, key, model="team-a-x").status_code == 200
    assert call(keyed, ROOT, "GET", f"/v1/keys/{id}").json()["last_used"] >= made["created"]


def test_revoking(keyed: Live) -> None:
    made = create(keyed)
    path = f"/v1/keys/{made['id']}"
    first = call(keyed, ROOT, "DELETE", path).json()
    assert (first["state"], first["revoked"] >= made["created"]) == ("revoked", True)
    assert error_of(completion(keyed, made["key"]), 401)["message"].startswith(f"the API key {made['id']} was revoked")
    assert call(keyed, ROOT, "DELETE", path).json() == first, "again: nothing"
    for method, where, body in (("PATCH", path, {"name": "x"}), ("POST", f"{path}/rotate", {})):
        error = error_of(call(keyed, ROOT, method, where, json=body), 409)
        assert error["code"] == "key_not_active"
    assert call(keyed, ROOT, "GET", "/v1/keys", params={"state": "revoked"}).json()["data"][-1]["id"] == made["id"]
    assert call(keyed, ROOT, "DELETE", path, params={"forget": True}).json()["deleted"] is True
    assert error_of(call(keyed, ROOT, "GET", path), 404)["code"] == "key_not_found"
    assert error_of(completion(keyed, made["key"]), 401)["message"].startswith("the API key is missing or wrong")


def test_an_active_key_is_not_forgotten(keyed: Live) -> None:
    made = create(keyed)
    refused = call(keyed, ROOT, "DELETE", f"/v1/keys/{made['id']}", params={"forget": True})
    assert error_of(refused, 409)["code"] == "key_active"
    assert completion(keyed, made["key"]).status_code == 200


def test_rotating(keyed: Live) -> None:
    made = create(keyed, adapters=["team-a-x"])
    path = f"/v1/keys/{made['id']}/rotate"
    graced = call(keyed, ROOT, "POST", path, json={"grace_seconds": 3600}).json()
    assert graced["id"] == made["id"]
    assert graced["old_secret_until"] - graced["rotated"] == 3600
    assert {completion(keyed, key, model="team-a-x").status_code for key in (made["key"], graced["key"])} == {200}
    assert completion(keyed, graced["key"], model="team-b-x").status_code == 404, "it is for what it was for"
    at_once = call(keyed, ROOT, "POST", path).json()
    assert at_once["old_secret_until"] is None
    statuses = [completion(keyed, key).status_code for key in (made["key"], graced["key"], at_once["key"])]
    assert statuses == [401, 401, 200]


def test_a_key_expires_by_itself(keyed: Live) -> None:
    made = create(keyed, expires=time.time() + 0.4)
    assert completion(keyed, made["key"]).status_code == 200
    wait_until(lambda: completion(keyed, made["key"]).status_code == 401, "the key to expire")
    assert "has expired" in completion(keyed, made["key"]).text
    assert call(keyed, ROOT, "GET", f"/v1/keys/{made['id']}").json()["state"] == "expired"
    prolonged = call(keyed, ROOT, "PATCH", f"/v1/keys/{made['id']}", json={"expires": None})
    assert prolonged.json()["state"] == "active"
    assert completion(keyed, made["key"]).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": 5}, "name"),
        ({"name": "n", "scope": "admin"}, "scope"),
        ({"name": "n", "adapter": ["x"]}, "adapter"),
        ({"name": "n", "scopes": []}, "scopes"),
        ({"name": "n", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "n", "scopes": "admin"}, "scopes"),
        ({"name": "n", "adapters": "team-a-*"}, "adapters"),
        ({"name": "n", "adapters": ["a b"]}, "adapters"),
        ({"name": "n", "adapters": ["*a*a*"]}, "adapters"),
        ({"name": "n", "base": "no"}, "base"),
        ({"name": "n", "limits": {"rpm": 3}}, "limits.rpm"),
        ({"name": "n", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
        ({"name": "n", "limits": {"tokens_per_minute": "many"}}, "limits.tokens_per_minute"),
        ({"name": "n", "expires": 5}, "expires"),
        ({"name": "n", "expires": "tomorrow"}, "expires"),
        ({"name": "n", "expires": True}, "expires"),
        ({"name": "n", "expires": 1e300}, "expires"),
    ],
)
def test_wrong_bodies_say_which_field(keyed: Live, body: dict[str, Any], param: str) -> None:
    error = error_of(call(keyed, ROOT, "POST", "/v1/keys", json=body))
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("body", [{}, {"name": None}, {"scopes": None}, {"base": None}, {"rotated": 5}, {"expires": 5}])
def test_wrong_changes(keyed: Live, body: dict[str, Any]) -> None:
    made = create(keyed)
    error_of(call(keyed, ROOT, "PATCH", f"/v1/keys/{made['id']}", json=body))
    assert error_of(call(keyed, ROOT, "PATCH", "/v1/keys/key_none", json={"name": "n"}), 404)["code"] == "key_not_found"


@pytest.mark.parametrize("grace", [-1, 1e9, "a day"])
def test_wrong_graces(keyed: Live, grace: object) -> None:
    made = create(keyed)
    error_of(call(keyed, ROOT, "POST", f"/v1/keys/{made['id']}/rotate", json={"grace_seconds": grace}))
    assert completion(keyed, made["key"]).status_code == 200


# ---- scopes ----

READS = {
    ("GET", "/v1/adapters"),
    ("GET", "/v1/adapters/x"),
    ("GET", "/v1/adapters/x/versions/{version}"),
    ("GET", "/v1/events"),
}
MODELS = {("GET", "/v1/models"), ("GET", f"/v1/models/{BASE}")}
METRICS = {("GET", "/metrics"), ("GET", "/load")}
OPEN = {(method, path) for method, path, scope in ROUTES if scope == "open"}
INFERS = {(method, path) for method, path, scope in ROUTES if scope == "inference"} - METRICS
MAY = {
    "inference": INFERS | OPEN,
    "read-only": READS | MODELS | METRICS | OPEN,
    "admin": {(method, path) for method, path, _ in ROUTES},
}


@pytest.mark.parametrize("scopes", [["inference"], ["read-only"], ["admin"], ["inference", "read-only"]])
def test_each_scope_gets_where_it_may_and_nowhere_else(keyed: Live, scopes: list[str]) -> None:
    key = create(keyed, scopes=scopes)["key"]
    allowed = set().union(*(MAY[scope] for scope in scopes))
    for method, path, _ in ROUTES:
        response = call(keyed, key, method, path)
        assert (response.status_code in (401, 403)) == ((method, path) not in allowed), (method, path)
        if (method, path) not in allowed and not path.startswith("/v1/messages"):  # whose errors are Anthropic's
            assert error_of(response, 403)["code"] == "insufficient_permissions"


def test_a_route_that_states_nothing_is_no_route() -> None:
    from fastapi import APIRouter

    from server.api.auth import check_stated

    router = APIRouter()

    @router.get("/v1/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(AssertionError, match="/v1/forgotten does not state"):
        check_stated(router.routes)


def test_flags_go_on_working_beside_keys(keyed: Live) -> None:
    assert completion(keyed, ROOT, model="team-b-x").status_code == 200
    assert call(keyed, ROOT, "GET", "/metrics").status_code == 200
    assert completion(keyed, "wrong").status_code == 401, "there is a key for inference by now"


# ---- nowhere in the clear ----


def test_no_secret_is_written_anywhere(keyed: Live, data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = create(keyed, scopes=["admin"])
    rotated = call(keyed, made["key"], "POST", f"/v1/keys/{made['id']}/rotate", json={"grace_seconds": 60}).json()
    secrets = [made["key"], rotated["key"]]
    for secret in secrets:  # where people put keys by mistake
        call(keyed, secret, "GET", f"/v1/keys/{secret}")
        call(keyed, secret, "GET", f"/nowhere/{secret}", params={"key": secret})
        call(keyed, secret, "PUT", f"/v1/adapters/{secret}", files={"f": b"junk"})
        call(keyed, secret, "POST", "/v1/keys", json={"name": secret})
        call(keyed, None, "PUT", f"/v1/adapters/{secret}")
        completion(keyed, secret, model=secret)
    told = call(keyed, ROOT, "GET", "/v1/events", params={"limit": 1000}).text
    formatter = JsonFormatter(without_keys)
    lines = "\n".join(map(formatter.format, caplog.records))
    stored = b"".join(path.read_bytes() for path in data_dir.iterdir() if path.is_file())
    assert made["id"].encode() in stored
    for secret in secrets:
        assert secret not in told
        assert secret not in lines
        assert secret.encode() not in stored
        assert secret[3:].encode() not in stored
