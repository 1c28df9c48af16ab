"""Requests of the soak: one answer, whole or as a stream, and how it went."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

PATH = "/v1/completions"
REQUEST_SECONDS = 300.0  # longer than any answer, and than an outage


def open_session(url: str) -> aiohttp.ClientSession:
    """A session that opens a connection for every request: none is idle when it should be counted."""
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        read_bufsize=2**20,
    )


@dataclass
class Reply:
    """What became of a request. ``problem`` is empty for a whole answer; ``status`` 0 is none at all."""

    text: str = ""
    tokens: int = 0
    version: str | None = None
    status: int = 0
    problem: str = ""
    code: str | None = None  # of the error

    def fail(self, body: dict[str, Any]) -> None:
        """Take an error body."""
        self.problem, self.code = json.dumps(body)[:300], body["error"]["code"]


async def ask(session: aiohttp.ClientSession, body: dict[str, Any]) -> Reply:
    """One request; never raises for what server and network do."""
    reply = Reply()
    try:
        async with session.post(PATH, json=body) as response:
            reply.status, reply.version = response.status, response.headers.get("x-hotswap-adapter")
            if response.status != 200:
                reply.fail(await response.json(content_type=None))
            elif body.get("stream"):
                await _collect(response, reply)
            else:
                found = await response.json()
                reply.text, reply.tokens = found["choices"][0]["text"], found["usage"]["completion_tokens"]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        reply.problem = f"{type(error).__name__}: {error}"
    return reply


async def _collect(response: aiohttp.ClientResponse, reply: Reply) -> None:
    async for event, _ in events(response):
        if "error" in event:
            reply.fail(event)
            return
        if event.get("usage"):
            reply.tokens = event["usage"]["completion_tokens"]
        reply.text += "".join(choice["text"] for choice in event["choices"])


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[dict[str, Any], float]]:
    """Every event of a stream, with the seconds that it was waited for. Raises ValueError when there is no [DONE]."""
    before = time.monotonic()
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        now = time.monotonic()
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        yield json.loads(data), now - before
        before = now
    raise ValueError("the stream was cut off")


@asynccontextmanager
async def streaming(session: aiohttp.ClientSession, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
    """An answer that is being streamed; leaving the block hangs up."""
    async with session.post(PATH, json={**body, "stream": True}) as response:
        yield response
        response.close()
