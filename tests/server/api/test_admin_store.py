"""Over HTTP: packages that changed on the disk, disks that are full or read-only, uploads at once, budgets."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.support import BASE, STEADY, answer, archive, error_of, wanted
from tests.server.catalog.spoil import flip_a_bit, read_only, small_disk
from tests.server.engine.ipc.fragile import Fragile, build_fragile
from tests.server.engine.ipc.local_client import RestartingLocalClient
from tests.server.live import Live, live_server, slow_steps


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(base: Path, data_dir: Path, packages: dict[str, Path]) -> Iterator[Live]:
    """A server with the adapter "lora", that keeps its packages in ``data_dir``."""
    with live_server(base, data_dir, adapters=[("lora", str(packages["lora"]))]) as live:
        yield live


@pytest.fixture
def uploads(packages: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    return {name: {"file": archive(package, tmp_path)} for name, package in packages.items()}


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]


def ask(live: Live, model: str) -> httpx.Response:
    return live.post("/v1/completions", {"model": model, "prompt": "who?", "max_tokens": 2})


# ---- changed on the disk ----


def test_a_changed_package_is_not_served_after_a_restart_and_is_mended(
    base: Path, packages: dict[str, Path], data_dir: Path, uploads: dict[str, Any]
) -> None:
    adapters = [(name, str(packages[name])) for name in ("lora", "prefix", "prompt")]
    make_engine = partial(RestartingLocalClient, build=build_fragile)
    with live_server(base, data_dir, adapters=adapters, make_engine=make_engine) as live, live.http() as http:
        engine = live.context.engine
        assert isinstance(engine, RestartingLocalClient)
        spoiled, gone = (live.context.registry.live(name).path for name in ("lora", "prompt"))
        flip_a_bit(spoiled)
        shutil.rmtree(gone)
        assert answer(live, "lora") == wanted(base, packages["lora"]), "what is resident stays"
        Fragile.doomed.set()
        ask(live, BASE)
        live.wait(lambda: engine.restarts == 1 and engine.ready, "the engine to come back")

        assert http.get("/ready").status_code == 200
        assert answer(live, "prefix") == wanted(base, packages["prefix"])
        assert answer(live, BASE) == wanted(base, None)
        for model in ("lora", "lora@1", f"{BASE}:lora"):
            refused = ask(live, model)
            error = error_of(refused, 503)
            assert error["code"] == "adapter_failed"
            assert "not those that were uploaded" in error["message"]
            assert refused.headers["x-should-retry"] == "false"
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [BASE, "prefix"]
        error_of(http.get("/v1/models/lora"), 503)
        shown = http.get("/v1/adapters/lora").json()
        assert (shown["version"], shown["state"]) == (1, "failed")
        assert "not those that were uploaded" in shown["reason"]
        assert shown["versions"][0]["reason"] == shown["reason"]
        assert http.get("/v1/adapters/prefix").json()["reason"] is None
        assert 'state="failed"} 2.0' in http.get("/metrics").text
        counted = 'hotswap_errors_total{adapter="lora",model="tiny",status="503",type="adapter_failed",version="1"} 3.0'
        assert counted in http.get("/metrics").text

        error = error_of(http.patch("/v1/adapters/lora", json={"version": 1}), 503)
        assert error["code"] == "adapter_failed"
        flip_a_bit(spoiled)  # as it was
        activated = http.patch("/v1/adapters/lora", json={"version": 1})
        assert (activated.status_code, activated.json()["state"]) == (200, "live")
        assert answer(live, "lora") == wanted(base, packages["lora"])

        assert error_of(http.post("/v1/adapters?name=prompt", files=uploads["lora"]), 409)["code"] == "adapter_exists"
        error_of(ask(live, "prompt"), 503)
        again = http.post("/v1/adapters?name=prompt", files=uploads["prompt"])
        assert (again.status_code, again.json()["version"], again.json()["state"]) == (200, 1, "live")
        assert answer(live, "prompt@1") == wanted(base, packages["prompt"])


# ---- disks ----


def test_a_disk_that_becomes_read_only(
    store: Live, data_dir: Path, uploads: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    with store.http() as http:
        for name in ("doomed", "kept"):
            assert http.put(f"/v1/adapters/{name}", files=uploads["prefix"]).status_code == 201
        with read_only(data_dir / "packages"):
            for refused in (
                http.post("/v1/adapters?name=new", files=uploads["lora-2"]),
                http.put("/v1/adapters/kept", files=uploads["lora-2"]),
                http.put("/v1/adapters/kept?activate=false", files=uploads["lora-2"]),
            ):
                assert error_of(refused, 503)["code"] == "store_unavailable"
                assert refused.headers["x-should-retry"] == "false"
            removed = http.delete("/v1/adapters/doomed?mode=force")
            assert removed.status_code == 200
            assert "its files are still there" in removed.json()["warnings"][0]
        error_of(http.get("/v1/adapters/new"), 404)
        error_of(ask(store, "doomed"), 404)
        assert [v["version"] for v in http.get("/v1/adapters/kept").json()["versions"]] == [1]
        assert ask(store, "kept").status_code == 200
        assert http.put("/v1/adapters/kept", files=uploads["lora-2"]).json()["version"] == 2
    lines = audited(caplog)
    assert [line["action"] for line in lines] == ["load", "load", "refuse", "refuse", "refuse", "remove", "replace"]
    assert "cannot be kept" in lines[2]["reason"]
    assert "still there" in lines[5]["warnings"][0]
    assert list((data_dir / "quarantine" / "0").iterdir()) == []


def test_a_disk_that_is_full(
    base: Path, data_dir: Path, uploads: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    data_dir.mkdir()
    with small_disk(data_dir, 540), live_server(base, data_dir) as live, live.http() as http:
        assert http.put("/v1/adapters/first", files=uploads["lora"]).status_code == 201
        before = answer(live, "first")
        large = {"file": uploads["lora"]["file"] + bytes(500_000)}
        for refused in (http.put("/v1/adapters/first", files=large), http.post("/v1/adapters?name=new", files=large)):
            assert error_of(refused, 507)["code"] == "insufficient_storage"
            assert "No space left" in error_of(refused, 507)["message"]
        assert [entry["name"] for entry in http.get("/v1/adapters").json()["data"]] == ["first"]
        assert answer(live, "first") == before
        assert http.delete("/v1/adapters/first?mode=force").status_code == 200
        assert list((data_dir / "packages").iterdir()) == list((data_dir / "quarantine" / "0").iterdir()) == []
        assert http.put("/v1/adapters/second", files=uploads["prefix"]).status_code == 201
    assert [line["action"] for line in audited(caplog)] == ["load", "refuse", "refuse", "remove", "load"]


def test_a_file_in_the_place_of_a_folder(store: Live, data_dir: Path, uploads: dict[str, Any]) -> None:
    with store.http() as http:
        (data_dir / "quarantine" / "0").rmdir()
        (data_dir / "quarantine" / "0").write_text("")
        for call in (
            http.put("/v1/adapters/x", files=uploads["lora"]),
            http.put("/v1/adapters/lora", files={"f": b""}),
        ):
            assert error_of(call, 503)["code"] == "store_unavailable"
            assert str(data_dir) not in call.text
        assert ask(store, "lora").status_code == 200
        assert http.delete("/v1/adapters/lora?mode=force").json().get("warnings") is None
        assert list((data_dir / "packages").iterdir()) == []


# ---- leaving ----


def test_force_after_drain_ends_the_requests_that_run(store: Live, uploads: dict[str, Any]) -> None:
    body = {"model": "lora", "prompt": "x", "max_tokens": 1900, "stream": True, **STEADY}
    for path in ("/v1/adapters/lora", "/v1/adapters/lora/versions/2"):
        with slow_steps(), store.http() as http, http.stream("POST", "/v1/completions", json=body) as stream:
            events = stream.iter_lines()
            next(events)
            if path.endswith("2"):
                http.put("/v1/adapters/lora", files=uploads["prefix"])
            assert http.delete(path).json()["mode"] == "drain"
            assert "run still" in error_of(http.delete(path), 404)["message"]
            forced = http.delete(f"{path}?mode=force")
            assert (forced.status_code, forced.json()["deleted"]) == (200, True)
            rest = [line for line in events if line]
        assert "was removed while this request ran" in rest[-2]
        error_of(http_delete(store, f"{path}?mode=force"), 404)
        with store.http() as http:
            assert http.put("/v1/adapters/lora", files=uploads["lora"]).status_code == 201
    store.wait_idle()


def http_delete(live: Live, path: str) -> httpx.Response:
    with live.http() as http:
        return http.delete(path)


# ---- at once ----


def test_one_new_name_goes_to_one_of_many(store: Live, uploads: dict[str, Any]) -> None:
    with store.http() as http, ThreadPoolExecutor(12) as pool:
        for name, contents, expected in (
            ("other", ["lora", "lora-2", "prefix", "prompt"] * 3, None),
            ("same", ["lora-2"] * 12, Counter({201: 1, 200: 11})),
        ):
            answers = list(
                pool.map(lambda c, n=name: http.post("/v1/adapters", params={"name": n}, files=uploads[c]), contents)
            )
            made = [answer.json()["digest"] for answer in answers if answer.status_code == 201]
            assert len(made) == 1
            for answer in answers:
                if answer.status_code == 200:
                    assert answer.json()["digest"] == made[0]
                elif answer.status_code == 409:
                    assert answer.json()["error"]["code"] == "adapter_exists"
                    assert answer.headers["x-should-retry"] == "false"
            counted = Counter(answer.status_code for answer in answers)
            assert counted == (expected or Counter({201: 1, 200: 2, 409: 9}))
            assert [v["version"] for v in http.get(f"/v1/adapters/{name}").json()["versions"]] == [1]


def test_a_change_that_was_made_is_answered_so_though_it_was_undone_at_once(
    store: Live, uploads: dict[str, Any]
) -> None:
    with store.http() as http, store.http() as other, ThreadPoolExecutor(1) as pool:
        for activate in ("true", "false"):
            query = {"name": "brief", "activate": activate}
            upload = pool.submit(http.post, "/v1/adapters", params=query, files=uploads["lora-2"])
            while other.delete("/v1/adapters/brief", params={"mode": "force"}).status_code == 404:
                assert not upload.done() or upload.result().status_code == 201, upload.result().text
            made = upload.result()
            assert (made.status_code, made.json()["state"]) == (201, "live" if activate == "true" else "candidate")


# ---- budgets ----


def test_bytes_kept_have_a_budget(
    base: Path, data_dir: Path, packages: dict[str, Path], uploads: dict[str, Any]
) -> None:
    files = ("adapter_config.json", "adapter_model.safetensors")
    weight = sum((packages["lora"] / name).stat().st_size for name in files)
    with live_server(base, data_dir, max_stored_gb=2.5 * weight / 1e9) as live, live.http() as http:
        for package in ("lora", "lora-2"):
            assert http.put("/v1/adapters/x", files=uploads[package]).status_code == 201
        refused = http.put("/v1/adapters/y", files=uploads["lora"])
        assert error_of(refused, 507)["code"] == "storage_budget_exceeded"
        assert "--max-stored-gb" in refused.json()["error"]["message"]
        error_of(http.get("/v1/adapters/y"), 404)
        assert http.delete("/v1/adapters/x/versions/1?mode=force").status_code == 200
        assert http.put("/v1/adapters/y", files=uploads["lora"]).status_code == 201


def test_versions_kept_have_a_budget(
    base: Path, data_dir: Path, uploads: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    with live_server(base, data_dir, max_versions=2) as live, live.http() as http:
        for package in ("lora", "lora-2", "prefix"):
            assert http.put("/v1/adapters/x", files=uploads[package]).status_code == 201
            live.wait(lambda: "draining" not in http.get("/v1/adapters/x").text, "the replaced version to drain")
        assert [v["version"] for v in http.get("/v1/adapters/x").json()["versions"]] == [2, 3]
        live.wait(lambda: len(list((data_dir / "packages").iterdir())) == 2, "the files of version 1 to go")
    assert [line.get("evicted") for line in audited(caplog)] == [None, None, [1]]


def test_memory_budget(base: Path, data_dir: Path, uploads: dict[str, Any]) -> None:
    with live_server(base, data_dir, engine={"max_adapter_gb": 1e-12}) as live, live.http() as http:
        refused = http.put("/v1/adapters/x", files=uploads["lora"])
        assert error_of(refused, 507)["code"] == "adapter_memory_exceeded"
        assert "--max-adapter-gb" in refused.json()["error"]["message"]
        assert http.get("/v1/adapters").json()["data"] == []
        assert ask(live, BASE).status_code == 200


# ---- what an earlier server left ----


def test_another_server_serves_what_is_there(base: Path, data_dir: Path, uploads: dict[str, Any]) -> None:
    with live_server(base, data_dir) as live, live.http() as http:
        for name in ("x", "y"):
            assert http.put(f"/v1/adapters/{name}", files=uploads["lora" if name == "x" else "prefix"]).is_success
        before = http.get("/v1/adapters").json()
        answers = [answer(live, name) for name in ("x", "y")]
        live.context.lifecycle.store.close()
    with live_server(base, data_dir) as live, live.http() as http:
        live.wait(lambda: http.get("/v1/adapters").json() == before, "what is served to be in memory again")
        assert [answer(live, name) for name in ("x", "y")] == answers
        assert http.put("/v1/adapters/x", files=uploads["lora"]).status_code == 200, "it has that content"
        live.context.lifecycle.store.close()
