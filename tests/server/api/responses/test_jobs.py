from __future__ import annotations

from typing import Any

import openai
import pytest

from server.api.responses.jobs import without_oldest
from server.api.wire_conversation import ChatMessage
from tests.server.api.responses.test_routes import GREEDY, chat_text
from tests.server.api.support import error_of
from tests.server.live import Live


def said(*roles: str) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=str(number)) for number, role in enumerate(roles)]


def test_instructions_stay_and_results_go_with_their_calls() -> None:
    messages = said("system", "user", "assistant", "tool", "tool", "developer", "user")
    left = [[message.content for message in without_oldest(messages, number)] for number in range(3)]
    assert left == [["0", "1", "2", "3", "4", "5", "6"], ["0", "2", "3", "4", "5", "6"], ["0", "5", "6"]]


def test_the_oldest_are_left_out_where_there_is_no_room(client: openai.OpenAI, server: Live) -> None:
    long = [{"role": "user", "content": f"{number}" * 600} for number in range(6)]
    given: dict[str, Any] = {"model": "lora", "max_output_tokens": 4, "input": long, "instructions": "Be brief."}
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.responses.create(**given, store=False)
    response = client.responses.create(**given, truncation="auto", store=False, **GREEDY)
    kept = [{"role": "system", "content": "Be brief."}, *long[-3:]]
    assert response.output_text == chat_text(client, kept, 4)
    alone = {**given, "input": "x" * 3000, "truncation": "auto"}
    assert error_of(server.post("/v1/responses", alone))["code"] == "context_length_exceeded"
