"""Settings of a name over HTTP: what is taken, what is refused, and what they do to the versions that are kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.support import archive, error_of
from tests.server.live import Live, live_server

URL = "/v1/adapters/set"
LIMITS = {"requests_per_minute": 60, "tokens_per_minute": 10_000, "max_concurrency": 8, "max_queue": 0}
SETTINGS = {"pinned": True, "weight": 2.5, "priority": -1, "retention": 5, "idle_ttl_seconds": 600, "limits": LIMITS}
USUAL: dict[str, Any] = {
    "pinned": False,
    "weight": 1.0,
    "priority": 0,
    "retention": None,
    "idle_ttl_seconds": None,
    "limits": dict.fromkeys(LIMITS),
}


@pytest.fixture(scope="module")
def server(base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    adapters = [("set", str(packages["lora"]))]
    with live_server(base, tmp_path_factory.mktemp("settings"), adapters=adapters) as live:
        yield live


@pytest.fixture
def admin(server: Live) -> Iterator[httpx.Client]:
    """A client; the name has the usual settings afterwards."""
    with server.http() as http:
        yield http
        assert http.patch(URL, json=dict.fromkeys(SETTINGS)).status_code == 200


def settings(admin: httpx.Client) -> dict[str, Any]:
    body = admin.get(URL).json()
    return {name: body[name] for name in SETTINGS}


def test_what_is_set_is_shown_and_null_sets_it_back(admin: httpx.Client) -> None:
    assert settings(admin) == USUAL
    answer = admin.patch(URL, json=SETTINGS)
    assert answer.status_code == 200, answer.text
    assert settings(admin) == SETTINGS
    assert {name: answer.json()[name] for name in SETTINGS} == SETTINGS
    (listed,) = [one for one in admin.get("/v1/adapters").json()["data"] if one["name"] == "set"]
    assert {name: listed[name] for name in SETTINGS} == SETTINGS
    assert admin.patch(URL, json={"priority": None, "limits": {"max_queue": None}}).status_code == 200
    assert settings(admin) == {**SETTINGS, "priority": 0, "limits": {**LIMITS, "max_queue": None}}
    admin.patch(URL, json={"limits": None})
    assert settings(admin)["limits"] == USUAL["limits"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "version", "is missing"),
        ({"expected_live": 1}, "version", "is missing"),
        ({"wieght": 2}, "wieght", "did you mean `weight`?"),
        ({"weight": 2, "colour": "red"}, "colour", "known are expected_live"),
        ({"version": 1, "retentoin": 2}, "retentoin", "did you mean `retention`?"),
        ({"limits": {"rpm": 60}}, "limits", "known are requests_per_minute"),
        ({"limits": []}, "limits", "must be an object"),
        ({"pinned": 1}, "pinned", "true or false"),
        ({"weight": 0}, "weight", "at least"),
        ({"weight": "2"}, "weight", "a number"),
        ({"weight": 1e9}, "weight", "at most"),
        ({"priority": 1.5}, "priority", "an integer"),
        ({"retention": -1}, "retention", "at least 0"),
        ({"idle_ttl_seconds": -1}, "idle_ttl_seconds", "at least 0"),
        ({"limits": {"requests_per_minute": -1}}, "limits.requests_per_minute", "at least 0"),
        ({"limits": {"max_queue": True}}, "limits.max_queue", "an integer"),
        ({"version": 1, "weight": 2}, "weight", "changes of one kind"),
    ],
)
def test_what_cannot_be_set_changes_nothing(admin: httpx.Client, body: dict[str, Any], param: str, words: str) -> None:
    error = error_of(admin.patch(URL, json=body))
    assert error["param"] == param
    assert words in error["message"]
    assert settings(admin) == USUAL


def test_settings_take_an_expected_version_and_are_audited(
    admin: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    assert error_of(admin.patch(URL, json={"weight": 2, "expected_live": 0}), 409)["code"] == "live_version_changed"
    assert admin.patch(URL, json={"weight": 2, "expected_live": 1}).status_code == 200
    assert admin.patch(URL, json={"weight": 2}).status_code == 200
    error_of(admin.patch("/v1/adapters/nobody", json={"weight": 2}), 404)
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]
    assert [line["action"] for line in lines] == ["refuse", "set", "unchanged", "refuse"]
    assert lines[1]["settings"] == {"weight": 2.0}


def test_a_name_keeps_as_many_versions_as_it_is_told(
    server: Live, admin: httpx.Client, packages: dict[str, Path], tmp_path: Path
) -> None:
    url = "/v1/adapters/kept"
    data = {name: archive(packages[name], tmp_path) for name in ("lora", "lora-2", "prompt")}
    for package in data.values():
        assert "evicted" not in admin.put(url, files={"f": package}).json()
    admin.patch(url, json={"retention": 2})
    assert len(admin.get(url).json()["versions"]) == 3, "with the next upload"
    assert admin.put(url, files={"f": data["lora"]}).json()["evicted"] == [1, 2]
    assert [one["version"] for one in admin.get(url).json()["versions"]] == [3, 4]
    admin.patch(url, json={"retention": 0})
    assert "evicted" not in admin.put(url, files={"f": data["lora-2"]}).json()
    assert admin.delete(url).is_success
    assert admin.put(url, files={"f": data["lora"]}).json()["version"] == 6
    assert admin.get(url).json()["retention"] is None, "a name that was removed begins anew"
