"""Responses over HTTP, with the official client."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.server.api.support import BASE, error_of
from tests.server.live import Live

GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
REQUIRED = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "user", "usage",
    "max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier",
    "prompt_cache_key",
}  # fmt: skip


def streamed(server: Live, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, their names and numbers checked."""
    found = []
    with server.http() as http, http.stream("POST", "/v1/responses", json={"stream": True, **body}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = iter([line for line in response.iter_lines() if line])
    for name, data in zip(lines, lines, strict=True):
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def chat_text(client: openai.OpenAI, messages: list[dict[str, str]], tokens: int) -> str | None:
    answer = client.chat.completions.create(
        model="lora",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=tokens,
        **GREEDY,
    )
    return answer.choices[0].message.content


def test_answers_what_a_chat_does(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    response = client.responses.create(
        model="lora", instructions="Be brief.", input="Hello", max_output_tokens=9, store=False, **GREEDY
    )
    assert response.output_text == chat_text(client, messages, 9)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 9
    assert response.usage.total_tokens == response.usage.input_tokens + 9
    (item,) = response.output
    assert item.type == "message"
    assert item.status == "incomplete"


def test_has_every_field(server: Live) -> None:
    body = {"model": BASE, "input": "x", "max_output_tokens": 2, "metadata": {"a": "b"}, "user": "me", "store": False}
    response = server.post("/v1/responses", body).json()
    assert set(response) >= REQUIRED
    assert (response["metadata"], response["user"], response["store"]) == ({"a": "b"}, "me", False)
    assert (response["temperature"], response["top_p"], response["top_logprobs"]) == (1.0, 1.0, 0)
    assert response["id"].startswith("resp_")


def test_items_of_every_form_are_a_conversation(client: openai.OpenAI) -> None:
    items: list[Any] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": "One"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "phase": "final_answer",
         "content": [{"type": "output_text", "text": "Two", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Three"}]},
    ]  # fmt: skip
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ]
    response = client.responses.create(model="lora", input=items, max_output_tokens=6, store=False, **GREEDY)
    assert response.output_text == chat_text(client, messages, 6)


def test_a_stream_has_all_events_in_order(server: Live) -> None:
    body = {"model": "lora", "input": "Hello", "temperature": 0, "max_output_tokens": 5, "ignore_eos": True}
    events = streamed(server, {**body, "stream_options": {"include_obfuscation": True}})
    kinds = [event["type"] for event in events]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert all("obfuscation" in delta for delta in deltas)
    whole = server.post("/v1/responses", body).json()
    text = whole["output"][0]["content"][0]["text"]
    assert "".join(delta["delta"] for delta in deltas) == text
    final = events[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == text
    assert {event["item_id"] for event in deltas} == {final["output"][0]["id"]}
    assert set(final) == set(whole)
    assert final["usage"]["output_tokens"] == 5


def test_the_client_reads_a_stream(client: openai.OpenAI) -> None:
    text = client.responses.create(model=BASE, input="Hello", max_output_tokens=6, store=False, **GREEDY).output_text
    until = {"temperature": 0, "extra_body": {"stop": text[3:], "ignore_eos": True}}
    with client.responses.stream(model=BASE, input="Hello", store=False, **until) as stream:  # type: ignore[call-overload]
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert final.output_text == text.partition(text[3:])[0]
    assert final.status == "completed"
    assert final.output[0].status == "completed"
    assert {"response.created", "response.output_text.done", "response.completed"} <= kinds


def test_logprobs_where_they_are_asked_for(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=BASE, input="Hello", max_output_tokens=4, top_logprobs=2, include=["message.output_text.logprobs"],
        store=False, **GREEDY,
    )  # fmt: skip
    content = response.output[0].content[0]
    assert len(content.logprobs) == 4
    assert all(len(one.top_logprobs) == 2 for one in content.logprobs)


class Choice(BaseModel):
    """What an answer has to be."""

    word: Literal["yes", "no"]


def test_text_has_the_form_that_is_asked_for(client: openai.OpenAI, server: Live) -> None:
    response = client.responses.parse(model=BASE, input="Hello", text_format=Choice, temperature=0, store=False)
    assert response.output_parsed is not None
    assert response.output_parsed.word in ("yes", "no")
    assert response.status == "completed"
    wrong = {"type": "json_schema", "name": "x", "schema": {"properties": {"a": {"pattern": "("}}}}
    error = error_of(server.post("/v1/responses", {"model": BASE, "input": "x", "text": {"format": wrong}}))
    assert str(error["param"]).startswith("text.format")
    assert "response_format" not in error["message"]


def test_counts_input_tokens(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="lora", input="Hello", instructions="Be brief.")
    response = client.responses.create(
        model="lora", input="Hello", instructions="Be brief.", max_output_tokens=1, store=False
    )
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "message", "role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"previous_response_id": "other"}, "previous_response_id"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"max_output_tokens": 10**6}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"conversation": 1}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"include": ["all"]}, "include"),
        ({"metadata": {"x" * 65: ""}}, "metadata"),
        ({"background": True, "store": False}, "background"),
        ({"n": 2}, "n"),
    ],
)
def test_says_what_is_wrong(server: Live, fields: dict[str, Any], param: str) -> None:
    error = error_of(server.post("/v1/responses", {"model": BASE, "input": "x", **fields}))
    assert error["param"] == param, error
    assert "the messages" not in error["message"]
