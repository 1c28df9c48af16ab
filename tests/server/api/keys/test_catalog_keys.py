"""Keys of the catalog alone: the first one closes a server, others see them, and they outlive it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from server.api.keys import key_body
from server.catalog.database.database import sqlite_url
from tests.server.api.keys.calls import ROOT, call, completion, create
from tests.server.api.support import error_of
from tests.server.live import live_server, wait_until


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
