from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hotswap.cli import main
from server.catalog.database.database import sqlite_url
from server.catalog.keys import KEY_PATTERN
from tests.server.live import Live, live_server, wait_until

ROOT = "root-of-all"
Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``hotswap keys`` and return what it printed: output and errors."""

    def call(*argv: str, code: int = 0) -> tuple[str, str]:
        try:
            returned = main(["keys", *argv])
        except SystemExit as end:
            returned = int(end.code or 0)
        out, err = capsys.readouterr()
        assert returned == code, err
        assert "Traceback" not in err
        return out, err

    return call


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def live(tiny_base: Path, data_dir: Path) -> Iterator[Live]:
    with live_server(tiny_base, data_dir, admin_key=ROOT) as made:
        yield made


@pytest.fixture(params=["server", "catalog"])
def place(
    request: pytest.FixtureRequest, live: Live, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """The same keys, by the server and beside it."""
    if request.param == "catalog":
        return ("--data-dir", str(data_dir))
    monkeypatch.setenv("HOTSWAP_ADMIN_KEY", ROOT)
    return ("--url", live.url)


def may(live: Live, key: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    wait_until(lambda: httpx.get(f"{live.url}/v1/models", headers=headers).status_code == status, f"a {status}")


def asked(run: Run, *argv: str) -> Any:
    return json.loads(run(*argv, "--json")[0])


def test_the_life_of_a_key(run: Run, live: Live, place: tuple[str, ...]) -> None:
    out, err = run("create", "team-a", "--adapter", "team-a-*", "--adapter", "shared", "--no-base", "--rpm", "600",
                   "--expires", "90d", *place)  # fmt: skip
    key = out.strip()
    assert KEY_PATTERN.fullmatch(key), "a script takes it from standard output"
    assert key not in err
    may(live, key, 200)
    shown = asked(run, "show", "team-a", *place)
    assert shown["adapters"] == ["team-a-*", "shared"]
    assert (shown["base"], shown["scopes"], shown["state"]) == (False, ["inference"], "active")
    assert shown["limits"]["requests_per_minute"] == 600
    assert 89.9 < (shown["expires"] - shown["created"]) / 86400 < 90.1
    run("update", "team-a", "--all-adapters", "--base", "--rpm", "default", "--tpm", "5", "--expires", "never", *place)
    changed = asked(run, "show", shown["id"], *place)
    assert (changed["adapters"], changed["base"], changed["expires"]) == (None, True, None)
    assert (changed["limits"]["requests_per_minute"], changed["limits"]["tokens_per_minute"]) == (None, 5)
    new = run("rotate", "team-a", "--grace", "1h", *place)[0].strip()
    for good in (key, new):
        may(live, good, 200)
    newest = run("rotate", "team-a", *place)[0].strip()
    for gone in (key, new):
        may(live, gone, 401)
    may(live, newest, 200)
    out, _ = run("revoke", "team-a", *place)
    assert "revoked" in out
    may(live, newest, 401)
    assert "there is no key 'team-a'" in run("show", "team-a", *place, code=1)[1]
    assert run("revoke", "team-a", "--forget", *place)[0].endswith("is forgotten\n")
    told = asked(run, "events", "--name", shown["id"], "--limit", "9", "--since", "1h", *place)["data"]
    actions = ["create", "update", "rotate", "rotate", "revoke", "forget"]
    assert [event["action"] for event in told[::-1]] == [f"key.{action}" for action in actions]
    assert {event["actor"] for event in told} == {"flag" if "--url" in place else "local"}


def test_tables(run: Run, place: tuple[str, ...]) -> None:
    key = run("create", "a reader", "--scope", "read-only", "--no-adapters", *place)[0].strip()
    table, _ = run("list", "--state", "active", *place)
    header, *rows = table.splitlines()
    assert header.split()[:3] == ["ID", "NAME", "KEY"]
    (row,) = [row for row in rows if "a reader" in row]
    assert f"hs-...{key[-4:]}" in row
    assert "read-only" in row
    assert "none" in row
    assert key not in table
    events, _ = run("events", "--action", "key.create", *place)
    assert "label a reader" in events
    run("revoke", "a reader", *place)
    run("revoke", "a reader", "--forget", *place)


def test_a_key_goes_into_a_file_of_its_owner(run: Run, place: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "key"
    out, err = run("create", "filed", "--out", str(path), *place)
    assert KEY_PATTERN.fullmatch(path.read_text().strip())
    assert path.read_text().strip() not in out + err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = asked(run, "list", *place)
    for bad in (path, tmp_path / "nowhere" / "key"):
        assert "--out" in run("create", "other", "--out", str(bad), *place, code=1)[1]
        assert "--out" in run("rotate", "filed", "--out", str(bad), *place, code=1)[1]
    assert asked(run, "list", *place) == before, "no key that nobody knows"
    run("revoke", "filed", *place)
    run("revoke", "filed", "--forget", *place)


def test_names_that_mean_several(run: Run, place: tuple[str, ...]) -> None:
    for _ in range(2):
        run("create", "twin", *place)
    _, err = run("revoke", "twin", *place, code=1)
    assert "several keys are called 'twin'" in err
    for key in asked(run, "list", "--state", "active", *place)["data"]:
        if key["name"] == "twin":
            run("revoke", key["id"], *place)
            run("revoke", key["id"], "--forget", *place)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["create", "a\nb"], 1, "name"),
        (["create", "n", "--adapter", "a b"], 1, "adapters"),
        (["create", "n", "--expires", "1999-01-01"], 1, "expires"),
        (["create", "n", "--expires", "soon"], 2, "--expires"),
        (["create", "n", "--rpm", "0"], 1, "limits.requests_per_minute: must be at least 1"),
        (["create", "n", "--rpm", "-1"], 2, "--rpm"),
        (["create", "n", "--scope", "root"], 2, "--scope"),
        (["create"], 2, "NAME"),
        (["rotate", "n", "--grace", "5"], 2, "--grace"),
        (["rotate", "none-such"], 1, "there is no key 'none-such'"),
        (["update", "none-such"], 1, "say what to change"),
        (["update", "none-such", "--name", "x"], 1, "there is no key"),
        (["events", "--since", "whenever"], 2, "--since"),
        (["destroy"], 2, "destroy"),
    ],
)
def test_mistakes(run: Run, place: tuple[str, ...], argv: list[str], code: int, words: str) -> None:
    placed = [*argv, *place] if argv != ["destroy"] else argv
    _, err = run(*placed, code=code)
    assert words in err.splitlines()[-1]


def test_the_first_key_needs_no_server(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "new" / "data"
    key = run("create", "ops", "--scope", "admin", "--data-dir", str(folder))[0].strip()
    stored = b"".join(path.read_bytes() for path in folder.iterdir())
    assert key.encode() not in stored
    with live_server(tiny_base, folder) as live:
        assert httpx.get(f"{live.url}/v1/keys").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{live.url}/v1/keys", headers=headers).json()["data"][0]["name"] == "ops"


def test_the_users_own_catalog(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSWAP_DATA_DIR", str(tmp_path / "own"))
    run("create", "a", "--local")
    assert "a" in run("list", "--local")[0]
    assert sqlite3.connect(tmp_path / "own" / "catalog.db").execute("SELECT count(*) FROM keys").fetchone() == (1,)
    monkeypatch.setenv("HOTSWAP_CATALOG", sqlite_url(tmp_path))
    assert run("list", "--local")[0] == "there are no keys\n"
    assert asked(run, "list", "--catalog", sqlite_url(tmp_path / "own"))["data"][0]["name"] == "a"


def test_who_may_not(run: Run, live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HOTSWAP_ADMIN_KEY", raising=False)
    assert "API key" in run("list", "--url", live.url, code=1)[1]
    (tmp_path / "wrong").write_text("a-guess\n")
    _, err = run("list", "--url", live.url, "--admin-key-file", str(tmp_path / "wrong"), code=1)
    assert "a-guess" not in err
    (tmp_path / "right").write_text(f"{ROOT}\n")
    run("list", "--url", live.url, "--admin-key-file", str(tmp_path / "right"))


def test_places_that_hold_no_catalog(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for argv in (
        ["--data-dir", str(tmp_path / "file")],
        ["--catalog", "mysql://x"],
        ["--catalog", "sqlite:////no/x.db"],
    ):
        _, err = run("list", *argv, code=1)
        assert len(err.splitlines()) == 1
