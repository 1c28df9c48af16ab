"""Over HTTP: adapters that are named instead of sent, vLLM's calls, and OpenAI's deletion of a model."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.api.support import BASE, answer, archive, error_of, wanted
from tests.server.catalog.sources.web_server import Web, web_server
from tests.server.live import Live, live_server


@pytest.fixture(scope="module")
def root(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packages."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("lora", "lora-2", "prefix"):
        shutil.copytree(packages[name], folder / name)
    return folder


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with web_server() as made:
        yield made


@pytest.fixture(scope="module")
def live(base: Path, root: Path, web: Web, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that takes packages from ``root`` and from ``web``."""
    folder = tmp_path_factory.mktemp("data")
    with live_server(base, folder, adapter_root=[str(root)], source_host=["127.0.0.1"], admin_key="root") as made:
        yield made


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    """An administrator's client; what it leaves behind is removed."""
    with live.http(Authorization="Bearer root") as client:
        yield client
        for adapter in client.get("/v1/adapters").json()["data"]:
            assert client.delete(f"/v1/adapters/{adapter['name']}?mode=force").status_code == 200


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]


# ---- sources ----


def test_a_path(
    http: httpx.Client, live: Live, base: Path, packages: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    made = http.post("/v1/adapters", json={"name": "json", "source": "lora"})
    assert (made.status_code, made.json()["version"], made.json()["state"]) == (201, 1, "live")
    assert answer(live, "json") == wanted(base, packages["lora"])
    assert http.post("/v1/adapters", json={"name": "json", "source": "lora"}).status_code == 200
    conflict = http.post("/v1/adapters", json={"name": "json", "source": "lora-2"})
    assert error_of(conflict, 409)["code"] == "adapter_exists"
    candidate = http.post("/v1/adapters", json={"name": "json", "source": "lora-2", "activate": False})
    assert (candidate.status_code, candidate.json()["state"]) == (201, "candidate")
    stale = http.put("/v1/adapters/json", json={"source": "prefix", "expected_live": 2})
    assert error_of(stale, 409)["code"] == "live_version_changed"
    replaced = http.put("/v1/adapters/json", json={"source": "prefix", "digest": None, "expected_live": 1})
    assert (replaced.status_code, replaced.json()["version"]) == (201, 3)
    noted = [(line["action"], line.get("source")) for line in audited(caplog)]
    assert noted[0] == ("load", "lora")
    assert noted[-1] == ("replace", "prefix")


def test_what_is_not_allowed_or_not_there(http: httpx.Client, live: Live) -> None:
    for body, code, param in (
        ({"source": "/etc"}, "source_not_found", "source"),
        ({"source": "../x"}, "source_not_found", "source"),
        ({"source": "http://localhost/x", "digest": "0" * 64}, "source_not_allowed", "source"),
        ({"source": "http://127.0.0.1/x"}, "digest_required", "digest"),
        ({"source": "s3://bucket/x", "digest": "0" * 64}, "source_not_allowed", "source"),
        ({"source": "lora", "digest": "0" * 64}, "digest_mismatch", "digest"),
        ({"source": "nobody/nothing"}, "source_unavailable", "source"),
        ({"source": "lora", "revision": "main"}, "invalid_source", "revision"),
        ({"source": ""}, None, "source"),
        ({"source": 1}, None, "source"),
        ({}, None, "source"),
    ):
        error = error_of(http.post("/v1/adapters", json={"name": "x", **body}))
        assert (error["code"], error["param"]) == (code, param), body
    assert error_of(http.post("/v1/adapters", json={"source": "lora"}))["param"] == "name"
    error_of(http.post("/v1/adapters", content=b"{", headers={"content-type": "application/json"}))
    large = http.post("/v1/adapters", json={"name": "x", "source": "lora", "more": "x" * 70_000})
    assert error_of(large, 413)["code"] == "body_too_large"
    assert http.get("/v1/adapters").json()["data"] == []
    with live.http() as stranger:
        error_of(stranger.post("/v1/adapters", json={"name": "x", "source": "lora"}), 401)


def test_an_address(http: httpx.Client, web: Web, packages: dict[str, Path], tmp_path: Path) -> None:
    data = archive(packages["lora"], tmp_path)
    web.pages["/json.tar"] = data
    source = {"source": f"{web.url}/json.tar?secret=1", "digest": hashlib.sha256(data).hexdigest()}
    made = http.post("/v1/adapters?name=json", json=source)
    assert made.status_code == 201, made.text
    assert http.post("/v1/adapters", json={"name": "json", **source}).status_code == 200
    web.pages["/json.tar"] = data + b"x"
    assert error_of(http.put("/v1/adapters/json", json=source))["code"] == "digest_mismatch"
    missing = http.put("/v1/adapters/json", json={**source, "source": f"{web.url}/none"})
    assert error_of(missing)["code"] == "source_unavailable"


# ---- vLLM's calls ----


def test_loading_and_unloading_as_with_vllm(
    http: httpx.Client, live: Live, base: Path, packages: dict[str, Path], root: Path
) -> None:
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    made = http.post(load, json={"lora_name": "json", "lora_path": str(root / "lora")})
    assert (made.status_code, made.text) == (200, "Success: LoRA adapter 'json' added successfully.")
    assert answer(live, "json") == wanted(base, packages["lora"])
    again = http.post(load, json={"lora_name": "json", "lora_path": str(root / "lora-2")})
    assert "has already been loaded" in error_of(again)["message"]
    assert "load_inplace" in error_of(again)["message"]
    inplace = {"lora_name": "json", "lora_path": str(root / "lora-2"), "load_inplace": True}
    assert http.post(load, json=inplace).status_code == 200
    assert answer(live, "json") == wanted(base, packages["lora-2"])
    gone = http.post(unload, json={"lora_name": "json"})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'json' removed successfully.")
    missing = error_of(http.post(unload, json={"lora_name": "json", "lora_int_id": 1}), 404)
    assert missing["message"] == "The lora adapter 'json' cannot be found."


def test_what_vllm_refuses(http: httpx.Client, live: Live, root: Path) -> None:
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    for body in ({}, {"lora_name": "x"}, {"lora_path": str(root / "lora")}, {"lora_name": "", "lora_path": ""}):
        assert "must be provided" in error_of(http.post(load, json=body))["message"]
    assert "needs to be provided" in error_of(http.post(unload, json={}))["message"]
    for path in ("/etc", f"{root}/../x", f"{root}/none", "http://127.0.0.1/x", "s3://b/x", "nobody/nothing"):
        error = error_of(http.post(load, json={"lora_name": "x", "lora_path": path}), 404)
        assert (error["param"], error["code"]) == ("lora_path", "source_not_found"), path
    conflict = error_of(http.post(load, json={"lora_name": BASE, "lora_path": str(root / "lora")}))
    assert "conflicts with a served base model" in conflict["message"]
    error_of(http.post(load, json={"lora_name": "no name", "lora_path": str(root / "lora")}))
    with live.http() as stranger:
        error_of(stranger.post(load, json={"lora_name": "x", "lora_path": str(root / "lora")}), 401)


# ---- OpenAI's deletion ----


def test_a_model_is_deleted(http: httpx.Client, live: Live) -> None:
    for source in ("lora", "lora-2"):
        assert http.put("/v1/adapters/doomed", json={"source": source}).status_code == 201
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="root", max_retries=0) as client:
        for model in ("doomed@2", BASE, "doomed@9", "nobody"):
            with pytest.raises(openai.APIStatusError) as refused:
                client.models.delete(model)
            assert refused.value.status_code == {"doomed@2": 409, BASE: 400}.get(model, 404)
        assert client.models.delete("doomed@1").deleted
        gone = client.models.delete(f"{BASE}:doomed")
        assert (gone.id, gone.object, gone.deleted) == (f"{BASE}:doomed", "model", True)
        with pytest.raises(openai.NotFoundError):
            client.models.delete("doomed")
    wrong = openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.delete("doomed")
