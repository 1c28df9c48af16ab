"""The files of the console are served with their policy, and hold nothing from elsewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from server.console.pages import POLICY, STATIC, static_files
from tests.server.api.support import error_of
from tests.server.live import Live

FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
PROJECT = Path(__file__).resolve().parents[3]
NAMESPACE = "http://www.w3.org/2000/svg"
MARKUP = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "javascript:")


def test_the_page_is_served_with_a_strict_policy(live: Live) -> None:
    with live.http() as http:
        page = http.get("/console")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == POLICY
        assert "unsafe" not in POLICY
        assert page.headers["x-content-type-options"] == "nosniff"
        assert http.head("/console").status_code == 200
        linked = re.findall(r'(?:src|href)="(console/[^"]+)"', page.text)
        assert len(linked) > 5
        for path in linked:
            assert http.get(f"/{path}").status_code == 200, path
        script = http.get("/console/app.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert script.headers["content-security-policy"] == POLICY
        again = http.get("/console/app.js", headers={"If-None-Match": script.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_its_addresses_are_relative_to_one_place(live: Live) -> None:
    with live.http() as http:
        moved = http.get("/console/")
        assert (moved.status_code, moved.headers["location"]) == (308, "../console")
        assert error_of(http.get("/console/none.js"), 404)["code"] == "not_found"
        assert error_of(http.get("/console/../pages.py"), 404)["code"] == "not_found"
        assert error_of(http.get("/console/%2e%2e/pages.py"), 404)["code"] == "not_found"
        assert error_of(http.post("/console"), 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(STATIC).as_posix())
def test_a_file_names_nothing_elsewhere_and_writes_no_markup(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert not re.search(r"(?:https?:)?//[\w.-]+\.\w", re.sub(r"^\s*(//|\*).*$", "", text, flags=re.M)), (
        "an address elsewhere"
    )
    assert not [word for word in MARKUP if word in text]
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text), "inline script or style"


def test_all_files_are_served_and_shipped() -> None:
    assert len(static_files()) == len(FILES)
    shipped = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {path for pattern in shipped["server.console"] for path in STATIC.parent.glob(pattern) if path.is_file()}
    assert found == set(FILES)


def test_every_import_is_of_a_file_that_is_there() -> None:
    for path in FILES:
        for name in re.findall(r'from "(\.[^"]+)"', path.read_text(encoding="utf-8")) if path.suffix == ".js" else ():
            assert (path.parent / name).resolve() in FILES, f"{path.name} imports {name}"
