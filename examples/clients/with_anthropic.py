"""The anthropic package: messages, streams, counted tokens, tools."""

from __future__ import annotations

import anthropic
from address import API_KEY, MODEL, URL

client = anthropic.Anthropic(base_url=URL, api_key=API_KEY)
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def message() -> str:
    """One message, whole."""
    answer = client.messages.create(model=MODEL, max_tokens=32, system="Be short.", messages=QUESTION)
    return "".join(block.text for block in answer.content if block.type == "text")


def stream() -> str:
    """One message as it comes."""
    with client.messages.stream(model=MODEL, max_tokens=32, messages=QUESTION) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    assert final.usage.output_tokens > 0
    return text


def count() -> int:
    """How many tokens a question is."""
    return client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens


def call_a_tool() -> str:
    """A tool is called, and the message goes on from its result."""
    asked = client.messages.create(
        model=MODEL, max_tokens=256, messages=QUESTION, tools=[TOOL], tool_choice={"type": "any"}
    )
    assert asked.stop_reason == "tool_use"
    calls = [block for block in asked.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"clear in {call.input['city']}"} for call in calls
    ]
    history = [*QUESTION, {"role": "assistant", "content": asked.content}, {"role": "user", "content": results}]
    answer = client.messages.create(
        model=MODEL, max_tokens=32, messages=history, tools=[TOOL], tool_choice={"type": "none"}
    )
    return "".join(block.text for block in answer.content if block.type == "text")


def main() -> None:
    """Run all of it."""
    for example in (message, stream, count, call_a_tool):
        print(f"{example.__name__}: {example()!r}")


if __name__ == "__main__":
    main()
