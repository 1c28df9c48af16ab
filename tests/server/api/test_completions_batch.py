"""Several conversations in one request, and answers that begin with what they go on from."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.support import error_of, events
from tests.server.live import Live

CHAT, BATCH = "/v1/chat/completions", "/v1/chat/completions/batch"
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
CONVERSATIONS = [[{"role": "user", "content": content}] for content in ("hé", "who?", "a longer question, this one")]


@pytest.mark.parametrize("model", ["tiny", "lora"])
def test_each_conversation_is_answered_as_alone(server: Live, model: str) -> None:
    body = {**GREEDY, "model": model, "n": 2, "logprobs": True, "prompt_logprobs": 0, "return_token_ids": True}
    batch = server.post(BATCH, {**body, "messages": CONVERSATIONS}).json()
    assert batch["object"] == "chat.completion"
    assert [choice["index"] for choice in batch["choices"]] == list(range(6))
    alone = [server.post(CHAT, {**body, "messages": messages}).json() for messages in CONVERSATIONS]
    for number, one in enumerate(alone):
        for choice, own in zip(batch["choices"][2 * number :], one["choices"], strict=False):
            assert (choice["message"], choice["token_ids"]) == (own["message"], own["token_ids"])
            assert choice["prompt_token_ids"] == one["prompt_token_ids"]
            assert len(choice["prompt_logprobs"]) == len(one["prompt_logprobs"])
    for count in ("prompt_tokens", "completion_tokens"):
        assert batch["usage"][count] == sum(one["usage"][count] for one in alone)


def test_without_a_length_each_has_the_room_behind_its_prompt(server: Live) -> None:
    long = [{"role": "user", "content": "x" * 2000}]
    batch = server.post(BATCH, {"messages": [long, CONVERSATIONS[0]], "ignore_eos": True, "return_token_ids": True})
    ids = [(len(one["prompt_token_ids"]), len(one["token_ids"])) for one in batch.json()["choices"]]
    assert {sum(lengths) for lengths in ids} == {server.context.engine.info.max_model_len}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages"),
        ({"messages": CONVERSATIONS[0]}, "messages"),
        ({"messages": CONVERSATIONS, "stream": True}, "stream"),
        ({"messages": CONVERSATIONS * 10, "n": 100}, "prompt"),
    ],
)
def test_what_is_no_batch(server: Live, wrong: dict[str, Any], param: str) -> None:
    assert str(error_of(server.post(BATCH, wrong))["param"]).startswith(param)


def test_an_echo_of_the_message_that_is_continued(server: Live) -> None:
    messages = [*CONVERSATIONS[0], {"role": "assistant", "content": "An apple a day"}]
    body = {**GREEDY, "messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    plain = server.post(CHAT, body).json()["choices"][0]["message"]["content"]
    whole = server.post(CHAT, {**body, "echo": True}).json()["choices"][0]["message"]["content"]
    assert whole == "An apple a day" + plain
    streamed = [
        event["choices"][0]["delta"].get("content", "") for event in events(server, CHAT, {**body, "echo": True})
    ]
    assert "".join(streamed) == whole
    asked = {**GREEDY, "messages": CONVERSATIONS[0]}
    answers = [server.post(CHAT, {**asked, "echo": echo}).json()["choices"] for echo in (True, False)]
    assert answers[0] == answers[1], "a question is not repeated"
