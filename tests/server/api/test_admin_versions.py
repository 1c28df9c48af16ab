"""Candidates, activation, rollback and deletion of versions over a real socket."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.api.job import Job
from server.api.prepare import asked_model, completion_job
from server.api.wire import CompletionBody
from server.engine.messages import RequestOutput
from tests.server.api.support import BASE, STEADY, answer, archive, error_of, wanted
from tests.server.live import Live, live_server, slow_steps

NAME = "gated"
URL = f"/v1/adapters/{NAME}"


@pytest.fixture
def server(base: Path, tmp_path: Path) -> Iterator[Live]:
    """A server of its own for each test, whose version numbers begin at 1."""
    with live_server(base, tmp_path / "data") as live:
        yield live
        live.wait_idle()
        live.wait(
            lambda: live.on_loop(lambda: kept(live)) == set((tmp_path / "data" / "packages").iterdir()), "files to go"
        )


def kept(live: Live) -> set[Path]:
    """Where the registry's versions are."""
    registry = live.context.registry
    return {version.path for name in registry.known_names() for version in registry.versions(name)}


@pytest.fixture
def admin(server: Live) -> Iterator[httpx.Client]:
    """A client."""
    with server.http() as http:
        yield http


@pytest.fixture
def data(packages: dict[str, Path], tmp_path: Path) -> dict[str, bytes]:
    """Archives by the names of packages."""
    return {name: archive(package, tmp_path) for name, package in packages.items()}


def states(admin: httpx.Client) -> dict[int, str]:
    return {version["version"]: version["state"] for version in admin.get(URL).json()["versions"]}


def test_from_candidate_to_live_and_back(
    server: Live, admin: httpx.Client, base: Path, packages: dict[str, Path], data: dict[str, bytes]
) -> None:
    assert admin.put(URL, files={"f": data["lora"]}).status_code == 201
    response = admin.post("/v1/adapters", files={"f": data["lora-2"]}, data={"name": NAME, "activate": "false"})
    assert response.status_code == 201, response.text
    body = response.json()
    assert (body["id"], body["state"], body["kind"]) == (f"{NAME}@2", "candidate", "lora")
    assert body["base_fingerprint"] == server.context.engine.info.base_fingerprint
    assert states(admin) == {1: "live", 2: "candidate"}
    old, new = (wanted(base, packages[name]) for name in ("lora", "lora-2"))
    assert old != new
    for model, text in ((NAME, old), (f"{NAME}@2", new), (f"{BASE}:{NAME}@2", new), (f"{NAME}@1", old)):
        assert answer(server, model) == text

    changed = admin.patch(URL, json={"version": 2, "expected_live": 1})
    assert changed.status_code == 200, changed.text
    live = changed.json()
    assert (live["version"], live["state"], live["replaced"], live["changed"]) == (2, "live", 1, True)
    assert live["digest"] == body["digest"]
    assert answer(server, NAME) == new
    repeated = admin.patch(URL, json={"version": 2, "expected_live": 1}).json()
    assert (repeated["version"], repeated["replaced"], repeated["changed"]) == (2, None, False)

    back = admin.post(f"{URL}/rollback")
    assert (back.status_code, back.json()["version"], back.json()["replaced"]) == (200, 1, 2)
    assert answer(server, NAME) == old
    again = admin.post(f"{URL}/rollback", json={"version": 2})
    assert (again.status_code, again.json()["version"]) == (200, 2)


def test_the_exact_version_is_said(server: Live, admin: httpx.Client, data: dict[str, bytes]) -> None:
    admin.put(URL, files={"f": data["lora"]})
    admin.put(URL, params={"activate": False}, files={"f": data["lora-2"]})
    for model, version in ((NAME, 1), (f"{NAME}@2", 2)):
        response = server.post("/v1/completions", {"model": model, "prompt": "x", "max_tokens": 1})
        assert response.headers["x-hotswap-adapter"] == f"{NAME}@{version}"
        assert response.json()["model"] == model
    text = httpx.get(f"{server.url}/metrics").text
    labels = f'adapter="{NAME}",finish_reason="length",model="{BASE}",version="2"'
    assert f"hotswap_requests_total{{{labels}}} 1.0" in text
    assert f'hotswap_adapter_versions{{model="{BASE}",state="candidate"}} 1.0' in text


def test_a_name_with_only_a_candidate(
    server: Live, admin: httpx.Client, base: Path, packages: dict[str, Path], data: dict[str, bytes]
) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert admin.put(URL, params={"activate": "false"}, files={"f": data["prefix"]}).status_code == 201
    assert NAME not in {model.id for model in client.models.list()}
    assert client.models.retrieve(f"{NAME}@1").model_dump()["root"] == f"{NAME}@1"
    error = error_of(server.post("/v1/completions", {"model": NAME, "prompt": "x"}), 404)
    assert error["code"] == "model_not_found"
    assert f"ask for {NAME}@1" in error["message"]
    assert answer(server, f"{NAME}@1") == wanted(base, packages["prefix"])
    body = admin.get(URL).json()
    assert (body["id"], body["version"], body["state"], body["manifest"]) == (NAME, None, None, None)
    assert [(v["version"], v["state"]) for v in body["versions"]] == [(1, "candidate")]
    assert NAME in {entry["name"] for entry in admin.get("/v1/adapters").json()["data"]}
    assert admin.patch(URL, json={"version": 1, "expected_live": 0}).json()["replaced"] is None
    assert NAME in {model.id for model in client.models.list()}
    assert answer(server, NAME) == wanted(base, packages["prefix"])
    client.close()


def test_uploads_are_idempotent_by_content(admin: httpx.Client, data: dict[str, bytes]) -> None:
    admin.put(URL, files={"f": data["lora"]})

    def upload(package: str, **params: Any) -> tuple[int, int, str]:
        response = admin.post("/v1/adapters", params={"name": NAME, **params}, files={"f": data[package]})
        return response.status_code, response.json()["version"], response.json()["state"]

    assert upload("lora-2", activate=False) == (201, 2, "candidate")
    assert upload("lora-2", activate=False) == (200, 2, "candidate")
    assert upload("lora", activate=False) == (200, 1, "live")
    assert upload("lora-2", replace=True) == (201, 2, "live")
    assert upload("lora-2", replace=True) == (200, 2, "live")


def test_discarding_versions(server: Live, admin: httpx.Client, data: dict[str, bytes]) -> None:
    admin.put(URL, files={"f": data["lora"]})
    for mode, version in (("drain", 2), ("force", 3)):
        body = admin.put(URL, params={"activate": "no"}, files={"f": data["lora-2"]}).json()
        assert body["version"] == version, "numbers are not used twice"
        deleted = admin.delete(f"{URL}/versions/{version}", params={"mode": mode})
        assert deleted.json() == {
            "object": "adapter.version.deleted", "id": f"{NAME}@{version}", "name": NAME, "version": version,
            "digest": body["digest"], "deleted": True, "mode": mode,
        }  # fmt: skip
        error_of(admin.delete(f"{URL}/versions/{version}"), 404)
        error_of(server.post("/v1/completions", {"model": f"{NAME}@{version}", "prompt": "x"}), 404)
    live = error_of(admin.delete(f"{URL}/versions/1"), 409)
    assert live["code"] == "version_is_live"
    assert "activate another version first" in live["message"]
    for wrong in ("0", "-1", "one", "9" * 5000, "1e3"):
        error_of(admin.delete(f"{URL}/versions/{wrong}"))
    assert error_of(admin.delete(f"{URL}/versions/1?mode=gently"))["param"] == "mode"
    assert states(admin) == {1: "live"}


def test_drained_and_forced_requests(server: Live, admin: httpx.Client, data: dict[str, bytes]) -> None:
    body = {"model": f"{NAME}@2", "prompt": "x", "max_tokens": 600, **STEADY}
    admin.put(URL, files={"f": data["lora"]})
    admin.put(URL, params={"activate": "0"}, files={"f": data["lora-2"]})
    with ThreadPoolExecutor(1) as pool:
        with slow_steps():
            finishing = pool.submit(server.post, "/v1/completions", body)
            server.wait(lambda: server.stats.num_running == 1, "the request to run")
            assert admin.delete(f"{URL}/versions/2").status_code == 200
        assert finishing.result(60).json()["usage"]["completion_tokens"] == 600
        admin.put(URL, params={"activate": "0"}, files={"f": data["lora-2"]})
        with slow_steps():
            ending = pool.submit(server.post, "/v1/completions", {**body, "model": f"{NAME}@3", "max_tokens": 1900})
            server.wait(lambda: server.stats.num_running == 1, "the request to run")
            assert admin.delete(f"{URL}/versions/3?mode=force").status_code == 200
            assert "was removed" in error_of(ending.result(60), 404)["message"]


def test_a_stream_keeps_its_version_through_activation_and_rollback(
    server: Live, admin: httpx.Client, data: dict[str, bytes]
) -> None:
    options: dict[str, Any] = {"prompt": "x", "max_tokens": 400, "temperature": 0, "extra_body": STEADY}
    admin.put(URL, files={"f": data["lora"]})
    admin.put(URL, params={"activate": False}, files={"f": data["prefix"]})
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        alone = [client.completions.create(model=f"{NAME}@{n}", **options).choices[0].text for n in (1, 2)]
        with slow_steps():
            streams = [client.completions.create(model=f"{NAME}@{n}", stream=True, **options) for n in (1, 2)]
            pieces = [[next(iter(stream)).choices[0].text] for stream in streams]
            assert admin.patch(URL, json={"version": 2}).status_code == 200
            assert states(admin) == {1: "draining", 2: "live"}
            assert admin.post(f"{URL}/rollback").status_code == 200, "back to one that drains: it is called back"
            assert states(admin) == {1: "live", 2: "draining"}
            assert admin.delete(f"{URL}/versions/2").status_code == 200
        for text, stream in zip(pieces, streams, strict=True):
            text += [chunk.choices[0].text for chunk in stream]
    assert ["".join(text) for text in pieces] == alone


def test_a_request_that_came_before_a_deletion_is_prepared_and_answered(
    server: Live, admin: httpx.Client, data: dict[str, bytes]
) -> None:
    """It may be deleted while its prompt is tokenized: between the lease and the engine."""
    admin.put(URL, params={"activate": False}, files={"f": data["prefix"]})
    asked = {"model": f"{NAME}@1", "prompt": "who?", "max_tokens": 4, "ignore_eos": True}
    body, context = CompletionBody.model_validate(asked), server.context

    async def late() -> tuple[Job, list[RequestOutput]]:
        with context.registry.lease(asked_model(context.registry, body)) as lease:
            await context.lifecycle.remove_version(NAME, 1)
            job = await completion_job(context, body, lease.key, 0.0)
            return job, [output async for output in context.engine.submit(job.requests()[0])]

    job, outputs = asyncio.run_coroutine_threadsafe(late(), server.loop).result(60)
    assert job.adapter is not None
    assert sum(len(output.token_ids) for output in outputs) == 4
    assert outputs[-1].error is None


def test_refusals_say_what_to_do(server: Live, admin: httpx.Client, data: dict[str, bytes]) -> None:
    admin.put(URL, files={"f": data["lora"]})
    assert error_of(admin.patch(URL, json={}))["param"] == "version"
    for wrong in ({"version": 0}, {"version": "2"}, {"version": None}, {"version": 1, "expected_live": -1}, [1]):
        error_of(admin.patch(URL, json=wrong))
    canary = error_of(admin.patch(URL, json={"version": 1, "weights": {"1": 0.9}}))
    assert canary["param"] == "weights"
    assert "not supported" in canary["message"]
    assert admin.patch(URL, json={"version": 1, "whatever": 1}).status_code == 200, "unknown fields are ignored"
    assert "no version '9'" in error_of(admin.patch(URL, json={"version": 9}), 404)["message"]
    error_of(admin.patch("/v1/adapters/nobody", json={"version": 1}), 404)
    error_of(admin.post("/v1/adapters/nobody/rollback"), 404)
    assert "no version before 1" in error_of(admin.post(f"{URL}/rollback"))["message"]
    assert error_of(admin.post(f"{URL}/rollback", content=b"{"))["code"] == "invalid_json"
    assert error_of(admin.put(URL, files={"f": data["lora-2"]}, data={"activate": "perhaps"}))["param"] == "activate"
    admin.put(URL, params={"activate": False}, files={"f": data["lora-2"]})
    never = error_of(admin.post(f"{URL}/rollback", json={"version": 2}))
    assert "never been live" in never["message"]
    assert "PATCH" in never["message"]
    stale = admin.patch(URL, json={"version": 2, "expected_live": 7})
    error = error_of(stale, 409)
    assert (error["code"], error["param"]) == ("live_version_changed", "expected_live")
    assert stale.headers["x-should-retry"] == "false"
    big = admin.patch(URL, content=b" " * (9 << 20), headers={"content-type": "application/json"})
    assert error_of(big, 413)["code"] == "body_too_large"
    assert states(admin) == {1: "live", 2: "candidate"}


def test_only_admin_keys_may(base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    keys: dict[str, Any] = {scope: scope for scope in ("api_key", "admin_key")}
    with live_server(base, tmp_path / "data", adapters=((NAME, str(packages["lora"])),), **keys) as live:
        calls = (("PATCH", URL), ("POST", f"{URL}/rollback"), ("DELETE", f"{URL}/versions/1"))
        for scope, status in ((None, 401), ("api_key", 403), ("admin_key", None)):
            with live.http(**({"authorization": f"Bearer {scope}"} if scope else {})) as http:
                for method, url in calls:
                    response = http.request(method, url, json={"version": 1} if method == "PATCH" else None)
                    assert response.status_code == status if status else response.status_code not in (401, 403)


def test_candidates_have_a_limit(base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    data = [archive(packages[name], tmp_path) for name in ("lora", "lora-2")]
    with live_server(base, tmp_path / "data", max_candidates=1) as live, live.http() as http:
        assert http.put(URL, params={"activate": "false"}, files={"f": data[0]}).status_code == 201
        error = error_of(http.put("/v1/adapters/b?activate=false", files={"f": data[1]}), 409)
        assert error["code"] == "too_many_candidates"
        assert f"{NAME}@1" in error["message"]
        assert "DELETE" in error["message"]
        assert http.delete(f"{URL}/versions/1").status_code == 200
        assert http.put("/v1/adapters/b?activate=false", files={"f": data[1]}).status_code == 201


def test_changes_leave_audit_lines(
    admin: httpx.Client, data: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    admin.put(URL, files={"f": data["lora"]})
    admin.put(URL, params={"activate": False}, files={"f": data["lora-2"]})
    admin.patch(URL, json={"version": 2, "expected_live": 9})
    admin.patch(URL, json={"version": 2})
    admin.patch(URL, json={"version": 2})
    admin.post(f"{URL}/rollback")
    admin.delete(f"{URL}/versions/1")
    admin.delete(f"{URL}/versions/2")
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]
    actions = ["load", "candidate", "refuse", "activate", "unchanged", "rollback", "refuse", "remove_version"]
    assert [line["action"] for line in lines] == actions
    assert {line["adapter"] for line in lines} == {NAME}
    assert [line.get("version") for line in lines] == [1, 2, 2, 2, 2, 1, 1, 2]
    assert [line.get("replaced") for line in lines] == [None, None, None, 1, None, 2, None, None]


def test_nothing_fails_or_mixes_while_everything_changes(
    server: Live, admin: httpx.Client, base: Path, packages: dict[str, Path], data: dict[str, bytes]
) -> None:
    """Requests to the name and its candidates, whole and streamed, while versions come, flip and go."""
    names = ("lora", "lora-2", "prefix", "prompt")
    texts = {name: wanted(base, packages[name]) for name in names}
    assert len(set(texts.values())) == len(names)
    content: dict[int, str] = {1: "lora"}  # what each version must answer
    assert admin.put(URL, files={"f": data["lora"]}).status_code == 201
    stop, problems, counts = threading.Event(), [], [0, 0, 0, 0]

    def traffic(user: int) -> None:
        body: dict[str, Any] = {"prompt": "who?", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        with server.http() as http:
            while not stop.is_set():
                response = http.post("/v1/completions", json={**body, "model": NAME})
                if response.status_code != 200:
                    problems.append(response.text)
                    return
                version = int(response.headers["x-hotswap-adapter"].partition("@")[2])
                text = response.json()["choices"][0]["text"]
                if text != texts[content[version]]:
                    problems.append(f"version {version} ({content[version]}) answered {text!r}")
                counts[user] += 1

    threads = [threading.Thread(target=traffic, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    dice = random.Random(11)
    live = last = 1
    for turn in range(24):
        chosen = dice.choice([name for name in names if name != content[live]])
        last += 1
        content[last] = chosen  # before anybody can be answered by it
        body = admin.put(URL, params={"activate": False}, files={"f": data[chosen]}).json()
        assert (body["version"], body["state"]) == (last, "candidate")
        assert answer(server, f"{NAME}@{last}") == texts[chosen]
        match turn % 3:
            case 0:
                assert admin.patch(URL, json={"version": last, "expected_live": live}).status_code == 200
                live = last
            case 1:
                assert admin.patch(URL, json={"version": last}).status_code == 200
                assert admin.post(f"{URL}/rollback").json()["version"] == live
                assert admin.delete(f"{URL}/versions/{last}").status_code == 200
            case _:
                assert admin.delete(f"{URL}/versions/{last}", params={"mode": "force"}).status_code == 200
        assert not problems, problems
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not problems, problems
    assert min(counts) > 5
