"""Tools and thoughts over HTTP, by the official client: outputs are held to a text, or to the grammar of calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast

from adapters.package.files import MANIFEST_FILE
from adapters.package.manifest import BaseRef, DataRef, Manifest, ToolForm, encode_manifest
from bases.fingerprint import base_fingerprint, template_sha256
from bases.tool_text import tools_text
from tests.factory import CHAT_TEMPLATE, make_adapter, make_base
from tests.server.api.support import error_of, events
from tests.server.live import Live, live_server

PATH = "/v1/chat/completions"
HERMES = "{% if tools %}<tools>{{ tools | tojson }}</tools><tool_call></tool_call>{% endif %}"
THINKING = (
    CHAT_TEMPLATE
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif add_generation_prompt and reasoning_effort is defined %}<think>\n{% endif %}"
)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "maximum": 9, "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
AT_ONCE: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
ASKED = [{"role": "user", "content": "hi"}]
CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'


def trained(base: Path, path: Path, form: ToolForm) -> Path:
    """An adapter that has learned tools in this form."""
    make_adapter(base, path, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    manifest = Manifest(
        kind="lora",
        base=BaseRef("tiny", base_fingerprint(base)),
        created=datetime(2026, 1, 2, tzinfo=UTC),
        chat_template_sha256=template_sha256(HERMES + THINKING),
        data=DataRef("b" * 64, 1, form),
    )
    (path / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    return path


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A base whose template knows tools in Hermes' form, and thoughts; adapters that learned tools in either form."""
    root = tmp_path_factory.mktemp("tools")
    (root / "template.jinja").write_text(HERMES + THINKING)
    base = make_base(root / "base", max_position_embeddings=2048)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<think>", "</think>"]}, replace_extra_special_tokens=False
    )
    tokenizer.save_pretrained(base)
    forms: tuple[ToolForm, ...] = ("text", "template")
    adapters = tuple((form, str(trained(base, root / form, form))) for form in forms)
    with live_server(base, root / "data", chat_template=str(root / "template.jinja"), adapters=adapters) as server:
        yield server
        server.wait_idle()


@pytest.fixture(scope="module")
def asking(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def saying(text: str) -> dict[str, Any]:
    """What holds an output to ``text``, thoughts in it and all."""
    return {"structured_outputs": {"choice": [text]}, **AT_ONCE}


def ask(client: openai.OpenAI, text: str = "", **fields: Any) -> ChatCompletion:
    extra = {**(saying(text) if text else {}), **fields.pop("extra", {})}
    answer: ChatCompletion = client.chat.completions.create(
        model="base", messages=fields.pop("messages", ASKED), max_tokens=150, extra_body=extra, **fields
    )
    return answer


def message_of(client: openai.OpenAI, text: str = "", **fields: Any) -> ChatCompletionMessage:
    return ask(client, text, **fields).choices[0].message


def streamed(live: Live, text: str = "", **fields: Any) -> tuple[list[dict[str, Any]], str | None]:
    """The deltas of the one choice, and why it ended."""
    body = {"messages": ASKED, "max_tokens": 150, **(saying(text) if text else {}), **fields}
    choices = [event["choices"][0] for event in events(live, PATH, body)]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert len(reasons) == 1
    return [choice["delta"] for choice in choices], reasons[0]


# ---- calls ----


def test_a_call_and_what_stands_beside_it(asking: openai.OpenAI, live: Live) -> None:
    text = f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>"
    choice = ask(asking, text, tools=TOOLS).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    assert call.id.startswith("call_")
    deltas, reason = streamed(live, text, tools=TOOLS)
    assert reason == "tool_calls"
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
    assert pieces[0]["id"].startswith("call_")
    assert pieces[0] == {
        "index": 0,
        "id": pieces[0]["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert len(pieces) > 5, "arguments come as they are written"
    assert all(set(piece) == {"index", "function"} for piece in pieces[1:])
    assert "".join(piece["function"]["arguments"] for piece in pieces) == '{"city": "Oslo"}'
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."


def test_several_calls_and_only_one_of_them(asking: openai.OpenAI) -> None:
    text = f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>'
    message = message_of(asking, text, tools=TOOLS)
    assert message.content is None
    assert [call.function.name for call in message.tool_calls or ()] == ["weather", "time"]  # type: ignore[union-attr]
    assert len({call.id for call in message.tool_calls or ()}) == 2
    assert len(message_of(asking, text, tools=TOOLS, parallel_tool_calls=False).tool_calls or ()) == 1


@pytest.mark.parametrize("text", ["<tool_call>oops</tool_call> ", f"{CALL}\n", '<tool_call>{"name": "x"}</tool_call>'])
def test_what_is_no_call_is_content(asking: openai.OpenAI, live: Live, text: str) -> None:
    choice = ask(asking, text, tools=TOOLS).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
    deltas, _ = streamed(live, text, tools=TOOLS)
    assert "".join(delta.get("content", "") for delta in deltas) == text


def test_without_tools_a_call_is_content(asking: openai.OpenAI) -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    assert message_of(asking, text).content == text
    assert message_of(asking, text, tools=TOOLS, tool_choice="none").content == text


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_required_fits_its_schema(asking: openai.OpenAI, live: Live, stream: bool) -> None:
    if stream:
        deltas, reason = streamed(
            live, tools=[WEATHER], tool_choice="required", **{"parallel_tool_calls": False, **AT_ONCE}
        )
        pieces = [piece["function"] for delta in deltas for piece in delta.get("tool_calls", [])]
        name, arguments = pieces[0]["name"], "".join(piece["arguments"] for piece in pieces)
        assert not any(delta.get("content") for delta in deltas)
    else:
        (choice,) = ask(
            asking, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, extra=AT_ONCE
        ).choices
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        name, arguments, reason = call.function.name, call.function.arguments, choice.finish_reason
    assert name == "weather"
    if reason != "length":
        assert reason == "tool_calls"
        assert json.loads(arguments)["city"] in ("Paris", "Oslo")


def test_a_named_call(asking: openai.OpenAI) -> None:
    chosen = {"type": "function", "function": {"name": "time"}}
    choice = ask(asking, tools=TOOLS, tool_choice=chosen, temperature=0, extra=AT_ONCE).choices[0]
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "time"
    assert choice.message.content == ""
    assert choice.finish_reason in ("stop", "length")


def test_n_answers_each_call(asking: openai.OpenAI) -> None:
    choices = ask(asking, f"<tool_call>{CALL}</tool_call>", tools=TOOLS, n=2, logprobs=True).choices
    calls = [call for choice in choices for call in choice.message.tool_calls or ()]
    assert len({call.id for call in calls}) == 2
    assert all(choice.logprobs is not None and choice.logprobs.content for choice in choices)


def test_functions_from_before_there_were_tools(asking: openai.OpenAI, live: Live) -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    functions = [WEATHER["function"]]
    choice = ask(asking, text, functions=functions).choices[0]
    assert choice.message.function_call is not None
    assert choice.message.function_call.name == "weather"
    assert (choice.finish_reason, choice.message.tool_calls) == ("function_call", None)
    deltas, reason = streamed(live, text, functions=functions)
    pieces = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert (pieces[0], reason) == ({"name": "weather", "arguments": ""}, "function_call")
    assert "".join(piece["arguments"] for piece in pieces) == '{"city": "Oslo"}'


def test_a_history_with_calls_and_results(asking: openai.OpenAI) -> None:
    messages: list[Any] = [*ASKED]
    first = message_of(asking, f"<tool_call>{CALL}</tool_call>", tools=TOOLS)
    assert first.tool_calls is not None
    messages += [first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain"}]
    assert message_of(asking, "It rains.", messages=messages, tools=TOOLS).content == "It rains."


CALLING = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "f", "parameters": {"properties": 3}}}]}, "tools[0].function.parameters"),
    ({"tools": [{"function": {"name": "f", "parameters": {"required": "a"}}}]}, "tools[0].function.parameters"),
    ({"tools": [WEATHER, WEATHER]}, "tools"),
    ({"tools": [TIME] * 129}, "tools"),
    ({"tools": [{"function": {"name": "f", "description": "x" * 600_000}}]}, "tools"),
    ({"tools": TOOLS, "functions": [{"name": "f"}]}, "functions"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "time"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "required", "guided_json": {"type": "object"}}, "tool_choice"),
    (
        {"tools": [{"function": {"name": "f", "parameters": {"type": "nothing"}}}], "tool_choice": "required"},
        "tools",
    ),
    ({"messages": [*ASKED, {"role": "tool", "tool_call_id": "a", "content": "x"}]}, "messages[1]"),
    ({"messages": [*ASKED, CALLING, {"role": "tool", "tool_call_id": "b", "content": "x"}]}, "messages[2]"),
    ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages[1]"),
    ({"messages": [*ASKED, {"role": "assistant", "content": "x", "reasoning_content": 3}]}, "messages[1]"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(live: Live, fields: dict[str, Any], param: str) -> None:
    error = error_of(live.post(PATH, {"messages": ASKED, "max_tokens": 4, **fields}))
    assert error["param"] == param


def test_tools_are_counted_as_they_are_rendered(live: Live) -> None:
    counts = [
        live.post("/tokenize", {"messages": ASKED, **fields}).json()["count"]
        for fields in ({}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"})
    ]
    assert counts[0] == counts[2] < counts[1]


# ---- thoughts ----


def test_thoughts_come_apart_and_are_counted(asking: openai.OpenAI, live: Live) -> None:
    text = "<think>\nWhy?\n</think>\n\nYes."
    answer = ask(asking, text)
    message: Any = answer.choices[0].message
    assert (message.content, message.reasoning_content, message.reasoning) == ("Yes.", "Why?", "Why?")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == len("<think>\nWhy?\n</think>")
    deltas, _ = streamed(live, text)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Why?"
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."


def test_thoughts_that_the_prompt_begins_or_rules_out(asking: openai.OpenAI) -> None:
    cut: Any = message_of(asking, reasoning_effort="low", extra={"ignore_eos": True, "max_tokens": 20, **NO_END})
    assert cut.content == ""
    assert cut.reasoning_content
    for fields in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        plain: Any = message_of(asking, "Why? Because", extra=fields)
        assert plain.content == "Why? Because"
        assert not hasattr(plain, "reasoning_content")


def test_thoughts_that_nobody_wants(asking: openai.OpenAI) -> None:
    text = "<think>Why?</think>Yes."
    hidden = ask(asking, text, extra={"include_reasoning": False})
    assert hidden.choices[0].message.content == "Yes."
    assert not hasattr(hidden.choices[0].message, "reasoning_content")
    assert hidden.usage is not None
    assert hidden.usage.completion_tokens_details is not None
    assert hidden.usage.completion_tokens_details.reasoning_tokens
    assert message_of(asking, text, extra={"separate_reasoning": False}).content == text


def test_a_call_behind_thoughts(asking: openai.OpenAI) -> None:
    message: Any = message_of(asking, f"<think>Why?</think>\n<tool_call>{CALL}</tool_call>", tools=TOOLS)
    assert (message.content, message.reasoning_content, len(message.tool_calls)) == (None, "Why?", 1)


# ---- a form behind thoughts ----

START, END = 259, 260  # the marks' tokens
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}}}
CITY |= {"required": ["city"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
NO_END: dict[str, Any] = {"logit_bias": {END: -100}}
BEGUN: dict[str, Any] = {"reasoning_effort": "low", "logit_bias": {END: 3}}  # by the prompt
OWN: dict[str, Any] = {"logit_bias": {START: 100, END: 3}}  # by the answer
SEEDED: dict[str, Any] = {"messages": ASKED, "max_tokens": 400, "seed": 5}


def check_city(text: str) -> None:
    assert json.loads(text)["city"] in ("Paris", "Oslo")


@pytest.mark.parametrize("way", [BEGUN, OWN], ids=["begun", "own"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_holds_for_the_answer_behind_thoughts(live: Live, way: dict[str, Any], stream: bool) -> None:
    body = {**SEEDED, **way, "response_format": FORMAT}
    if stream:
        deltas = [event["choices"][0]["delta"] for event in events(live, PATH, {**body})]
        thought = "".join(delta.get("reasoning_content") or "" for delta in deltas)
        check_city("".join(delta.get("content") or "" for delta in deltas))
        assert thought
        return
    answer = live.post(PATH, {**body, "n": 4}).json()
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        check_city(choice["message"]["content"])
    assert sum(bool(choice["message"].get("reasoning_content")) for choice in answer["choices"]) > 2
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 8


@pytest.mark.parametrize(
    "form",
    [
        {"guided_choice": ["Paris", "Oslo"]},
        {"guided_regex": "Paris|Oslo"},
        {"structured_outputs": {"choice": ["Paris", "Oslo"]}},
        {"grammar": 'root ::= "Paris" | "Oslo"'},
    ],
    ids=lambda form: next(iter(form)),
)
def test_other_forms_hold_behind_thoughts_too(live: Live, form: dict[str, Any]) -> None:
    for way in (BEGUN, OWN):
        message = live.post(PATH, {**SEEDED, **way, **form}).json()["choices"][0]["message"]
        assert message["content"] in ("Paris", "Oslo")
        assert message["reasoning_content"]


def test_thoughts_may_be_left_out_or_be_ruled_out(live: Live) -> None:
    for fields in ({"logit_bias": {START: -100}}, AT_ONCE, {"separate_reasoning": False}):
        message = live.post(PATH, {**SEEDED, **fields, "response_format": FORMAT}).json()["choices"][0]["message"]
        check_city(message["content"])
        assert not message.get("reasoning_content")
    said = {"role": "assistant", "content": "<think>Why?"}
    body = {**SEEDED, "messages": [*ASKED, said], "continue_final_message": True, "add_generation_prompt": False}
    message = live.post(PATH, {**body, **BEGUN, "response_format": FORMAT}).json()["choices"][0]["message"]
    check_city(message["content"])
    body["messages"] = [*ASKED, {"role": "assistant", "content": "<think>Why?</think>It is "}]
    message = live.post(PATH, {**body, "guided_choice": ["Oslo"]}).json()["choices"][0]["message"]
    assert message["content"] == "Oslo"


@pytest.mark.parametrize("way", [BEGUN, OWN], ids=["begun", "own"])
def test_calls_come_behind_thoughts_and_in_the_place_of_a_form(live: Live, way: dict[str, Any]) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        asked = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False, "response_format": FORMAT}
        answer = live.post(PATH, {**SEEDED, **way, **asked}).json()
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        message = answer["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["name"] == "weather"
        assert not message["content"]
    (opener,) = live.post("/tokenize", {"prompt": "<", "add_special_tokens": False}).json()["tokens"]
    asked = {"tools": [WEATHER], "parallel_tool_calls": False, "response_format": FORMAT}
    for bias in (90, -90):
        body = {**SEEDED, **way, **asked, "logit_bias": {**way["logit_bias"], END: 100, opener: bias}}
        answer = live.post(PATH, body).json()
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        message = answer["choices"][0]["message"]
        assert bool(message.get("tool_calls")) is (bias > 0)
        if bias < 0:
            check_city(message["content"])


@pytest.mark.parametrize("way", [BEGUN, OWN], ids=["begun", "own"])
def test_other_dialects_hold_forms_behind_thoughts(live: Live, way: dict[str, Any]) -> None:
    fields = {"seed": 5, "logit_bias": way["logit_bias"]}
    effort = {"effort": "low"} if way is BEGUN else {}
    form = {"type": "json_schema", "name": "c", "schema": CITY}
    asked = {"input": "hi", "max_output_tokens": 400, "text": {"format": form}, "reasoning": effort or None}
    items = {item["type"]: item for item in live.post("/v1/responses", {**asked, **fields}).json()["output"]}
    check_city(items["message"]["content"][0]["text"])
    assert items["reasoning"]
    asked = {"model": "base", "messages": ASKED, "max_tokens": 400, "output_config": {"format": form, **effort}}
    blocks = {block["type"]: block for block in live.post("/v1/messages", {**asked, **fields}).json()["content"]}
    check_city(blocks["text"]["text"])
    assert blocks["thinking"]["thinking"]


# ---- tools that are told in words ----


@pytest.mark.parametrize("required", [False, True])
def test_an_adapter_is_told_of_tools_as_it_has_learned_them(live: Live, required: bool) -> None:
    calls = {"text": CALL, "template": f"<tool_call>{CALL}</tool_call>"}
    for model, text in calls.items():
        for said in calls.values():
            held = {"tool_choice": "required", "seed": 3} if required else saying(said)
            body = {"model": model, "messages": ASKED, "tools": [WEATHER], "max_tokens": 150, **held, **AT_ONCE}
            message = live.post(PATH, body).json()["choices"][0]["message"]
            assert bool(message.get("tool_calls")) == (required or said == text)
    fields: dict[str, Any] = {"messages": ASKED, "tools": TOOLS, "return_token_strs": False}
    written = {name: live.post("/tokenize", {"model": name, **fields}).json()["tokens"] for name in ("base", *calls)}
    assert written["template"] == written["base"] != written["text"]
    words = [{"role": "system", "content": tools_text(TOOLS)}, *ASKED]
    assert live.post("/tokenize", {"messages": words}).json()["tokens"] == written["text"]


def test_a_base_without_tools_is_told_of_them_in_words(server: Live) -> None:
    body: dict[str, Any] = {"messages": ASKED, "tools": TOOLS, "max_tokens": 150}
    (choice,) = server.post(PATH, {**body, **saying(CALL)}).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], choice["finish_reason"]) == ("weather", "tool_calls")
    required = server.post(PATH, {**body, "model": "lora", "tool_choice": "required", "seed": 1}).json()
    assert required["choices"][0]["message"]["tool_calls"]
