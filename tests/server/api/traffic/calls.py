"""How the tests of shared-out requests ask a server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.server.live import Live

BODY: dict[str, Any] = {"prompt": "who?", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


def url(name: str, verb: str = "") -> str:
    return f"/v1/adapters/{name}{verb and '/'}{verb}"


def patch(admin: httpx.Client, name: str, **fields: Any) -> dict[str, Any]:
    response = admin.patch(url(name), json=fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def traffic(admin: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = admin.get(url(name)).json()["traffic"]
    return found


def states(admin: httpx.Client, name: str) -> dict[int, str]:
    return {version["version"]: version["state"] for version in admin.get(url(name)).json()["versions"]}


def ask(http: httpx.Client, name: str, user: Any = None, **fields: Any) -> tuple[int, str]:
    """The version that answered, and its text."""
    body = {**BODY, "model": name, **fields} | ({"user": user} if user else {})
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    said = response.headers["x-hotswap-adapter"]
    assert response.json()["system_fingerprint"].endswith(f":{said}")
    return int(said.partition("@")[2]), response.json()["choices"][0]["text"]


def ask_all(live: Live, name: str, users: list[str | None]) -> list[int]:
    """Who answered each."""
    with live.http() as http, ThreadPoolExecutor(8) as pool:
        return [version for version, _ in pool.map(lambda user: ask(http, name, user, max_tokens=1), users)]


def look(live: Live) -> None:
    """Judge now."""
    asyncio.run_coroutine_threadsafe(live.context.watch.look(), live.loop).result(30)


def settled(live: Live, admin: httpx.Client, name: str, copies: int) -> dict[str, Any]:
    """What is known of the shadow once so many copies were answered, dropped or failed."""

    def done() -> bool:
        found = traffic(admin, name)["shadow"]
        return bool(found["copies"] + found["dropped"] + found["failed"] == copies)

    live.wait(done, f"{copies} copies")
    shadow: dict[str, Any] = traffic(admin, name)["shadow"]
    return shadow
