"""Paths and methods: slashes behind, HEAD, and what a path takes."""

from __future__ import annotations

import pytest

from tests.server.api.support import error_of
from tests.server.live import Live

READ = ["/v1/models", "/v1/models/lora", "/v1/adapters", "/v1/adapters/lora", "/health", "/ready", "/version"]


@pytest.mark.parametrize("path", READ)
def test_a_slash_behind_a_path_changes_nothing(server: Live, path: str) -> None:
    with server.http() as http:
        plain, slashed = http.get(path), http.get(f"{path}/")
    assert slashed.status_code == plain.status_code == 200
    assert slashed.json() == plain.json()


def test_posts_with_a_slash_behind(server: Live) -> None:
    for path in ("/v1/completions/", "/v1/completions///"):
        assert server.post(path, {"prompt": "x", "max_tokens": 1}).status_code == 200
    error_of(server.post("/v1/nothing/", {}), 404)
    error_of(server.post("/", {}), 404)


@pytest.mark.parametrize("path", [*READ, "/v1/models/", "/metrics"])
def test_head(server: Live, path: str) -> None:
    with server.http() as http:
        head, get = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_head_of_what_is_missing(server: Live) -> None:
    with server.http() as http:
        assert http.head("/v1/models/nobody").status_code == 404
        assert http.head("/v1/completions").status_code == 405
        assert http.get("/health").json() == {"status": "ok"}  # the connection is in order


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/adapters/lora", "GET, PUT, PATCH, DELETE, HEAD"),
        ("DELETE", "/v1/adapters", "GET, POST, HEAD"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/models/lora", "GET, DELETE, HEAD"),
        ("GET", "/v1/completions", "POST"),
        ("GET", "/v1/completions/", "POST"),
        ("PUT", "/v1/adapters/lora/versions/1", "GET, DELETE, HEAD"),
    ],
)
def test_a_wrong_method_is_told_all_that_are_right(server: Live, method: str, path: str, allowed: str) -> None:
    with server.http() as http:
        response = http.request(method, path)
    error = error_of(response, 405)
    assert response.headers["allow"] == allowed
    assert error["message"] == f"{path.rstrip('/')} does not take {method}; it takes {allowed}"


def test_a_long_path_makes_a_short_error(server: Live) -> None:
    with server.http() as http:
        assert len(http.get(f"/{'x' * 20_000}").content) < 500
