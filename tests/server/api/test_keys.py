from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.keys import key_body
from server.catalog.database.database import sqlite_url
from server.catalog.keys import KEY_PATTERN, without_keys
from server.logs import JsonFormatter
from tests.server.api.support import BASE, archive, error_of
from tests.server.api.test_auth import ROUTES
from tests.server.live import Live, live_server, wait_until

ROOT = "root-of-all"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keyed")


@pytest.fixture(scope="module")
def keyed(base: Path, packages: dict[str, Path], data_dir: Path) -> Iterator[Live]:
    """A server with an admin key of a flag, and the adapters of two teams."""
    adapters = (("team-a-x", str(packages["lora"])), ("team-b-x", str(packages["prompt"])))
    with live_server(base, data_dir, adapters=adapters, admin_key=ROOT) as live:
        yield live


CLIENTS: list[httpx.Client] = []  # one for all calls: to make one takes longer than most calls


@pytest.fixture(scope="module", autouse=True)
def one_client() -> Iterator[None]:
    with httpx.Client(timeout=60) as client:
        CLIENTS.append(client)
        yield
        CLIENTS.clear()


def call(server: Live, key: str | None, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    return CLIENTS[0].request(method, server.url + path, headers=headers, **options)


def create(server: Live, admin: str = ROOT, **body: Any) -> dict[str, Any]:
    response = call(server, admin, "POST", "/v1/keys", json={"name": "a key", **body})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def completion(server: Live, key: str | None, **body: Any) -> httpx.Response:
    return call(server, key, "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 1, **body})


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

READS = {("GET", "/v1/adapters"), ("GET", "/v1/adapters/x"), ("GET", "/v1/events")}
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


# ---- adapters that do not exist for somebody ----


@pytest.mark.parametrize("model", ["team-b-x", "team-b-x@1", f"{BASE}:team-b-x", f"{BASE}:team-b-x@1", "team-b-x@9"])
def test_others_are_as_if_they_did_not_exist(keyed: Live, model: str) -> None:
    key = create(keyed, adapters=["team-a-*"])["key"]

    def answers(name: str) -> list[tuple[int, str]]:
        asked = model.replace("team-b-x", name)
        found = [
            completion(keyed, key, model=asked),
            completion(keyed, key, model=asked, stream=True),
            completion(keyed, key, adapter_id=asked),
            completion(keyed, key, model=BASE, lora_path=asked),
            completion(keyed, key, model="team-a-x", adapter_id=asked),
            call(
                keyed,
                key,
                "POST",
                "/v1/chat/completions",
                json={"model": asked, "messages": [{"role": "user", "content": "x"}]},
            ),
            call(keyed, key, "POST", "/tokenize", json={"model": asked, "prompt": "x"}),
            call(keyed, key, "POST", "/detokenize", json={"model": asked, "tokens": [1]}),
            call(keyed, key, "GET", f"/v1/models/{asked}"),
        ]
        assert {error_of(response, 404)["code"] for response in found} == {"model_not_found"}
        return [(response.status_code, response.text.replace(name, "NAME")) for response in found]

    assert answers("team-b-x") == answers("team-c-x"), "nothing tells them from names that nobody has"


def test_what_a_limited_key_sees(keyed: Live) -> None:
    made = create(keyed, adapters=["team-a-*"])
    models = call(keyed, made["key"], "GET", "/v1/models").json()["data"]
    assert [model["id"] for model in models] == [BASE, "team-a-x"]
    assert completion(keyed, made["key"], model=f"{BASE}:team-a-x@1").status_code == 200
    without = create(keyed, adapters=["team-a-*"], base=False)
    models = call(keyed, without["key"], "GET", "/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["team-a-x"]
    for body in ({}, {"model": BASE}):
        assert error_of(completion(keyed, without["key"], **body), 404)["code"] == "model_not_found"
    nothing = create(keyed, adapters=[], base=False)
    assert call(keyed, nothing["key"], "GET", "/v1/models").json()["data"] == []


def test_a_refused_name_does_not_count_under_the_adapter(keyed: Live) -> None:
    key = create(keyed, adapters=["team-a-*"])["key"]

    def errors() -> list[str]:
        lines = call(keyed, ROOT, "GET", "/metrics").text.splitlines()
        return [line for line in lines if line.startswith("hotswap_errors_total") and "team-b" in line]

    before = errors()
    completion(keyed, key, model="team-b-x")
    assert errors() == before


def test_metrics_tell_of_all_adapters_and_are_for_keys_of_all(keyed: Live) -> None:
    for scopes in (["read-only"], ["admin"]):
        limited = create(keyed, scopes=scopes, adapters=["team-a-*"])["key"]
        assert error_of(call(keyed, limited, "GET", "/metrics"), 403)["code"] == "insufficient_permissions"


@pytest.mark.parametrize("scopes", [["read-only"], ["admin"]])
def test_limited_readers(keyed: Live, scopes: list[str]) -> None:
    key = create(keyed, scopes=scopes, adapters=["team-a-*"])["key"]
    listed = call(keyed, key, "GET", "/v1/adapters").json()["data"]
    assert [adapter["name"] for adapter in listed] == ["team-a-x"]
    assert call(keyed, key, "GET", "/v1/adapters/team-a-x").status_code == 200
    missing = [call(keyed, key, "GET", f"/v1/adapters/{name}") for name in ("team-b-x", "team-c-x")]
    texts = {response.text.replace("team-b", "T").replace("team-c", "T") for response in missing}
    assert {response.status_code for response in missing} == {404}
    assert len(texts) == 1


def test_limited_admins_change_what_is_theirs(keyed: Live, packages: dict[str, Path], tmp_path: Path) -> None:
    key = create(keyed, scopes=["admin"], adapters=["team-a-*", "team-d-*"])["key"]
    files = {"f": archive(packages["lora-2"], tmp_path)}
    assert call(keyed, key, "POST", "/v1/adapters?name=team-d-new", files=files).status_code == 201
    assert call(keyed, key, "POST", "/v1/adapters", data={"name": "team-d-form"}, files=files).status_code == 201
    assert call(keyed, key, "DELETE", "/v1/adapters/team-d-form").status_code == 200
    assert call(keyed, key, "PUT", "/v1/adapters/team-d-new", files=files).status_code == 200
    for name in ("team-b-x", "team-c-x"):  # whether it exists or not
        refused = [
            call(keyed, key, "POST", f"/v1/adapters?name={name}", files=files),
            call(keyed, key, "POST", "/v1/adapters", data={"name": name}, files=files),
            call(keyed, key, "PUT", f"/v1/adapters/{name}", files=files),
        ]
        assert {error_of(response, 403)["code"] for response in refused} == {"insufficient_permissions"}
        gone = [
            call(keyed, key, "PATCH", f"/v1/adapters/{name}", json={"version": 1}),
            call(keyed, key, "POST", f"/v1/adapters/{name}/rollback"),
            call(keyed, key, "DELETE", f"/v1/adapters/{name}"),
            call(keyed, key, "DELETE", f"/v1/adapters/{name}/versions/1", params={"mode": "force"}),
        ]
        assert {error_of(response, 404)["code"] for response in gone} == {"model_not_found"}
    assert call(keyed, ROOT, "GET", "/v1/adapters/team-b-x").json()["version"] == 1
    assert call(keyed, key, "DELETE", "/v1/adapters/team-d-new").status_code == 200


def test_limited_admins_are_not_told_whose_candidates_there_are(
    base: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    files = {"f": archive(packages["lora"], tmp_path)}
    with live_server(base, tmp_path / "data", admin_key=ROOT, max_candidates=1) as live:
        call(live, ROOT, "PUT", "/v1/adapters/team-b-secret?activate=false", files=files)
        key = create(live, scopes=["admin"], adapters=["team-a-*"])["key"]
        for who, words in ((key, "activate or delete some"), (ROOT, "team-b-secret@1")):
            refused = error_of(call(live, who, "PUT", "/v1/adapters/team-a-x?activate=false", files=files), 409)
            assert words in refused["message"]
            assert ("team-b" in refused["message"]) == (who == ROOT)


def test_limited_admins_make_no_keys(keyed: Live) -> None:
    limited = create(keyed, scopes=["admin"], adapters=["team-a-*"])
    for method, path, body in (
        ("POST", "/v1/keys", {"name": "n", "scopes": ["admin"]}),
        ("GET", "/v1/keys", None),
        ("PATCH", f"/v1/keys/{limited['id']}", {"adapters": None}),
        ("POST", f"/v1/keys/{limited['id']}/rotate", {}),
        ("DELETE", f"/v1/keys/{limited['id']}", None),
    ):
        assert error_of(call(keyed, limited["key"], method, path, json=body), 403)["code"] == "insufficient_permissions"


# ---- tenants ----


def test_keys_share_no_cached_prompts_and_keep_theirs_when_rotated(keyed: Live) -> None:
    def cached(key: str, salt: str | None = None) -> int:
        body = {"prompt": "tenants of keys " * 30, **({"cache_salt": salt} if salt is not None else {})}
        tokens: int = completion(keyed, key, **body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return tokens

    one, other = create(keyed), create(keyed)
    assert cached(one["key"]) == 0
    assert cached(other["key"]) == 0
    assert cached(other["key"], f"{one['id']}/") == 0
    rotated = call(keyed, ROOT, "POST", f"/v1/keys/{one['id']}/rotate").json()["key"]
    assert cached(rotated) > 0


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


# ---- without flags ----


def test_from_the_first_key_on_the_server_asks_for_keys(base: Path, tmp_path: Path) -> None:
    with live_server(base, tmp_path) as live:
        assert call(live, None, "GET", "/v1/keys").json()["data"] == []
        refused = call(live, None, "POST", "/v1/keys", json={"name": "for inference"})
        assert error_of(refused, 409)["code"] == "no_admin_key_left"
        limited = call(live, None, "POST", "/v1/keys", json={"name": "n", "scopes": ["admin"], "adapters": ["a"]})
        assert error_of(limited, 409)["code"] == "no_admin_key_left"
        assert completion(live, None).status_code == 200
        admin = call(live, None, "POST", "/v1/keys", json={"name": "first", "scopes": ["admin"]}).json()
        assert call(live, None, "GET", "/v1/adapters").status_code == 401
        assert call(live, None, "GET", "/metrics").status_code == 401
        assert completion(live, None).status_code == 200, "as with --admin-key alone"
        made = create(live, admin["key"])
        assert completion(live, None).status_code == 401
        assert completion(live, made["key"]).status_code == 200
        path = f"/v1/keys/{admin['id']}"
        for method, body in (
            ("DELETE", None),
            ("PATCH", {"scopes": ["inference"]}),
            ("PATCH", {"adapters": ["*"]}),
        ):
            error = error_of(call(live, admin["key"], method, path, json=body), 409)
            assert error["code"] == "no_admin_key_left"
        second = create(live, admin["key"], scopes=["admin"])
        assert call(live, second["key"], "DELETE", path).status_code == 200
        assert call(live, admin["key"], "GET", "/v1/adapters").status_code == 401
        call(live, second["key"], "DELETE", f"/v1/keys/{made['id']}")
        assert completion(live, None).status_code == 401, "the end of the last key opens nothing"


def test_another_server_on_the_catalog_sees_changes_soon(base: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"catalog": sqlite_url(tmp_path), "admin_key": ROOT}
    with live_server(base, tmp_path / "1", **shared) as one, live_server(base, tmp_path / "2", **shared) as other:

        def seen(key: str, status: int) -> float:
            began = time.monotonic()
            wait_until(lambda: completion(other, key).status_code == status, f"the other server to answer {status}")
            return time.monotonic() - began

        made = create(one)
        assert seen(made["key"], 200) < 2
        call(one, ROOT, "PATCH", f"/v1/keys/{made['id']}", json={"base": False})
        assert seen(made["key"], 404) < 2
        call(one, ROOT, "DELETE", f"/v1/keys/{made['id']}")
        assert seen(made["key"], 401) < 2


def test_keys_outlive_the_server(base: Path, tmp_path: Path) -> None:
    catalog = sqlite_url(tmp_path)
    with live_server(base, tmp_path / "1", catalog=catalog, admin_key=ROOT) as live:
        made = create(live, adapters=["a-*"], limits={"max_concurrency": 2})
        completion(live, made["key"])
        told = call(live, ROOT, "GET", f"/v1/keys/{made['id']}").json()
        assert told["last_used"] is not None
    with live_server(base, tmp_path / "2", catalog=catalog) as live:
        assert completion(live, None).status_code == 401
        assert error_of(call(live, None, "GET", "/v1/adapters"), 403)["code"] == "admin_disabled"
        record = live.context.keys.get(made["id"])
        assert key_body(live.context.keys, record) == told
        assert completion(live, made["key"]).status_code == 200
