"""Packages of a hub: one of ours, on a real socket, since none can be reached from here."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters.errors import PackageError
from adapters.package.inspection import inspect_package
from server.catalog.sources.errors import SourceError
from server.catalog.sources.hub import download, hub_id
from tests.server.catalog.sources.web_server import Web

SHA = "0123456789abcdef0123456789abcdef01234567"
REPO = "team/json-lora"
GO_ON = threading.Event()


@pytest.fixture
def package(tiny_adapters: Mapping[str, Path]) -> Path:
    return tiny_adapters["lora-r4"]


@pytest.fixture
def hub(web: Web, package: Path, monkeypatch: pytest.MonkeyPatch) -> Web:
    """A hub with one repository, whose branch ``v2`` is the commit ``SHA``."""
    from huggingface_hub import close_session, constants

    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    web.headers = {"X-Repo-Commit": SHA, "ETag": '"0"'}
    others = {"optimizer.pt": b"x", "x/y.bin": b"", "2_Dense/pytorch_model.bin": b"x", "1_Pooling/config.json": b"{}"}
    describe(web, {path.name: path.read_bytes() for path in package.iterdir()} | others)
    return web


def describe(web: Web, files: Mapping[str, bytes], **sizes: int) -> None:
    listed = [{"rfilename": name, "size": sizes.get(name, len(data))} for name, data in files.items()]
    info = {"id": REPO, "modelId": REPO, "sha": SHA, "siblings": listed, "tags": [], "private": False}
    for path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/v2"):
        web.pages[path] = json.dumps(info).encode()
    for name, data in files.items():
        web.pages[f"/{REPO}/resolve/{SHA}/{name}"] = data


@pytest.mark.parametrize("revision", [None, "v2"])
def test_the_files_of_a_package_and_no_others(hub: Web, package: Path, tmp_path: Path, revision: str | None) -> None:
    found = download(REPO, revision, tmp_path / "hub", 1 << 20, GO_ON)
    assert inspect_package(found).digest == inspect_package(package).digest
    fetched = {line.rsplit(f"{SHA}/", 1)[-1] for line in hub.asked if "/resolve/" in line}
    assert fetched == {"adapter_config.json", "adapter_model.safetensors", "1_Pooling/config.json"}
    names = {"adapter_config.json", "adapter_model.safetensors", "1_Pooling.config.json"}
    assert {path.name for path in found.iterdir()} == names, "and no notes of the hub's client"
    assert all(SHA in line for line in hub.asked if "/resolve/" in line), "of that commit, whatever is pushed meanwhile"


def test_what_the_hub_does_not_have(hub: Web, tmp_path: Path) -> None:
    for name, revision in (("team/none", None), (REPO, "none"), (REPO, "../../etc")):
        with pytest.raises(SourceError):
            download(name, revision, tmp_path / "hub", 1 << 20, GO_ON)
    del hub.pages[f"/{REPO}/resolve/{SHA}/adapter_config.json"]
    with pytest.raises(SourceError, match="does not give"):
        download(REPO, None, tmp_path / "hub", 1 << 20, GO_ON)


def test_what_is_no_adapter_or_too_large(hub: Web, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as refused:
        download(REPO, None, tmp_path / "hub", 100, GO_ON)
    assert refused.value.code == "source_too_large"
    describe(hub, {"config.json": b"{}"})
    with pytest.raises(SourceError, match="no adapter"):
        download(REPO, None, tmp_path / "hub", 1 << 20, GO_ON)
    describe(hub, {"adapter_config.json": b"{}", "adapter_model.bin": b"x"})
    with pytest.raises(PackageError, match="pickle"):
        download(REPO, None, tmp_path / "hub", 1 << 20, GO_ON)
    describe(hub, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x" * 2000}, adapter_model=1)
    assert not any("/resolve/" in line for line in hub.asked), "nothing was fetched of any of these"


def test_offline(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be reached from here"):
        download(REPO, None, tmp_path / "hub", 1 << 20, GO_ON)


def test_what_may_be_a_hub_id() -> None:
    assert hub_id("org/name") == hub_id("hf://org/name") == "org/name"
    for source in ("name", "/org/name", "org/name/x", "../x", "org/..", "org/na me", "s3://org/name", "hf://name"):
        assert hub_id(source) is None


def test_a_server_that_ends_asks_for_no_further_file(hub: Web, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(SourceError, match="shutting down"):
        download(REPO, None, tmp_path / "hub", 1 << 20, stop)
    assert not [line for line in hub.asked if "/resolve/" in line]
