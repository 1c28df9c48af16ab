"""Tools in responses and messages, with the clients of both, on a base that is made to call."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai

from tests.server.api.responses.test_routes import streamed
from tests.server.api.support import BASE
from tests.server.live import Live

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"place": {"enum": ["here", "there"]}},
    "required": ["place"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "name": "look", "description": "Look.", "parameters": SCHEMA}
ASKED: dict[str, Any] = {"model": BASE, "input": "Where?", "tools": [TOOL], "temperature": 0, "max_output_tokens": 200}


def test_a_response_calls_and_goes_on_from_the_result(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "name": "look"}
    for choice in ("required", named):
        made = client.responses.create(**ASKED, tool_choice=choice)
        call = made.output[-1]
        assert call.type == "function_call"
        assert call.name == "look"
        assert json.loads(call.arguments)["place"] in ("here", "there")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "nothing"}
    given: dict[str, Any] = {"model": BASE, "max_output_tokens": 2, "temperature": 0}
    kept = client.responses.create(input=[result], previous_response_id=made.id, **given)
    sent = client.responses.create(
        input=[{"role": "user", "content": "Where?"}, *(item.model_dump() for item in made.output), result],
        **given,
    )
    assert kept.output_text == sent.output_text
    assert kept.usage is not None
    assert sent.usage is not None
    assert kept.usage.input_tokens == sent.usage.input_tokens


def test_a_stream_tells_a_call_piece_by_piece(server: Live) -> None:
    events = streamed(server, {**ASKED, "tool_choice": "required"})
    pieces = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert "".join(event["delta"] for event in pieces) == done["arguments"]
    assert events[-1]["response"]["output"][-1]["arguments"] == done["arguments"]


def test_a_message_calls(server: Live) -> None:
    tool: Any = {"name": "look", "description": "Look.", "input_schema": SCHEMA}
    given: dict[str, Any] = {
        "model": BASE, "max_tokens": 200, "tools": [tool], "messages": [{"role": "user", "content": "Where?"}],
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude:
        choices: list[Any] = [{"type": "any"}, {"type": "tool", "name": "look"}]
        for choice in choices:
            message = claude.messages.create(**given, tool_choice=choice)
            block = message.content[-1]
            assert message.stop_reason == "tool_use"
            assert block.type == "tool_use"
            assert block.input["place"] in ("here", "there")
        with claude.messages.stream(**given, tool_choice={"type": "any"}) as stream:
            final = stream.get_final_message().content[-1]
        assert final.type == "tool_use"
        assert final.input["place"] in ("here", "there")
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "nothing"}
        said = {"role": "assistant", "content": message.content}
        history = [*given["messages"], said, {"role": "user", "content": [result]}]
        assert claude.messages.create(**{**given, "messages": history, "max_tokens": 2}).type == "message"
