"""Two servers of one catalog and one store: each sees what the other changes, and goes on without the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from server.catalog.database import asking
from tests.server.api.support import answer, error_of, wanted
from tests.server.catalog.databases import PostgreSQL, postgresql
from tests.server.live import Live, live_server

SEEN_SECONDS = 2.0
SLACK = 8.0  # for machines that do much else


@pytest.fixture(scope="module")
def found() -> Iterator[PostgreSQL | str]:
    with postgresql() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, found: PostgreSQL | str) -> str:
    if request.param == "sqlite":
        return ""
    if isinstance(found, str):
        pytest.skip(found)
    return found.new_url()


@pytest.fixture
def two(tiny_base: Path, tmp_path: Path, url: str) -> Iterator[tuple[Live, Live]]:
    with ExitStack() as stack:
        one, other = (stack.enter_context(live_server(tiny_base, tmp_path, catalog=url)) for _ in range(2))
        yield one, other


def soon(seen: Callable[[], bool], what: str) -> float:
    """How long it took until ``seen``."""
    begin = time.monotonic()
    while not seen():
        assert time.monotonic() - begin < SEEN_SECONDS + SLACK, what
        time.sleep(0.02)
    return time.monotonic() - begin


def upload(live: Live, name: str, package: Path, **options: Any) -> dict[str, Any]:
    files = [("files", (file.name, file.read_bytes())) for file in sorted(package.iterdir())]
    with live.http() as http:
        done = http.put(f"/v1/adapters/{name}", files=files, params=options)
    assert done.is_success, done.text
    body: dict[str, Any] = done.json()
    return body


def served(live: Live) -> dict[str, Any]:
    with live.http() as http:
        return {entry["name"]: entry["version"] for entry in http.get("/v1/adapters").json()["data"]}


def test_each_sees_what_the_other_changes(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], two: tuple[Live, Live]
) -> None:
    one, other = two
    first, second = tiny_adapters["lora-r8"], tiny_adapters["lora-r4"]
    upload(one, "json", first)
    took = [soon(lambda: served(other) == {"json": 1}, "an upload to be seen")]
    assert answer(other, "json") == answer(one, "json") == wanted(tiny_base, first)

    assert upload(other, "json", second)["version"] == 2
    took.append(soon(lambda: served(one) == {"json": 2}, "a next version to be seen"))
    assert answer(one, "json") == answer(other, "json") == wanted(tiny_base, second)

    with one.http() as http:
        assert http.post("/v1/adapters/json/rollback").json()["version"] == 1
        # the other one may not have seen it yet; a guard is held against what is true
        stale = http.patch("/v1/adapters/json", json={"version": 2, "expected_live": 2})
        assert error_of(stale, 409)["code"] == "live_version_changed"
    with other.http() as http:
        assert error_of(http.patch("/v1/adapters/json", json={"version": 2, "expected_live": 2}), 409)
    took.append(soon(lambda: served(other) == {"json": 1}, "a rollback to be seen"))
    assert answer(other, "json") == wanted(tiny_base, first)

    with other.http() as http:
        assert http.delete("/v1/adapters/json").is_success
    took.append(soon(lambda: served(one) == {}, "a removal to be seen"))
    assert error_of(one.post("/v1/completions", {"model": "json", "prompt": "x"}), 404)["code"] == "model_not_found"
    assert min(took) < SEEN_SECONDS, "what takes longer than two seconds is the machine"
    for live in two:
        live.wait(lambda live=live: live.stats.adapters_resident == 0, "the adapters to be gone")  # type: ignore[misc]


def test_both_at_once_never_mix(tiny_base: Path, tiny_adapters: Mapping[str, Path], two: tuple[Live, Live]) -> None:
    """Both upload to one name: numbers are given once, and in the end both serve the same."""
    names = ("lora-r8", "lora-r4", "ia3", "lora-r8")
    numbers = [upload(two[turn % 2], "json", tiny_adapters[name])["version"] for turn, name in enumerate(names)]
    assert numbers == [1, 2, 3, 4]
    soon(lambda: served(two[0]) == served(two[1]) == {"json": 4}, "both to serve the last")
    assert answer(two[0], "json") == answer(two[1], "json") == wanted(tiny_base, tiny_adapters["lora-r8"])


def test_a_database_that_goes_away(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path, found: PostgreSQL | str
) -> None:
    if isinstance(found, str):
        pytest.skip(found)
    with live_server(tiny_base, tmp_path, catalog=found.new_url()) as live:
        upload(live, "json", tiny_adapters["lora-r8"])
        before = answer(live, "json")
        found.stop()
        try:
            with live.http() as http:
                refused = http.delete("/v1/adapters/json")
                assert error_of(refused, 503)["code"] == "catalog_unavailable"
                assert "Retry-After" in refused.headers
                assert http.get("/v1/adapters/json").json()["version"] == 1
                assert http.get("/ready").is_success
            assert answer(live, "json") == before
        finally:
            found.start()
        assert upload(live, "json", tiny_adapters["lora-r4"])["version"] == 2
        assert answer(live, "json") == wanted(tiny_base, tiny_adapters["lora-r4"])


def test_a_database_that_hangs(
    tiny_base: Path,
    tiny_adapters: Mapping[str, Path],
    tmp_path: Path,
    found: PostgreSQL | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isinstance(found, str):
        pytest.skip(found)
    with live_server(tiny_base, tmp_path, catalog=found.new_url()) as live:
        upload(live, "json", tiny_adapters["lora-r8"])
        before = answer(live, "json")
        monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.3)
        with found.hanging(), live.http() as http:
            for _ in range(6):  # more than there are threads that wait for it
                assert error_of(http.delete("/v1/adapters/json"), 503)["code"] == "catalog_unavailable"
            assert answer(live, "json") == before
            assert http.get("/ready").is_success
        monkeypatch.undo()
        # what was asked for may come true now, or not; what is told then is so
        soon(lambda: served(live) in ({}, {"json": 1}), "the catalog to answer")
        upload(live, "other", tiny_adapters["lora-r4"])
        assert answer(live, "other") == wanted(tiny_base, tiny_adapters["lora-r4"])
