"""What the trainer writes of tools and calls is what a server writes for a template that knows none."""

from __future__ import annotations

import json
from typing import Any

from server.text.tokenizer import TextProcessor
from tests.factory import make_tokenizer
from trainer.data.messages import messages_of, written_out

FUNCTION = {"name": "weather", "description": "Wéather", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "weather", "arguments": {"city": "Zürich"}}
SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
]


def test_training_and_serving_write_the_same() -> None:
    text = TextProcessor(make_tokenizer())
    wrapped = {"type": "function", "function": FUNCTION}
    for said in (SAID, SAID[1:]):
        encoded = json.loads(json.dumps(said))
        for message in encoded:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        served = text.render_chat(encoded, {"tools": [wrapped]})
        for tools in ([FUNCTION], [wrapped]):
            trained = written_out(messages_of("messages", said), tools)
            plain = [{"role": message.role, "content": message.content} for message in trained]
            assert text.render_chat(plain) == served
    assert '{"name": "weather", "arguments": {"city": "Zürich"}}' in served
