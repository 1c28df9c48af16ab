"""Messages over HTTP, with Anthropic's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.server.api.support import BASE
from tests.server.live import Live, live_server

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, Any] = {"extra_body": {"ignore_eos": True, "temperature": 0}}


@pytest.fixture(scope="module")
def claude(server: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def chat_text(client: openai.OpenAI, messages: Any, tokens: int, **fields: Any) -> str:
    answer = client.chat.completions.create(
        model="lora", messages=messages, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True, **fields}
    )
    return str(answer.choices[0].message.content)


def test_answers_what_a_chat_does(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    message = claude.messages.create(model="lora", system="Be brief.", messages=HELLO, max_tokens=7, **GREEDY)
    (block,) = message.content
    assert block.type == "text"
    assert block.text == chat_text(client, messages, 7)
    assert (message.type, message.role, message.model) == ("message", "assistant", "lora")
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.usage.output_tokens == 7
    assert message._request_id
    counted = claude.messages.count_tokens(model="lora", system="Be brief.", messages=HELLO)
    assert counted.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def test_a_stream_adds_up_to_the_message(claude: anthropic.Anthropic) -> None:
    given: dict[str, Any] = {"model": "lora", "messages": HELLO, "max_tokens": 6, **GREEDY}
    with claude.messages.stream(**given) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    whole = claude.messages.create(**given)
    assert final.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 6)
    assert [kind for kind in kinds if kind not in ("text", "content_block_delta")] == [
        "message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip


def test_names_the_stop_sequence(claude: anthropic.Anthropic) -> None:
    given: dict[str, Any] = {"model": BASE, "messages": HELLO, **GREEDY}
    text = claude.messages.create(max_tokens=8, **given).content[0].text
    stop = text[4:6]
    message = claude.messages.create(max_tokens=8, stop_sequences=["never said", stop], **given)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text.partition(stop)[0]


def test_blocks_and_a_begun_answer(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    blocks: Any = [
        {"role": "user", "content": [{"type": "text", "text": "One", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two"}]},
    ]
    plain = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
    message = claude.messages.create(model="lora", messages=blocks, max_tokens=5, **GREEDY)
    wanted = chat_text(client, plain, 5, continue_final_message=True, add_generation_prompt=False)
    assert message.content[0].text == wanted


def test_text_has_the_form_that_is_asked_for(claude: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"word": {"enum": ["yes", "no"]}}, "required": ["word"]}
    config: Any = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
    message = claude.messages.create(  # of white space alone a draw may write more than 60 tokens
        model=BASE, messages=HELLO, max_tokens=60, output_config=config, extra_body={"temperature": 0}
    )
    assert json.loads(message.content[0].text)["word"] in ("yes", "no")  # type: ignore[union-attr]
    assert message.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"output_config": {"format": {"type": "x"}}}, "output_config.format"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"max_tokens": 20_000}, "context length"),
    ],
)
def test_says_what_is_wrong(claude: anthropic.Anthropic, fields: dict[str, Any], words: str) -> None:
    given = {"model": BASE, "messages": HELLO, "max_tokens": 4, **fields}
    with pytest.raises(anthropic.BadRequestError) as raised:
        claude.messages.create(**given)
    body: Any = raised.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert words in body["error"]["message"]
    assert raised.value.request_id == body["request_id"]


def test_models_are_read_by_both_clients(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    listed = claude.models.list()
    assert {model.id for model in listed.data} == {model.id for model in client.models.list().data}
    assert all(model.type == "model" and model.created_at.year > 2000 for model in listed.data)
    assert claude.models.retrieve("lora").display_name == "lora"
    with pytest.raises(anthropic.NotFoundError) as raised:
        claude.models.retrieve("nothing")
    assert raised.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


def test_keys_and_other_refusals(base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": BASE, "messages": HELLO, "max_tokens": 1}
    with live_server(base, tmp_path, api_key="sk", max_body_mb=0.001, key_rpm=2) as live:
        stranger = anthropic.Anthropic(base_url=live.url, api_key="wrong", max_retries=0)
        with stranger, pytest.raises(anthropic.AuthenticationError) as raised:
            stranger.messages.create(**given)
        assert raised.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        with anthropic.Anthropic(base_url=live.url, api_key="sk", max_retries=0) as known:
            assert known.messages.create(**given).type == "message"
            with pytest.raises(anthropic.APIStatusError) as large:
                known.messages.create(**{**given, "system": "x" * 5000})
            assert large.value.status_code == 413
            assert large.value.body["error"]["type"] == "request_too_large"  # type: ignore[index]
            known.messages.create(**given)
            with pytest.raises(anthropic.RateLimitError) as often:
                known.messages.create(**given)
            assert often.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
            live.on_loop(lambda: live.context.admission.close("it is ending"))
            with pytest.raises(anthropic.APIStatusError) as ending:
                known.messages.create(**given)
            assert ending.value.status_code == 529
            assert ending.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
