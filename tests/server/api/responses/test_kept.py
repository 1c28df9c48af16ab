"""Responses that are kept: found again, gone on from, listed and deleted, by their owners alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.api.responses.test_routes import GREEDY, chat_text
from tests.server.api.support import BASE
from tests.server.live import Live, live_server


def test_is_found_again_and_deleted(client: openai.OpenAI) -> None:
    made = client.responses.create(model=BASE, input="x", max_output_tokens=3, metadata={"a": "b"}, **GREEDY)
    assert made.model_dump() == client.responses.retrieve(made.id).model_dump()
    client.responses.delete(made.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="not found"):
            ask(made.id)
    with pytest.raises(openai.BadRequestError, match="Invalid 'response_id'"):
        client.responses.retrieve("other")
    unkept = client.responses.create(model=BASE, input="x", max_output_tokens=1, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_a_conversation_goes_on(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "lora", "max_output_tokens": 4, **GREEDY}
    first = client.responses.create(input="One", instructions="Be brief.", **given)
    second = client.responses.create(input="Two", previous_response_id=first.id, **given)
    third = client.responses.create(input="Three", previous_response_id=second.id, instructions="Shout.", **given)
    said = [
        {"role": "system", "content": "Shout."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "Three"},
    ]
    assert third.output_text == chat_text(client, said, 4)
    assert third.previous_response_id == second.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as raised:
        client.responses.create(input="Four", previous_response_id=third.id, **given)
    assert raised.value.code == "previous_response_not_found"


def test_what_a_stream_made_is_kept(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=BASE, input="x", max_output_tokens=3, stream=True))
    final = events[-1].response  # type: ignore[union-attr]
    assert client.responses.retrieve(final.id).model_dump() == final.model_dump()
    again = list(client.responses.retrieve(final.id, stream=True))
    kinds = [event.type for event in again]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert again[-1].response.model_dump() == final.model_dump()  # type: ignore[union-attr]
    assert [event.sequence_number for event in again] == list(range(len(again)))
    rest = list(client.responses.retrieve(final.id, stream=True, starting_after=3))
    assert [event.model_dump() for event in rest] == [event.model_dump() for event in again[4:]]


def texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


def test_lists_what_was_answered(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{number}"} for number in range(5)]
    made = client.responses.create(model=BASE, input=items, max_output_tokens=1)
    page = client.responses.input_items.list(made.id, limit=2)
    assert texts(page) == ["4", "3", "2", "1", "0"]
    assert page.has_more
    ascending = client.responses.input_items.list(made.id, order="asc", after=page.data[-1].id)
    assert texts(ascending) == ["4"]


@pytest.fixture(scope="module")
def guarded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(base, tmp_path_factory.mktemp("guarded"), api_key=["a", "b"], max_answers=3) as live:
        yield live


def test_only_its_owner_sees_it_and_the_oldest_are_forgotten(guarded: Live) -> None:
    body = {"model": BASE, "input": "x", "max_output_tokens": 1}
    with guarded.http(Authorization="Bearer a") as mine, guarded.http(Authorization="Bearer b") as other:
        made = [mine.post("/v1/responses", json=body).json()["id"] for _ in range(4)]
        assert [mine.get(f"/v1/responses/{id}").status_code for id in made] == [404, 200, 200, 200]
        assert other.get(f"/v1/responses/{made[-1]}").status_code == 404
        assert other.delete(f"/v1/responses/{made[-1]}").status_code == 404
        going_on = other.post("/v1/responses", json={**body, "previous_response_id": made[-1]})
        assert going_on.status_code == 404
