"""The openai package: chats, streams, parsed answers, tools, responses, completions, embeddings."""

from __future__ import annotations

import json
from typing import Literal

import openai
from address import API_KEY, MODEL, URL
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=API_KEY)
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


class Weather(BaseModel):
    """What a question about the weather is answered with."""

    city: Literal["Paris", "Rome"]
    sky: Literal["clear", "cloudy", "rain"]


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def chat() -> str:
    """One answer, whole."""
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=32)
    return str(answer.choices[0].message.content)


def stream() -> str:
    """One answer as it comes."""
    chunks = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=32, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in chunks:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert usage is not None
    return text


def parse() -> Weather:
    """An answer of a given form, as an object."""
    answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Weather, max_tokens=256)
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    return parsed


def parse_a_stream() -> Weather:
    """The same as it comes, with the helper that puts it together."""
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, response_format=Weather, max_tokens=256
    ) as events:
        text = "".join(event.delta for event in events if event.type == "content.delta")
        message = events.get_final_completion().choices[0].message
    assert message.content == text
    assert message.parsed is not None
    return message.parsed


def call_a_tool() -> str:
    """A tool is called, and the answer goes on from its result."""
    asked = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[TOOL], tool_choice="required", max_tokens=256
    )
    message = asked.choices[0].message
    assert message.tool_calls
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"clear in {json.loads(call.function.arguments)['city']}"}
        for call in message.tool_calls
    ]
    history = [*QUESTION, message.model_dump(exclude_none=True), *results]
    answer = client.chat.completions.create(
        model=MODEL, messages=history, tools=[TOOL], tool_choice="none", max_tokens=32
    )
    return str(answer.choices[0].message.content)


def responses() -> Weather:
    """The same over /v1/responses: text, events, and an object."""
    text = client.responses.create(model=MODEL, input="What is the weather in Paris?", max_output_tokens=32)
    with client.responses.stream(model=MODEL, input="What is the weather in Paris?", max_output_tokens=32) as events:
        kinds = {event.type for event in events}
    assert text.status in ("completed", "incomplete")
    assert {"response.created", "response.output_text.delta"} <= kinds
    parsed = client.responses.parse(
        model=MODEL, input="What is the weather in Paris?", text_format=Weather, max_output_tokens=256
    ).output_parsed
    assert parsed is not None
    return parsed


def complete() -> str:
    """A text goes on, without a conversation."""
    return client.completions.create(model=MODEL, prompt="The weather in Paris is", max_tokens=8).choices[0].text


def embed() -> int:
    """Texts as vectors; how long these are."""
    vectors = client.embeddings.create(model=MODEL, input=["clear", "cloudy"]).data
    assert len(vectors) == 2
    return len(vectors[0].embedding)


def main() -> None:
    """Run all of it."""
    for example in (chat, stream, parse, parse_a_stream, call_a_tool, responses, complete, embed):
        print(f"{example.__name__}: {example()!r}")


if __name__ == "__main__":
    main()
