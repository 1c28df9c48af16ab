"""The items and events of every part of a message."""

from __future__ import annotations

from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from server.api.responses.outputs import OutputItems, parts_of
from server.text.output.parts import AssistantMessage, ContentDelta, Part, ReasoningDelta, ToolCallBegin, ToolCallDelta

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PARTS: list[Part] = [
    ReasoningDelta("Hm"),
    ReasoningDelta("m."),
    ContentDelta("One"),
    ContentDelta(" moment."),
    ToolCallBegin(0, "call_1", "look"),
    ToolCallDelta(0, '{"at":'),
    ToolCallDelta(0, "1}"),
    ToolCallBegin(1, "call_2", "wait"),
    ToolCallDelta(1, "{}"),
]
TEXT = ["content_part.added", "{}.delta", "{}.delta", "{}.done", "content_part.done"]
CALL = ["function_call_arguments.delta", "function_call_arguments.done"]


def test_events_come_item_by_item() -> None:
    output = OutputItems()
    events = [event for part in PARTS for event in output.add([part])] + output.finish("completed")
    for number, event in enumerate(events):
        EVENT.validate_python({**event, "sequence_number": number})
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        *["output_item.added", *(kind.format("reasoning_text") for kind in TEXT), "output_item.done"],
        *["output_item.added", *(kind.format("output_text") for kind in TEXT), "output_item.done"],
        *["output_item.added", CALL[0], *CALL, "output_item.done"],
        *["output_item.added", *CALL, "output_item.done"],
    ]
    assert [event["output_index"] for event in events] == sorted(event["output_index"] for event in events)
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert added == [item["id"] for item in output.items]


def test_items_are_those_of_the_whole_message() -> None:
    message = AssistantMessage()
    message.add(PARTS)
    output = OutputItems()
    output.add(parts_of(message))
    output.finish("completed")
    reasoning, said, first, second = output.items
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert said["content"][0]["text"] == "One moment."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_1", "look", '{"at":1}')
    assert (second["call_id"], second["arguments"]) == ("call_2", "{}")
    assert {item["status"] for item in output.items} == {"completed"}


def test_what_is_cut_says_so_and_nothing_is_a_message() -> None:
    output = OutputItems()
    output.add(PARTS[:3])
    output.finish("incomplete")
    assert [item["status"] for item in output.items] == ["completed", "incomplete"]
    empty = OutputItems()
    empty.finish("completed")
    (item,) = empty.items
    assert item["content"][0]["text"] == ""


def test_a_whole_item_makes_the_events_it_was_made_by() -> None:
    output = OutputItems()
    for part in PARTS:
        output.add([part])
    output.finish("completed")
    for item in output.items:
        events = OutputItems.events_of(item)
        assert events[-1] == {"type": "response.output_item.done", "item": item}
        assert events[0]["item"]["id"] == item["id"]
