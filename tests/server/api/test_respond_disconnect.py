"""A client that leaves frees everything its request held."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from server.api.event_stream import DONE, NOT_TAKEN, EventStream, event
from tests.server.api.raw import connect, head, post
from tests.server.api.support import BASE, STEADY
from tests.server.live import Live, slow_steps

ENDLESS = {"model": "lora", "max_tokens": 1900, "n": 6, **STEADY}


def send(server: Live, path: str, body: dict[str, Any]) -> socket.socket:
    """A request on a raw socket, its answer not read."""
    sock = connect(server)
    sock.sendall(post(path, body))
    return sock


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/v1/completions", {"prompt": "x", "stream": True}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": ["x", "y"], "stream": True}),
    ],
    ids=["text-stream", "text", "chat-stream", "chat", "prompts-stream"],
)
def test_everything_is_freed_at_once(server: Live, path: str, extra: dict[str, Any]) -> None:
    server.wait_idle()
    idle_blocks = server.stats.kv_blocks_used
    generated = server.context.metrics.registry.get_sample_value
    labels = {"model": BASE, "adapter": "lora", "version": "1", "finish_reason": "abort"}
    aborted = generated("hotswap_requests_total", labels) or 0
    sequences = 6 * len(extra.get("prompt", "x"))
    with slow_steps(), send(server, path, ENDLESS | extra) as sock:
        server.wait(lambda: server.stats.num_running == sequences, "all sequences to run")
        steps = server.stats.steps
        if extra.get("stream"):
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
    server.wait(lambda: not server.context.admission.active, "the API to let go")
    server.wait(lambda: not server.stats.num_running, "the engine to let go")
    assert server.stats.kv_blocks_used == idle_blocks
    assert server.stats.steps - steps < 1000, "the requests ran to their ends"
    assert (generated("hotswap_requests_total", labels) or 0) - aborted == sequences


def test_leaving_while_waiting_in_the_queue(server: Live) -> None:
    server.wait_idle()
    body = {"model": BASE, "prompt": "x", "max_tokens": 1900, "n": 100, **STEADY}
    with slow_steps(), send(server, "/v1/completions", body):
        server.wait(lambda: server.stats.num_waiting > 0, "a queue")
    server.wait_idle()
    assert server.stats.num_waiting == 0


def test_a_body_that_never_ends(server: Live) -> None:
    with connect(server) as sock:
        sock.sendall(head("POST", "/v1/completions", Content_Length=50) + b"{")
    assert server.post("/v1/completions", {"model": BASE, "prompt": "x", "max_tokens": 1}).status_code == 200


async def test_a_stream_that_is_cut_frees_its_source_and_says_why_should_it_be_read_on() -> None:
    closed, cut, blocked, read_on = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    sent: list[Message] = []

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            closed.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if len(sent) == 2:
            blocked.set()
            await read_on.wait()
        sent.append(message)

    stream = EventStream(source(), {}, comment_seconds=0.01, cut=cut, not_taken=lambda: event(NOT_TAKEN.body()) + DONE)
    answering = asyncio.create_task(stream({"type": "http"}, receive, send))
    await asyncio.wait_for(blocked.wait(), 30)
    cut.set()
    await asyncio.wait_for(closed.wait(), 30)
    read_on.set()
    await asyncio.wait_for(answering, 30)
    *_, last = sent
    assert len(sent) == 3, "what waited to be sent is dropped"
    assert last["more_body"] is False
    error, done = last["body"].decode().strip().split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "answer_not_taken"
    assert done == "data: [DONE]"
