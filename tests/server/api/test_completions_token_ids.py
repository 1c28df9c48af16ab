"""Answers that tell the ids of their tokens, as vLLM's do, why they stopped, and what else clients ask to be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.text.tokenizer import TextProcessor
from tests.server.api.support import BASE, error_of, events
from tests.server.live import Live

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {**GREEDY, "messages": [{"role": "user", "content": "hé"}]},
    TEXT: {**GREEDY, "prompt": ["hé", "who?"]},
}


@pytest.fixture(scope="module")
def text(base: Path) -> TextProcessor:
    """The base's tokenizer."""
    return TextProcessor.load(base)


def test_whole_answers(server: Live, text: TextProcessor) -> None:
    chat = server.post(CHAT, {**BODIES[CHAT], "n": 2}).json()
    assert text.decode(chat["prompt_token_ids"], skip_special_tokens=False).count("hé") == 1
    for choice in chat["choices"]:
        assert len(choice["token_ids"]) == 8
        assert text.decode(choice["token_ids"], skip_special_tokens=True) == choice["message"]["content"]
    for choice, prompt in zip(server.post(TEXT, BODIES[TEXT]).json()["choices"], ("hé", "who?"), strict=True):
        assert choice["prompt_token_ids"] == text.encode(prompt, add_special_tokens=True)
        assert text.decode(choice["token_ids"], skip_special_tokens=True) == choice["text"]


def test_without_them_the_fields_are_null(server: Live) -> None:
    off = {"return_token_ids": False}
    chat, completion = (server.post(path, {**body, **off}).json() for path, body in BODIES.items())
    assert chat["prompt_token_ids"] is chat["prompt_logprobs"] is chat["choices"][0]["token_ids"] is None
    choice = completion["choices"][0]
    assert choice["token_ids"] is choice["prompt_token_ids"] is choice["prompt_logprobs"] is None
    assert choice["stop_reason"] is chat["choices"][0]["stop_reason"] is None
    assert not any("token_ids" in json.dumps(event) for event in events(server, CHAT, {**BODIES[CHAT], **off}))


def test_streams_tell_the_same(server: Live) -> None:
    whole, told = server.post(CHAT, BODIES[CHAT]).json(), events(server, CHAT, BODIES[CHAT])
    assert told[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert not any("prompt_token_ids" in event for event in told[1:])
    ids = [token for event in told for token in event["choices"][0].get("token_ids", ())]
    assert ids == whole["choices"][0]["token_ids"]

    body = {**BODIES[TEXT], "logprobs": 1, "return_tokens_as_token_ids": True}
    choices = [event["choices"][0] for event in events(server, TEXT, body)]
    for whole_choice in server.post(TEXT, body).json()["choices"]:
        own = [choice for choice in choices if choice["index"] == whole_choice["index"]]
        assert own[0]["prompt_token_ids"] == whole_choice["prompt_token_ids"]
        assert not any("prompt_token_ids" in choice for choice in own[1:])
        ids = [token for choice in own for token in choice["token_ids"]]
        assert ids == whole_choice["token_ids"]
        assert [f"token_id:{token}" for token in ids] == [name for one in own for name in one["logprobs"]["tokens"]]


def test_a_stop_string_ends_the_ids_too(server: Live, text: TextProcessor) -> None:
    content = server.post(CHAT, BODIES[CHAT]).json()["choices"][0]["message"]["content"]
    stop = content[3]
    choice = server.post(CHAT, {**BODIES[CHAT], "stop": ["never this", stop]}).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert text.decode(choice["token_ids"], skip_special_tokens=True).startswith(choice["message"]["content"] + stop)
    last = events(server, CHAT, {**BODIES[CHAT], "stop": stop})[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


def test_a_stop_token_is_told(server: Live) -> None:
    first = server.post(TEXT, BODIES[TEXT]).json()["choices"][0]["token_ids"][0]
    choice = server.post(TEXT, {**BODIES[TEXT], "stop_token_ids": [first]}).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"], choice["token_ids"]) == ("stop", first, [first])
    assert choice["text"] == ""


def test_logprobs_named_by_ids(server: Live) -> None:
    named = {"return_tokens_as_token_ids": True}
    chat = server.post(CHAT, {**BODIES[CHAT], **named, "logprobs": True, "top_logprobs": 3}).json()["choices"][0]
    rows = chat["logprobs"]["content"]
    assert [row["token"] for row in rows] == [f"token_id:{token}" for token in chat["token_ids"]]
    assert b"".join(bytes(row["bytes"]) for row in rows).decode(errors="replace") == chat["message"]["content"]
    assert all(one["token"].startswith("token_id:") for row in rows for one in row["top_logprobs"])

    body = {**BODIES[TEXT], **named, "prompt": "who?", "echo": True, "logprobs": 1}
    choice = server.post(TEXT, body).json()["choices"][0]
    tokens = [*choice["prompt_token_ids"], *choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in tokens]
    firsts = [next(iter(row)) for row in choice["logprobs"]["top_logprobs"][1:]]
    assert firsts == choice["logprobs"]["tokens"][1:]


def test_either_end_of_a_prompt_is_kept(server: Live, text: TextProcessor) -> None:
    ids = text.encode("a long prompt of many tokens", add_special_tokens=True)
    body = {**BODIES[TEXT], "prompt": ids, "truncate_prompt_tokens": 4, "max_tokens": 1}
    for side, kept in (("right", ids[:4]), ("left", ids[-4:]), (None, ids[-4:])):
        answer = server.post(TEXT, {**body, "truncation_side": side})
        assert answer.json()["choices"][0]["prompt_token_ids"] == kept
    assert error_of(server.post(TEXT, {**body, "truncation_side": "middle"}))["param"] == "truncation_side"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_obfuscation_hides_how_long_pieces_are(server: Live, path: str) -> None:
    body = {**BODIES[path], "stream_options": {"include_obfuscation": True, "include_usage": True}}
    told = events(server, path, body)
    assert all(event["obfuscation"] for event in told)
    with server.http() as http, http.stream("POST", path, json={**body, "stream": True}) as response:
        sizes = {len(line.encode()) % 64 for line in response.iter_lines() if line.startswith("data: {")}
    assert len(sizes) == 1
    assert not any("obfuscation" in event for event in events(server, path, BODIES[path]))
    assert error_of(server.post(path, body))["param"] == "stream_options"  # only of streams


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_service_tier_is_said(server: Live, path: str) -> None:
    for asked in ("auto", "priority"):
        assert server.post(path, {**BODIES[path], "service_tier": asked}).json()["service_tier"] == "default"
    assert "service_tier" not in server.post(path, BODIES[path]).json()
    assert events(server, path, {**BODIES[path], "service_tier": "auto"})[0]["service_tier"] == "default"
    assert error_of(server.post(path, {**BODIES[path], "service_tier": "gold"}))["param"] == "service_tier"


def test_a_prediction_changes_nothing(server: Live) -> None:
    prediction = {"type": "content", "content": "something else"}
    answers = [server.post(CHAT, {**BODIES[CHAT], **more}).json() for more in ({}, {"prediction": prediction})]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["model"] == BASE


@pytest.mark.parametrize("model", [BASE, "lora"])
def test_a_chat_may_be_given_as_tokens(server: Live, model: str) -> None:
    whole = server.post(CHAT, {**BODIES[CHAT], "model": model}).json()
    body = {**GREEDY, "model": model, "messages": [], "prompt_token_ids": whole["prompt_token_ids"]}
    again = server.post(CHAT, {**body, "echo": False, "chat_template_kwargs": {}}).json()
    for told in "choices", "prompt_token_ids":
        assert again[told] == whole[told]
    assert again["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert events(server, CHAT, body)[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    ending = server.post(CHAT, {**body, "truncate_prompt_tokens": 3}).json()
    assert ending["prompt_token_ids"] == whole["prompt_token_ids"][-3:]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt_token_ids"),
        ({"add_generation_prompt": True}, "add_generation_prompt"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ({"enable_thinking": False}, "enable_thinking"),
        ({"echo": True}, "echo"),
        ({"prompt_token_ids": []}, "prompt_token_ids"),
        ({"prompt_token_ids": [10**6]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1] * 5000}, "prompt_token_ids"),
        ({"prompt_token_ids": None}, "messages"),
    ],
)
def test_tokens_are_the_whole_prompt_of_a_chat(server: Live, change: dict[str, Any], param: str) -> None:
    assert error_of(server.post(CHAT, {"messages": [], "prompt_token_ids": [1, 2], **change}))["param"] == param
