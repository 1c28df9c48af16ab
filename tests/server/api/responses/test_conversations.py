"""Conversations: items that are kept, found and deleted by their owners alone, and that responses go on with."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.api.responses.test_routes import GREEDY, chat_text
from tests.server.api.support import BASE, error_of
from tests.server.live import Live, live_server, slow_steps

ONE: Any = {"type": "message", "role": "user", "content": "One"}
CALL: Any = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
RESULT: Any = {"type": "function_call_output", "call_id": "c1", "output": "clear"}


def texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


def test_are_made_changed_and_deleted(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"a": "b"}, items=[ONE])
    assert client.conversations.retrieve(made.id) == made
    assert made.metadata == {"a": "b"}
    changed = client.conversations.update(made.id, metadata={"a": "c"})
    assert changed.metadata == {"a": "c"}
    assert client.conversations.retrieve(made.id) == changed
    (item,) = client.conversations.items.list(made.id)
    gone = client.conversations.delete(made.id)
    assert (gone.object, gone.deleted) == ("conversation.deleted", True)
    for ask in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError) as raised:
            ask(made.id)
        assert raised.value.code == "conversation_not_found"
    other = client.conversations.create()
    with pytest.raises(openai.NotFoundError) as raised:  # items go with their conversation
        client.conversations.items.retrieve(str(item.id), conversation_id=other.id)
    assert raised.value.code == "item_not_found"


def test_hold_items_in_their_order(client: openai.OpenAI) -> None:
    items = client.conversations.items
    messages: list[Any] = [{**ONE, "content": f"{number}"} for number in range(5)]
    made = client.conversations.create(items=messages[:3])
    added = items.create(made.id, items=messages[3:])
    assert texts(added.data) == ["3", "4"]
    assert texts(items.list(made.id, limit=2)) == ["4", "3", "2", "1", "0"]  # page after page
    assert texts(items.list(made.id, order="asc", after=str(added.data[0].id))) == ["4"]
    first = added.data[0]
    assert items.retrieve(str(first.id), conversation_id=made.id) == first
    assert items.delete(str(first.id), conversation_id=made.id).id == made.id
    assert texts(items.list(made.id)) == ["4", "2", "1", "0"]
    again = items.create(made.id, items=[first.model_dump(exclude_none=True)])  # type: ignore[list-item]
    assert again.data[0].id != first.id  # one item may be sent to several conversations


def test_responses_go_on_with_them(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "lora", "max_output_tokens": 4, **GREEDY}
    made = client.conversations.create(items=[ONE])
    first = client.responses.create(input="Two", conversation=made.id, **given)
    assert first.conversation is not None
    assert first.conversation.id == made.id
    said = [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]
    assert first.output_text == chat_text(client, said, 4)
    events = list(
        client.responses.create(input="Three", conversation={"id": made.id}, stream=True, store=False, **given)
    )
    second = events[-1].response
    said += [{"role": "assistant", "content": first.output_text}, {"role": "user", "content": "Three"}]
    assert second.output_text == chat_text(client, said, 4)
    kept = list(client.conversations.items.list(made.id, order="asc"))
    assert texts(kept) == ["One", "Two", first.output_text, "Three", second.output_text]
    assert kept[2].id == first.output[0].id
    counted = client.responses.input_tokens.count(model="lora", conversation=made.id, input="Four")
    assert counted.input_tokens > second.usage.input_tokens
    beside = client.responses.create(input="Beside", previous_response_id=first.id, **given)
    said = [*said[:3], {"role": "user", "content": "Beside"}]
    assert beside.output_text == chat_text(client, said, 4)
    assert len(list(client.conversations.items.list(made.id))) == 5


def test_what_is_made_behind_a_request_is_added_when_it_ends(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    response = client.responses.create(
        model=BASE, input="x", conversation=made.id, max_output_tokens=2, background=True
    )
    end = time.monotonic() + 30
    while client.responses.retrieve(response.id).status in ("queued", "in_progress") and time.monotonic() < end:
        time.sleep(0.01)
    kept = list(client.conversations.items.list(made.id, order="asc"))
    assert [item.role for item in kept] == ["user", "assistant"]  # type: ignore[union-attr]


@pytest.mark.parametrize("background", [False, True])
def test_one_response_at_a_time(client: openai.OpenAI, server: Live, background: bool) -> None:
    made = client.conversations.create()
    body = {"model": BASE, "input": "x", "conversation": made.id, "max_output_tokens": 1}
    long = {**body, "stream": True, "background": background, "max_output_tokens": 1900}
    long |= {"ignore_eos": True, "speculation": False}
    with slow_steps(), server.http() as http, http.stream("POST", "/v1/responses", json=long) as stream:
        lines = stream.iter_lines()  # who lets go of it leaves
        first = next(line for line in lines if line.startswith("data: "))
        for path, other in ("responses", body), (f"conversations/{made.id}/items", {"items": [ONE]}):
            refused = http.post(f"/v1/{path}", json=other)
            assert (refused.status_code, refused.headers["retry-after"]) == (409, "1")
            assert error_of(refused, 409)["code"] == "conversation_locked"
            assert error_of(refused, 409)["param"] == ("conversation" if path == "responses" else "conversation_id")
        if background:
            client.responses.cancel(json.loads(first.removeprefix("data: "))["response"]["id"])
    retrying = client.with_options(max_retries=20)  # as it does by itself, more often
    answer = retrying.responses.create(model=BASE, input="y", conversation=made.id, max_output_tokens=1)
    assert texts(client.conversations.items.list(made.id, order="asc")) == ["y", answer.output_text]


def test_a_response_that_is_refused_keeps_no_turn(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    given: dict[str, Any] = {"model": BASE, "conversation": made.id}
    for background in False, True:
        for bad in "x" * 9000, [RESULT]:
            with pytest.raises(openai.BadRequestError):
                client.responses.create(input=bad, background=background, **given)
    client.responses.create(input="x", extra_body={"generate": False}, **given)
    assert texts(client.conversations.items.list(made.id)) == ["x"]


def test_each_item_is_kept_once(client: openai.OpenAI, server: Live) -> None:
    given: dict[str, Any] = {"model": "lora", "max_output_tokens": 2, **GREEDY}
    made = client.conversations.create(items=[ONE])
    first, second = (client.responses.create(input=said, conversation=made.id, **given) for said in ("Two", "Three"))
    record = asyncio.run_coroutine_threadsafe(server.context.answers.chain(second.id, ""), server.loop).result()[-1]
    assert [item["content"][0]["text"] for item in json.loads(record.input)] == ["Three"]
    assert texts(client.responses.input_items.list(second.id, order="asc")) == [
        "One", "Two", first.output_text, "Three",
    ]  # fmt: skip
    beside = client.responses.create(input="Four", previous_response_id=first.id, **given)
    beyond = client.responses.create(input="Five", previous_response_id=beside.id, **given)
    said = [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]
    for response, text in (first, "Four"), (beside, "Five"):
        said += [{"role": "assistant", "content": response.output_text}, {"role": "user", "content": text}]
    assert beyond.output_text == chat_text(client, said, 2)
    client.conversations.delete(made.id)
    assert texts(client.responses.input_items.list(second.id)) == ["Three"]
    with pytest.raises(openai.NotFoundError, match=f"Conversation with id '{made.id}' not found") as raised:
        client.responses.create(input="Six", previous_response_id=beyond.id, **given)
    assert raised.value.code == "previous_response_not_found"


def test_calls_and_their_outputs_are_items(client: openai.OpenAI) -> None:
    made = client.conversations.create(items=[ONE, CALL])
    client.conversations.items.create(made.id, items=[RESULT])
    client.responses.create(model=BASE, input="x", conversation=made.id, max_output_tokens=1)
    kinds = [item.type for item in client.conversations.items.list(made.id, order="asc")]
    assert kinds == ["message", "function_call", "function_call_output", "message", "message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [{"type": "message", "role": "user", "content": [{"type": "input_image"}]}]}, "items[0].content[0]"),
        ({"items": [ONE, RESULT]}, "items[1].call_id"),
        ({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items[0]"),
        ({"items": [{**ONE, "type": ["message"]}]}, "items[0]"),
        ({"items": [ONE] * 21}, "items"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
    ],
)
def test_says_what_is_wrong(server: Live, body: dict[str, Any], param: str) -> None:
    assert error_of(server.post("/v1/conversations", body))["param"] == param


def test_metadata_is_only_changed_where_it_is_told(server: Live) -> None:
    with server.http() as http:
        made = http.post("/v1/conversations", json={"metadata": {"a": "b"}}).json()
        path = f"/v1/conversations/{made['id']}"
        assert error_of(http.post(path, json={}))["param"] == "metadata"
        assert http.get(path).json() == made
        assert http.post(path, json={"metadata": None}).json()["metadata"] == {}


def test_one_that_is_not_there_is_told_by_its_field(server: Live) -> None:
    for path in "", "/input_tokens", "/compact":
        body = {"model": BASE, "input": "x", "conversation": "conv_1"}
        error = error_of(server.post(f"/v1/responses{path}", body), 404)
        assert (error["param"], error["code"]) == ("conversation", "conversation_not_found")


def test_what_came_before_is_said_once(server: Live) -> None:
    body = {"model": BASE, "input": "x", "conversation": "conv_1", "previous_response_id": "resp_1"}
    assert "leave one out" in error_of(server.post("/v1/responses", body))["message"]


@pytest.fixture(scope="module")
def guarded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(base, tmp_path_factory.mktemp("guarded"), api_key=["a", "b"], max_messages=2) as live:
        yield live


def test_only_its_owner_sees_it_and_it_has_its_limits(guarded: Live) -> None:
    with guarded.http(Authorization="Bearer a") as mine, guarded.http(Authorization="Bearer b") as other:
        path = f"/v1/conversations/{mine.post('/v1/conversations', json={'items': [ONE]}).json()['id']}"
        (item,) = mine.get(f"{path}/items").json()["data"]
        for inside in ("", "/items", f"/items/{item['id']}"):
            assert other.get(path + inside).status_code == 404
        theirs = other.post("/v1/conversations", json={}).json()["id"]
        assert other.get(f"/v1/conversations/{theirs}/items/{item['id']}").status_code == 404
        assert mine.post(f"{path}/items", json={"items": [ONE, ONE]}).status_code == 200
        assert "--max-messages" in error_of(mine.post(f"{path}/items", json={"items": [ONE]}))["message"]
        mine.delete(f"{path}/items/{item['id']}")
        body = {"model": BASE, "input": [], "conversation": path.rpartition("/")[2], "max_output_tokens": 1}
        assert mine.post("/v1/responses", json=body).status_code == 200
