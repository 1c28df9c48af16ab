"""Responses that are made behind their requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest

from server.api.responses.background import BackgroundResponses, BackgroundRun
from server.errors import CatalogUnavailableError
from tests.server.api.support import BASE, error_of
from tests.server.live import DEADLINE, Live, slow_steps

LONG: dict[str, Any] = {"extra_body": {"ignore_eos": True, "speculation": False}, "max_output_tokens": 1900}


def ended(client: openai.OpenAI, id: str) -> Any:
    end = time.monotonic() + DEADLINE
    while (response := client.responses.retrieve(id)).status in ("queued", "in_progress"):
        assert time.monotonic() < end
        time.sleep(0.01)
    return response


def test_is_queued_then_made(client: openai.OpenAI) -> None:
    made = client.responses.create(model="lora", input="x", background=True, max_output_tokens=3, temperature=0)
    assert (made.status, made.background, made.output) == ("queued", True, [])
    response = ended(client, made.id)
    assert response.status in ("completed", "incomplete")
    assert response.usage.output_tokens <= 3
    assert response.id == made.id
    assert client.responses.cancel(made.id).status == response.status


def test_is_cancelled(client: openai.OpenAI, server: Live) -> None:
    with slow_steps():
        made = client.responses.create(model=BASE, input="x", background=True, **LONG)
        assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"
    server.wait_idle()
    with pytest.raises(openai.BadRequestError, match="has not been made"):
        client.responses.create(model=BASE, input="y", previous_response_id=made.id)
    at_once = client.responses.create(model=BASE, input="x", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(at_once.id)


def test_is_followed_from_any_event(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=BASE, input="x", background=True, stream=True, max_output_tokens=4))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    id = events[0].response.id  # type: ignore[union-attr]
    rest = list(client.responses.retrieve(id, stream=True, starting_after=2))
    assert [event.model_dump() for event in rest] == [event.model_dump() for event in events[3:]]
    assert ended(client, id).model_dump() == events[-1].response.model_dump()  # type: ignore[union-attr]


def test_what_is_refused_is_refused_at_once(server: Live) -> None:
    body = {"model": BASE, "input": "x" * 9000, "background": True}
    error = error_of(server.post("/v1/responses", body))
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


async def test_all_end_with_the_server_though_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    async def endless() -> AsyncGenerator[bytes, None]:
        yield b""
        await asyncio.Event().wait()

    async def keep(response: dict[str, Any]) -> None:
        told.append(response["status"])
        await asyncio.sleep(0.05)  # of a database that does not answer
        raise CatalogUnavailableError("no answer")

    responses = BackgroundResponses("here")
    for i in range(100):
        run = BackgroundRun(endless(), lambda status, error: {"status": status, "error": error}, keep, lambda: None)
        await responses.begin(str(i), run)
    await asyncio.wait_for(responses.close(), 2)
    assert told == ["failed"] * 100
    assert caplog.text.count("no answer") == 100
