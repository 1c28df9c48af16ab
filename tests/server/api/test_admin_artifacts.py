"""Over HTTP: packages in an S3 store that servers share, that stops answering, and that has something else then."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest

from server.catalog.database.database import sqlite_url
from tests.server.api.support import BASE, answer, archive, error_of, wanted
from tests.server.catalog.store.proxy import proxy_to
from tests.server.live import Live, live_server
from tests.server.s3 import s3, s3_server

__all__ = ["s3", "s3_server"]


def ask(live: Live, model: str) -> httpx.Response:
    return live.post("/v1/completions", {"model": model, "prompt": "who?", "max_tokens": 2})


def test_servers_that_share_a_catalog_and_a_store(
    base: Path, packages: dict[str, Path], s3: str, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"catalog": sqlite_url(tmp_path), "artifacts": s3}
    with (
        live_server(base, tmp_path / "a", **shared) as first,
        live_server(base, tmp_path / "b", **shared) as second,
        first.http() as http,
    ):
        made = http.put("/v1/adapters/json", files={"file": archive(packages["lora"], tmp_path)})
        assert made.status_code == 201
        second.wait(lambda: "json" in second.context.registry.names(), "the other server to see it")
        assert answer(second, "json") == answer(first, "json") == wanted(base, packages["lora"])
        assert not list((tmp_path / "a" / "packages").iterdir())
    shutil.rmtree(tmp_path / "a")
    with live_server(base, tmp_path / "a", **shared) as again:
        assert answer(again, "json") == wanted(base, packages["lora"])
        with again.http() as http:
            assert http.delete("/v1/adapters/json?mode=force").json().get("warnings") is None
        filesystem, path = fsspec.core.url_to_fs(s3, skip_instance_cache=True)
        assert filesystem.find(path) == []


def test_a_store_that_stops_answering(
    base: Path, packages: dict[str, Path], s3: str, s3_server: str, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = {name: {"file": archive(package, tmp_path)} for name, package in packages.items()}
    quick = {"config_kwargs": {"connect_timeout": 0.5, "read_timeout": 0.5}}
    with proxy_to(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        settings: dict[str, Any] = {"artifacts": s3, "artifacts_option": quick, "max_cached_gb": 1e-9}
        with live_server(base, tmp_path / "data", **settings) as live, live.http() as http:
            for name in ("lora", "lora-2"):
                assert http.put("/v1/adapters/json", files=uploads[name]).status_code == 201
            live.wait(lambda: "draining" not in http.get("/v1/adapters/json").text, "the first to drain")
            shutil.rmtree(live.context.registry.version("json", 1).path, ignore_errors=True)
            monkeypatch.setattr("server.catalog.store.remote_files.PATIENCE", 1.0)
            proxy.silent.set()
            for call in (
                http.put("/v1/adapters/more", files=uploads["prefix"]),
                http.patch("/v1/adapters/json", json={"version": 1}),
            ):
                error = error_of(call, 503)
                assert error["code"] == "store_unavailable"
                assert "--artifacts" in error["message"]
            assert answer(live, "json") == wanted(base, packages["lora-2"]), "what is resident goes on"
            assert ask(live, BASE).status_code == 200
            assert [name["name"] for name in http.get("/v1/adapters").json()["data"]] == ["json"]
            proxy.silent.clear()
            monkeypatch.setattr("server.catalog.store.remote_files.PATIENCE", 30.0)
            assert http.patch("/v1/adapters/json", json={"version": 1}).status_code == 200
            assert answer(live, "json") == wanted(base, packages["lora"])
            assert http.put("/v1/adapters/more", files=uploads["prefix"]).status_code == 201


def test_an_object_that_has_changed(base: Path, packages: dict[str, Path], s3: str, tmp_path: Path) -> None:
    filesystem, path = fsspec.core.url_to_fs(s3, skip_instance_cache=True)
    with live_server(base, tmp_path / "data", artifacts=s3) as live, live.http() as http:
        for name in ("lora", "lora-2"):
            upload = {"file": archive(packages[name], tmp_path)}
            assert http.put("/v1/adapters/json", files=upload).status_code == 201
        live.wait(lambda: "draining" not in http.get("/v1/adapters/json").text, "the first to drain")
        place = live.context.registry.version("json", 1).path
        weights = f"{path}/packages/{place.name}/adapter_model.safetensors"
        data = filesystem.cat_file(weights)
        (place / "adapter_model.safetensors").write_bytes(b"damaged")
        filesystem.pipe_file(weights, data[:-4] + bytes(4))
        error = error_of(http.patch("/v1/adapters/json", json={"version": 1}), 503)
        assert error["code"] == "adapter_failed"
        assert answer(live, "json") == wanted(base, packages["lora-2"])
        filesystem.pipe_file(weights, data)
        assert http.patch("/v1/adapters/json", json={"version": 1}).status_code == 200
        assert answer(live, "json") == wanted(base, packages["lora"])
