"""A tiny real OpenAI-compatible server for the load test's tests; the model name says how it behaves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

MODELS = ["good", "other"]


@dataclass
class Seen:
    """What the server was asked."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    per_model: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def tiny_server(together: int = 1) -> AsyncIterator[tuple[str, Seen]]:
    """Run the server on a free port; gives its address and what it saw. Answers begin ``together`` at a time."""
    seen = Seen()
    barrier = asyncio.Barrier(together)

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.bodies.append(body)
        seen.headers.append(dict(request.headers))
        seen.per_model[body["model"]] += 1
        seen.running += 1
        seen.most_running = max(seen.most_running, seen.running)
        try:
            await barrier.wait()
            return await _behave(request, body)
        finally:
            seen.running -= 1

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in MODELS]})

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/"), seen


async def _behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    model = body["model"]
    if model == "missing":
        return web.json_response({"error": {"message": "no such model"}}, status=404)
    if model == "busy":
        return web.json_response({"error": {"message": "queue full"}}, status=429)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if model == "garbage":
        await response.write(b"data: {not json\n\n")
        return response
    if model == "hangs":
        await asyncio.Event().wait()
    count = body["max_tokens"]
    await _send_tokens(response, count, chat="messages" in body)
    if model == "breaks":
        await response.write(b'data: {"error": {"message": "engine died"}}\n\n')
    elif model != "cut":
        if model != "no usage":  # one piece of text was two tokens
            usage = {"prompt_tokens": 7, "completion_tokens": 2 * count}
            await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b": a comment\n\ndata: [DONE]\n\n")
    return response


async def _send_tokens(response: web.StreamResponse, count: int, *, chat: bool) -> None:
    if chat:
        await response.write(b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": null}\n\n')
    for _ in range(count):
        choice = {"delta": {"content": "ab"}} if chat else {"text": "ab"}
        await response.write(f"data: {json.dumps({'choices': [choice], 'usage': None})}\n\n".encode())
