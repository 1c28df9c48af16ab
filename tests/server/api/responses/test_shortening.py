"""``context_management``: a long conversation is summed up on the way, and gone on with from the summary."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from server.api.responses.compaction import ASK
from server.api.responses.summaries import from_summary, last_turn, summary_message
from tests.server.api.responses.test_routes import GREEDY, chat_text, streamed
from tests.server.api.support import BASE, error_of
from tests.server.live import Live

SAID: Any = [{"role": "user", "content": "Tuesday? " * 20}, {"role": "assistant", "content": "Tuesday."}]
WHEN: Any = {"role": "user", "content": "When?"}
SHORT: dict[str, Any] = {"context_management": [{"type": "compaction", "compact_threshold": 60}]}
GIVEN: dict[str, Any] = {"model": "lora", "max_output_tokens": 5, **GREEDY}


@pytest.mark.parametrize("kept", ["previous_response_id", "conversation"])
def test_a_long_conversation_is_summed_up(client: openai.OpenAI, kept: str) -> None:
    conversation = client.conversations.create().id if kept == "conversation" else None
    held: dict[str, Any] = {} if conversation is None else {"conversation": conversation}
    first = client.responses.create(input=[*SAID, WHEN], **SHORT, **held, **GIVEN)
    item, message = first.output
    assert (item.type, message.type) == ("compaction", "message")
    said = [{"role": "system", "content": summary_message(str(item.encrypted_content))}, WHEN]
    assert first.output_text == chat_text(client, said, 5)
    summed, answered = (client.responses.input_tokens.count(model="lora", input=one) for one in ([*SAID, ASK], said))
    assert first.usage is not None
    assert first.usage.input_tokens == summed.input_tokens + answered.input_tokens
    assert first.usage.output_tokens == 30 + 5  # half of the threshold, for the summary
    assert first.usage.total_tokens == first.usage.input_tokens + 35
    assert client.responses.retrieve(first.id).model_dump() == first.model_dump()

    held = held or {"previous_response_id": first.id}
    second = client.responses.create(input="Why?", **held, **GIVEN)
    said += [{"role": "assistant", "content": first.output_text}, {"role": "user", "content": "Why?"}]
    assert second.output_text == chat_text(client, said, 5)
    assert [item.type for item in second.output] == ["message"]


def test_a_stream_begins_with_the_summary(server: Live) -> None:
    body = {"model": BASE, "input": [*SAID, WHEN], "max_output_tokens": 3, "temperature": 0, "ignore_eos": True}
    events = streamed(server, {**body, **SHORT})
    told = [(event["type"], event["output_index"]) for event in events if "item" in event]
    assert told == [(f"response.output_item.{state}", index) for index in (0, 1) for state in ("added", "done")]
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["compaction", "message"]
    with server.http() as http:
        again = http.get(f"/v1/responses/{final['id']}", params={"stream": "true"}).text
    assert again.count("event: response.output_item.done") == 2


def test_nothing_is_summed_up_without_need(client: openai.OpenAI, server: Live) -> None:
    for given, threshold in (([*SAID, WHEN], 1000), ([*SAID, WHEN], None), ("Tuesday? " * 20, 60)):
        wanted: Any = [{"type": "compaction", "compact_threshold": threshold}]
        response = client.responses.create(input=given, context_management=wanted, store=False, **GIVEN)
        assert [item.type for item in response.output] == ["message"]
    for wrong in ({"type": "other"}, {"type": "compaction", "compact_threshold": 0}):
        error = error_of(server.post("/v1/responses", {"input": "x", "context_management": [wrong]}))
        assert error["param"].startswith("context_management[0].")


def test_the_last_turn_stays_whole() -> None:
    system = {"type": "message", "role": "system", "content": "Be brief."}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "x"}
    summary = {"type": "compaction", "encrypted_content": "y"}
    turn = [system, WHEN, call, result]
    assert last_turn([*SAID, *turn]) == turn
    assert last_turn(SAID) == SAID
    assert last_turn(SAID[1:]) == []
    assert from_summary([*SAID, *turn, summary, SAID[1]]) == [summary, *turn, SAID[1]]
    assert from_summary([*SAID, WHEN]) == [*SAID, WHEN]
