"""The events of every part of a message, read as Anthropic's client reads them."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from server.api.anthropic_messages.form import MessageForm
from server.api.outputs import TextDelta, Usage
from server.text.output.parts import ContentDelta, Part, ReasoningDelta, ToolCallBegin, ToolCallDelta

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
PARTS: list[Part] = [
    ReasoningDelta("Hm."),
    ContentDelta("Wait."),
    ToolCallBegin(0, "t1", "look"),
    ToolCallDelta(0, '{"at":1}'),
]


def written(parts: list[Part], **ending: Any) -> list[dict[str, Any]]:
    job: Any = SimpleNamespace(model="m")
    usage = Usage(7, cached={0: 4}, completion={0: 3})
    writer = MessageForm().writer(job, None)  # type: ignore[arg-type]
    data = writer.of(TextDelta(0, parts=parts, finish_reason="stop", **ending), usage)
    data += asyncio.run(writer.last(usage))
    events = [json.loads(event.decode().split("data: ")[1]) for event in data]
    for event in events:
        if event["type"] != "ping":
            EVENT.validate_python(event)
    return events


def test_blocks_come_one_after_the_other() -> None:
    events = written(PARTS, called=True)
    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == ["thinking", "text", "tool_use"]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    assert [event["index"] for event in events if "index" in event] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert events[0]["message"]["usage"]["input_tokens"] == 3
    assert events[0]["message"]["usage"]["cache_read_input_tokens"] == 4
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 3


def test_nothing_is_an_empty_text() -> None:
    events = written([], stop_reason="END")
    assert [event["type"] for event in events] == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
