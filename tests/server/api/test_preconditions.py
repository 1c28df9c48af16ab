"""ETag, If-Match and If-None-Match: nobody overwrites what somebody else has changed meanwhile."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from server.api.error_responses import ApiError
from server.api.preconditions import read_guard
from server.catalog.guard import ANY, Guard
from tests.server.api.support import archive, error_of
from tests.server.live import Live, live_server

Make = Callable[..., str]
STALE = '"0123456789abcdef"'


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests, each of which uses a name of its own."""
    with live_server(base, tmp_path_factory.mktemp("guarded")) as live:
        yield live


@pytest.fixture
def admin(server: Live) -> Iterator[httpx.Client]:
    with server.http() as http:
        yield http


@pytest.fixture(scope="module")
def data(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Archives by the names of packages."""
    folder = tmp_path_factory.mktemp("archives")
    return {name: archive(packages[name], folder) for name in ("lora", "lora-2")}


@pytest.fixture
def url(admin: httpx.Client, data: dict[str, bytes], request: pytest.FixtureRequest) -> Iterator[str]:
    """A name with version 1 live and version 2 a candidate."""
    path = f"/v1/adapters/{re.sub('[^a-z]+', '-', request.node.name).strip('-')}"
    assert admin.put(path, files={"f": data["lora"]}).status_code == 201
    assert admin.put(path, params={"activate": False}, files={"f": data["lora-2"]}).status_code == 201
    yield path
    admin.delete(path, params={"mode": "force"})


def tag(admin: httpx.Client, url: str) -> str:
    response = admin.get(url)
    etag: str = response.headers["etag"]
    assert etag.startswith('"'), "a strong one"
    assert etag.endswith('"')
    assert response.json()["etag"] == etag
    return etag


def live(admin: httpx.Client, url: str) -> int | None:
    number: int | None = admin.get(url).json()["version"]
    return number


# ---- the headers themselves ----


def guard(*lines: str, header: str = "if-match") -> Any:
    request = Request({"type": "http", "headers": [(header.encode(), line.encode("latin-1")) for line in lines]})
    run = read_guard(request)
    try:
        run.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for nothing")


@pytest.mark.parametrize(
    ("lines", "tags"),
    [
        (['"a"'], {'"a"'}),
        (['"a", "b"', 'W/"c"'], {'"a"', '"b"', 'W/"c"'}),
        ([' ,"a,b" ,\t,"" , '], {'"a,b"', '""'}),
        (['"\xe9~!#"'], {'"\xe9~!#"'}),
        ([" * "], ANY),
    ],
)
def test_lists_of_tags(lines: list[str], tags: set[str]) -> None:
    assert guard(*lines) == Guard(if_match=frozenset(tags))
    assert guard(*lines, header="if-none-match") == Guard(if_none_match=frozenset(tags))


@pytest.mark.parametrize(
    "lines",
    [
        ["a"],
        [""],
        [","],
        ['"a'],
        ['"a" "b"'],
        ['"a"b'],
        ['w/"a"'],
        ['W/ "a"'],
        ['*, "a"'],
        ['"a"', "*"],
        ['"a b"'],
        ["**"],
    ],
)
@pytest.mark.parametrize("header", ["if-match", "if-none-match"])
def test_what_is_no_list_of_tags(lines: list[str], header: str) -> None:
    with pytest.raises(ApiError, match="is malformed: write") as refused:
        guard(*lines, header=header)
    assert refused.value.status == 400
    assert str(refused.value.param).lower() == header


# ---- what a tag says ----


def test_a_tag_is_of_what_operators_decide(admin: httpx.Client, url: str, data: dict[str, bytes]) -> None:
    seen = [tag(admin, url)]

    def changed(response: httpx.Response) -> None:
        assert response.is_success, response.text
        assert response.headers["etag"] == tag(admin, url), "the answer has the tag of what it made"
        seen.append(response.headers["etag"])
        assert len(set(seen)) == len(seen), "and it is a new one"

    changed(admin.patch(url, json={"version": 2}))
    changed(admin.post(f"{url}/rollback"))
    changed(admin.patch(url, json={"weight": 2.0}))
    changed(admin.patch(url, json={"pinned": True}))
    changed(admin.delete(f"{url}/versions/2"))
    changed(admin.put(url, files={"f": data["lora-2"]}))
    changed(admin.put(url, params={"activate": False}, files={"f": data["lora"]}))
    removed = admin.delete(url)
    assert removed.is_success
    assert removed.headers["etag"] not in seen


def test_what_changes_nothing_leaves_the_tag(admin: httpx.Client, url: str, data: dict[str, bytes]) -> None:
    before = tag(admin, url)
    for response in (
        admin.put(url, files={"f": data["lora"]}),
        admin.patch(url, json={"version": 1}),
        admin.patch(url, json={"weight": 1.0}),
        admin.get(url),
    ):
        assert response.status_code == 200
        assert response.headers["etag"] == before
    assert admin.patch(url, json={"version": 9}).status_code == 404
    assert admin.put(url, files={"f": b"nonsense"}).status_code == 400
    assert tag(admin, url) == before
    listed = {one["name"]: one["etag"] for one in admin.get("/v1/adapters").json()["data"]}
    assert listed[url.rpartition("/")[2]] == before


def test_a_client_that_has_it_is_not_told_again(admin: httpx.Client, url: str) -> None:
    etag = tag(admin, url)
    for names in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        response = admin.get(url, headers={"If-None-Match": names})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    admin.patch(url, json={"priority": 3})
    assert admin.get(url, headers={"If-None-Match": etag}).json()["priority"] == 3
    assert error_of(admin.get(url, headers={"If-Match": etag}), 412)["code"] == "precondition_failed"
    error_of(admin.get("/v1/adapters/nobody", headers={"If-None-Match": "*"}), 404)
    error_of(admin.get(url, headers={"If-None-Match": "x"}), 400)


# ---- guarded changes ----


def changes(url: str, data: dict[str, bytes]) -> dict[str, Callable[[httpx.Client, dict[str, str]], httpx.Response]]:
    """Every call that changes a name, by what it does."""
    name = url.rpartition("/")[2]
    one = {"f": data["lora-2"]}
    return {
        "activate": lambda http, headers: http.patch(url, json={"version": 2}, headers=headers),
        "set": lambda http, headers: http.patch(url, json={"weight": 3}, headers=headers),
        "rollback": lambda http, headers: http.post(f"{url}/rollback", headers=headers),
        "put": lambda http, headers: http.put(url, files=one, headers=headers),
        "post": lambda http, headers: http.post(f"/v1/adapters?name={name}&replace=true", files=one, headers=headers),
        "field": lambda http, headers: http.post(
            "/v1/adapters", files=one, data={"name": name, "replace": "true"}, headers=headers
        ),
        "delete a version": lambda http, headers: http.delete(f"{url}/versions/2", headers=headers),
        "delete": lambda http, headers: http.delete(url, headers=headers),
    }


@pytest.mark.parametrize("change", list(changes("", {"lora-2": b""})))
def test_every_change_is_guarded(
    admin: httpx.Client, url: str, data: dict[str, bytes], change: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    if change == "rollback":
        admin.patch(url, json={"version": 2})
    call, body = changes(url, data)[change], admin.get(url).json()
    for headers in ({"If-Match": STALE}, {"If-Match": f"W/{body['etag']}"}, {"If-None-Match": "*"}):
        refused = call(admin, headers)
        error = error_of(refused, 412)
        assert (error["code"], error["param"]) == ("precondition_failed", next(iter(headers)))
        assert refused.headers["etag"] == body["etag"]
        assert f"serves version {body['version']} now, its ETag is {body['etag']}" in error["message"]
    assert tag(admin, url) == body["etag"], "nothing has happened"
    error_of(call(admin, {"If-Match": "x"}), 400)
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]
    assert [line["action"] for line in lines][-3:] == ["refuse"] * 3
    done = call(admin, {"If-Match": f"{STALE}, {body['etag']}", "If-None-Match": STALE})
    assert done.is_success, done.text
    assert done.headers["etag"] != body["etag"]


def test_names_that_are_not_there(admin: httpx.Client, url: str, data: dict[str, bytes]) -> None:
    new, one = f"{url}.new", {"f": data["lora"]}
    for headers in ({"If-Match": "*"}, {"If-Match": STALE}):
        assert "there is no adapter" in error_of(admin.put(new, files=one, headers=headers), 412)["message"]
        for response in (
            admin.patch(new, json={"weight": 2}, headers=headers),
            admin.delete(new, headers=headers),
            admin.post(f"{new}/rollback", headers=headers),
        ):
            error_of(response, 404)
    made = admin.put(new, files=one, headers={"If-None-Match": "*"})
    assert made.status_code == 201
    error_of(admin.put(new, files=one, headers={"If-None-Match": "*"}), 412)
    gone = admin.delete(new)
    error_of(admin.put(new, files=one, headers={"If-Match": made.headers["etag"]}), 412)
    assert admin.put(new, files=one, headers={"If-Match": gone.headers["etag"]}).json()["version"] == 2
    assert admin.delete(new).is_success
    assert admin.put(new, files=one, headers={"If-None-Match": "*"}).json()["version"] == 3


def test_an_upload_is_refused_before_it_is_read(admin: httpx.Client, url: str) -> None:
    headers = {"If-Match": STALE, "content-type": "text/plain"}
    assert error_of(admin.put(url, content=b"never looked at", headers=headers), 412)["code"] == "precondition_failed"


def test_uploads_take_the_version_that_is_expected(admin: httpx.Client, url: str, data: dict[str, bytes]) -> None:
    two = {"f": data["lora-2"]}
    assert error_of(admin.put(url, params={"expected_live": 2}, files=two), 409)["code"] == "live_version_changed"
    assert error_of(admin.put(url, files=two, data={"expected_live": "0"}), 409)["param"] == "expected_live"
    assert error_of(admin.put(url, files=two, data={"expected_live": "x"}))["param"] == "expected_live"
    assert admin.put(url, files=two, data={"expected_live": "1"}).json()["version"] == 2
    assert admin.put(url, params={"expected_live": 1}, files=two).status_code == 200, "it was repeated"


def test_of_many_at_once_one_wins(server: Live, admin: httpx.Client, url: str) -> None:
    etag = tag(admin, url)

    def change(weight: int) -> int:
        with server.http() as http:
            return http.patch(url, json={"weight": weight}, headers={"If-Match": etag}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(change, range(2, 10))) == [200] + [412] * 7
