"""A base that writes channels, as gpt-oss does, over HTTP: thoughts, calls and content are told by them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from server.text.output.channels import CHANNEL, CONSTRAIN, ENDS, MESSAGE, START
from tests.factory import make_base
from tests.server.api.support import events
from tests.server.live import Live, live_server

PATH = "/v1/chat/completions"
MARKS = [START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS]
FIRST = 259  # the number of the first of them
LETTER = 64  # the number of "a"
IDS = {mark: FIRST + number for number, mark in enumerate(MARKS)}
TEMPLATE = (
    "{% if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.thinking %}"
    "{{ '<|channel|>analysis<|message|>' + m.thinking }}{% endif %}{{ '<|message|>' + (m.content or '') }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' and not add_generation_prompt else '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 600, "seed": 4}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("channels")
    base = make_base(root / "base", vocab_size=FIRST + len(MARKS), max_position_embeddings=1024)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(base)
    (root / "template.jinja").write_text(TEMPLATE)
    with live_server(base, root / "data", chat_template=str(root / "template.jinja")) as server:
        assert server.context.text.token_id("a") == LETTER
        assert [server.context.text.special_token(mark) for mark in MARKS] == list(IDS.values())
        yield server
        server.wait_idle()


@pytest.mark.parametrize("thinks", [False, True])
def test_a_call_that_is_required_is_a_message_to_a_function(live: Live, thinks: bool) -> None:
    analysis = {IDS[START]: -50, LETTER: 50, IDS["<|end|>"]: 44} if thinks else {}
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "separate_reasoning": thinks}
    body = {**ASKED, **asked, "logit_bias": analysis}
    answer = live.post(PATH, body).json()
    choice = answer["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert bool(choice["message"].get("reasoning_content")) == thinks
    assert (answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 10) == thinks
    deltas = [event["choices"][0]["delta"] for event in events(live, PATH, body)]
    pieces = [piece["function"]["arguments"] for delta in deltas for piece in delta.get("tool_calls", [])]
    assert "".join(pieces) == call["function"]["arguments"]
    assert not any(delta.get("content") for delta in deltas)
    thoughts = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert thoughts == choice["message"].get("reasoning_content", "")


def test_a_form_is_that_of_the_final_message(live: Live) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    message = live.post(PATH, {**ASKED, "response_format": form, "separate_reasoning": False}).json()["choices"][0]
    assert json.loads(message["message"]["content"])["city"] in ("Oslo", "Rome")


def test_channels_are_no_part_of_what_is_said_without_tools(live: Live) -> None:
    start, channel, message, end = (f"<[{IDS[mark]}]>" for mark in (START, CHANNEL, MESSAGE, "<|end|>"))
    said = f'{channel} "analysis" {message} "Why?" {end} {start} "assistant" {channel} "final" {message} "Yes."'
    held: dict[str, Any] = {"structured_outputs": {"grammar": f"start: {said}"}, "separate_reasoning": False}
    held["logit_bias"] = {IDS[START]: -50, LETTER: 50}  # or all this would be said in the final message
    assert live.post(PATH, {**ASKED, **held}).json()["choices"][0]["message"]["content"] == "Why?\n\nYes."
