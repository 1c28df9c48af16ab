"""How the tests of keys ask a server."""

from __future__ import annotations

from typing import Any

import httpx

from tests.server.live import Live

ROOT = "root-of-all"
CLIENTS: list[httpx.Client] = []  # one for all calls: to make one takes longer than most calls


def call(server: Live, key: str | None, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    return CLIENTS[0].request(method, server.url + path, headers=headers, **options)


def create(server: Live, admin: str = ROOT, **body: Any) -> dict[str, Any]:
    response = call(server, admin, "POST", "/v1/keys", json={"name": "a key", **body})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def completion(server: Live, key: str | None, **body: Any) -> httpx.Response:
    return call(server, key, "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 1, **body})
