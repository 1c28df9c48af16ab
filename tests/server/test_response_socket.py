"""Responses over a WebSocket, on a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.server.api.support import BASE
from tests.server.live import Live, live_server

Socket = aiohttp.ClientWebSocketResponse


@pytest.fixture(scope="module")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    data = tmp_path_factory.mktemp("sockets")
    with live_server(tiny_base, data, served_model_name=BASE, api_key="sk", max_body_mb=0.01) as live:
        yield live


async def turn(socket: Socket, **fields: Any) -> list[dict[str, Any]]:
    """The events of one response."""
    given = {"type": "response.create", "model": BASE, "max_output_tokens": 3, "temperature": 0, **fields}
    await socket.send_str(json.dumps(given))
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in (
        "response.completed", "response.incomplete", "response.failed", "error",
    ):  # fmt: skip
        events.append(json.loads((await socket.receive(timeout=20)).data))
    return events


def over_socket(server: Live, work: Callable[[Socket], Awaitable[None]], key: str = "sk") -> None:
    async def run() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{server.url}/v1/responses"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers) as socket:
            await work(socket)

    asyncio.run(run())


def test_turns_follow_each_other_and_go_on_unkept(server: Live) -> None:
    async def work(socket: Socket) -> None:
        first = await turn(socket, input="One", store=False)
        assert [event["sequence_number"] for event in first] == list(range(len(first)))
        assert first[0]["type"] == "response.created"
        response = first[-1]["response"]
        second = await turn(socket, input="Two", store=False, previous_response_id=response["id"])
        assert second[-1]["response"]["previous_response_id"] == response["id"]
        assert second[-1]["response"]["usage"]["input_tokens"] > response["usage"]["input_tokens"]
        await socket.ping()

        bad = [{"type": "function_call_output", "call_id": "none", "output": "x"}]
        again = second[-1]["response"]["id"]
        (failed,) = await turn(socket, input=bad, store=False, previous_response_id=again)
        assert (failed["type"], failed["status"], failed["error"]["param"]) == ("error", 400, "input[0].call_id")
        (gone,) = await turn(socket, input="Three", store=False, previous_response_id=again)
        assert gone["error"]["code"] == "previous_response_not_found"
        assert (await turn(socket, input="Four"))[-1]["type"] == "response.incomplete"
        prepared = (await turn(socket, input="Five", store=False, generate=False))[-1]["response"]
        assert (prepared["status"], prepared["output"]) == ("completed", [])
        said = [{"role": "user", "content": "Five"}, {"role": "user", "content": "Six"}]
        together = (await turn(socket, input="Six", previous_response_id=prepared["id"]))[-1]["response"]
        at_once = (await turn(socket, input=said))[-1]["response"]
        assert together["usage"]["input_tokens"] == at_once["usage"]["input_tokens"]

    over_socket(server, work)


def test_another_connection_remembers_nothing_but_what_is_kept(server: Live) -> None:
    made: dict[str, str] = {}

    async def first(socket: Socket) -> None:
        for store in (True, False):
            made[str(store)] = (await turn(socket, input="One", store=store))[-1]["response"]["id"]

    async def second(socket: Socket) -> None:
        assert (await turn(socket, input="Two", previous_response_id=made["True"]))[-1]["type"] != "error"
        (missing,) = await turn(socket, input="Two", previous_response_id=made["False"])
        assert missing["error"]["code"] == "previous_response_not_found"

    over_socket(server, first)
    over_socket(server, second)


@pytest.mark.parametrize("text", ["no json", "[]", '{"type": "other"}', '{"type": "response.create", "stream": true}'])
def test_says_what_is_no_request_and_goes_on(server: Live, text: str) -> None:
    async def work(socket: Socket) -> None:
        await socket.send_str(text)
        assert json.loads((await socket.receive(timeout=20)).data)["type"] == "error"
        assert (await turn(socket, input="One"))[-1]["type"] == "response.incomplete"

    over_socket(server, work)


def test_closes_on_what_is_too_large_or_no_text(server: Live) -> None:
    async def large(socket: Socket) -> None:
        await socket.send_str("x" * 20_000)
        assert (await socket.receive(timeout=20)).data == 1009

    async def binary(socket: Socket) -> None:
        await socket.send_bytes(b"x")
        assert (await socket.receive(timeout=20)).data == 1003

    over_socket(server, large)
    over_socket(server, binary)


def test_a_stranger_gets_none(server: Live) -> None:
    async def work(socket: Socket) -> None:
        raise AssertionError("it was opened")

    with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
        over_socket(server, work, key="wrong")
    assert raised.value.status == 401
    with server.http(Authorization="Bearer sk") as http:
        assert http.get("/v1/responses").status_code == 426


def test_who_leaves_is_not_computed_for(server: Live) -> None:
    async def work(socket: Socket) -> None:
        body = {"type": "response.create", "model": BASE, "input": "x", "ignore_eos": True}
        await socket.send_str(json.dumps({**body, "speculation": False}))
        await socket.receive(timeout=20)

    over_socket(server, work)
    server.wait_idle()
    assert server.stats.num_running == 0
