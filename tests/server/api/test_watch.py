"""A whole server, a folder that it watches, and a start after it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from server.errors import EngineStartError
from tests.server.api.support import answer, error_of, wanted
from tests.server.live import Live, live_server


def put(package: Path, place: Path) -> None:
    scratch = place.parent.parent / "scratch"
    shutil.copytree(package, scratch)
    shutil.rmtree(place, ignore_errors=True)
    scratch.rename(place)


def versions(live: Live, name: str) -> list[tuple[int, str]]:
    with live.http() as http:
        shown: dict[str, Any] = http.get(f"/v1/adapters/{name}").json()
    return [(version["version"], version["state"]) for version in shown.get("versions", ())]


def test_a_folder_is_served_through_restarts(
    base: Path, packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.catalog.watching.watcher.INTERVAL", 0.02)
    folder, data = tmp_path / "watched", tmp_path / "data"
    folder.mkdir()
    put(packages["lora"], folder / "kept")
    put(packages["prefix"], folder / "removed")
    put(packages["prefix"], folder / "going")
    with live_server(base, data, watch=[str(folder)]) as live:
        live.wait(lambda: len(live.context.registry.names()) == 3, "the folder to be served")
        assert answer(live, "kept") == wanted(base, packages["lora"])
        with live.http() as http:
            assert http.delete("/v1/adapters/removed?mode=force").status_code == 200
        put(packages["lora-2"], folder / "kept")
        live.wait(lambda: versions(live, "kept") == [(1, "stored"), (2, "live")], "the change to be served")
    shutil.rmtree(folder / "going")
    with live_server(base, data, watch=[str(folder)]) as live:
        live.wait(lambda: "going" not in live.context.registry.names(), "what is gone to be drained")
        put(packages["prompt"], folder / "new")
        live.wait(lambda: "new" in live.context.registry.names(), "the folder to be looked at")
        assert versions(live, "kept") == [(1, "stored"), (2, "live")]
        assert answer(live, "kept") == wanted(base, packages["lora-2"])
        with live.http() as http:
            error_of(http.get("/v1/models/removed"), 404)


def test_a_folder_that_is_not_there(base: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="no such directory"), live_server(base, tmp_path, watch=["/none"]):
        pass
