from __future__ import annotations

from server.text.output.parts import (
    AssistantMessage,
    ContentDelta,
    PlainParser,
    ReasoningDelta,
    ToolCall,
    ToolCallBegin,
    ToolCallDelta,
)


def test_parts_put_together() -> None:
    message = AssistantMessage()
    message.add([ReasoningDelta("why"), ReasoningDelta("?"), ContentDelta("so"), ToolCallBegin(0, "c0", "f")])
    message.add([ToolCallDelta(0, '{"a"'), ToolCallDelta(0, ": 1}"), ToolCallBegin(1, "c1", "g"), ContentDelta("!")])
    calls = [ToolCall("c0", "f", '{"a": 1}'), ToolCall("c1", "g")]
    assert message == AssistantMessage("so!", "why?", calls)


def test_all_of_a_plain_output_is_content() -> None:
    parser = PlainParser()
    assert parser.feed("<think>") == [ContentDelta("<think>")]
    assert (parser.feed(""), parser.finish()) == ([], [])
