from __future__ import annotations

from typing import Any

from server.api.anthropic_messages.body import MessageBody
from server.api.anthropic_messages.chat import chat_of


def body(*messages: dict[str, Any], **fields: Any) -> MessageBody:
    return MessageBody.model_validate({"model": "m", "max_tokens": 5, "messages": list(messages), **fields})


def test_tools_in_a_history() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}}
    said = [{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "Wait."}, use]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "found"}]}
    answer = {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}
    chat = chat_of(body({"role": "user", "content": "x"}, {"role": "assistant", "content": said}, answer, system="s"))
    system, _, turn, tool, user = [message.for_template() for message in chat.messages]
    assert system == {"role": "system", "content": "s"}
    assert turn["reasoning_content"] == "Hm."
    call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    assert turn["tool_calls"] == [call]
    assert (tool["role"], tool["tool_call_id"], tool["content"]) == ("tool", "t1", [{"type": "text", "text": "found"}])
    assert user["content"] == [{"type": "text", "text": "And?"}]
    assert not chat.continue_final_message


def test_settings() -> None:
    chat = chat_of(
        body(
            {"role": "user", "content": "x"},
            stop_sequences=["."],
            thinking={"type": "enabled", "budget_tokens": 1024},
            metadata={"user_id": "me"},
            top_k=3,
            seed=5,
        )
    )
    assert (chat.stops, chat.user, chat.top_k, chat.seed, chat.max_completion_tokens) == (["."], "me", 3, 5, 5)
    assert chat.chat_template_kwargs["enable_thinking"] is True
