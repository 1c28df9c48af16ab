"""What outputs are asked to look like, over HTTP: every field that says so, on every adapter, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import openai
import pytest

from tests.server.api.support import BASE, error_of, events
from tests.server.live import Live

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {CHAT: {"messages": [{"role": "user", "content": "x"}]}, TEXT: {"prompt": "x"}}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "é"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
GBNF = 'root ::= answer "!"\nanswer ::= "yes" | "no"'
LARK = 'start: ("yes" | "no") "!"'
FORMS: list[tuple[dict[str, Any], str]] = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        "json",
    ),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json"),
    ({"structured_outputs": {"json": SCHEMA}, "response_format": {"type": "text"}}, "json"),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}}, "json"),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar"}, "json"),
    ({"guided_json": json.dumps(SCHEMA)}, "json"),
    ({"guided_decoding": {"json": SCHEMA}}, "json"),
    ({"json_schema": SCHEMA}, "json"),
    ({"structured_outputs": {"regex": "(yes|no)!"}}, "answer"),
    ({"guided_regex": "^(yes|no)!$"}, "answer"),
    ({"regex": "(yes|no)!"}, "answer"),
    ({"structured_outputs": {"choice": ["yes!", "no!"]}}, "answer"),
    ({"guided_choice": ["yes!", "no!"]}, "answer"),
    ({"structured_outputs": {"grammar": GBNF}}, "answer"),
    ({"guided_grammar": LARK}, "answer"),
    ({"grammar": GBNF}, "answer"),
    ({"ebnf": GBNF}, "answer"),
    ({"response_format": {"type": "grammar", "grammar": LARK}}, "answer"),
]


def texts_of(answer: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in answer["choices"]]


def check(form: str, text: str) -> None:
    if form == "json":
        jsonschema_rs.validate(SCHEMA, json.loads(text))
    else:
        assert text in ("yes!", "no!")


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_every_way_to_say_it(server: Live, path: str) -> None:
    for fields, form in FORMS:
        answer = server.post(path, {**BODIES[path], **fields, "max_tokens": 200, "seed": 5})
        assert answer.status_code == 200, (fields, answer.text)
        [choice] = answer.json()["choices"]
        assert choice["finish_reason"] == "stop", (fields, answer.text)
        [text] = texts_of(answer.json())
        check(form, text)


@pytest.mark.parametrize("model", [BASE, "lora", "prefix", "prompt"])
def test_on_every_adapter_with_all_that_may_stand_beside_it(server: Live, model: str) -> None:
    beside = {"n": 3, "seed": 3, "logprobs": True, "top_logprobs": 2, "min_tokens": 2, "frequency_penalty": 0.5}
    body = {**BODIES[CHAT], **FORMS[0][0], **beside, "model": model, "max_tokens": 200}
    whole = server.post(CHAT, body).json()
    streamed = ["", "", ""]
    for event in events(server, CHAT, body):
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert texts_of(whole) == streamed
    for choice in whole["choices"]:
        check("json", choice["message"]["content"])
        told = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
        assert told.decode() == choice["message"]["content"]


def test_any_object(server: Live) -> None:
    body = {**BODIES[CHAT], "response_format": {"type": "json_object", "x": 1}, "max_tokens": 400, "n": 8, "seed": 1}
    ended = [c for c in server.post(CHAT, body).json()["choices"] if c["finish_reason"] == "stop"]
    assert ended
    assert all(isinstance(json.loads(choice["message"]["content"]), dict) for choice in ended)


def test_a_stop_string_ends_it_before_its_grammar_does(server: Live) -> None:
    body = {**BODIES[TEXT], "guided_regex": "[ab]{20}", "stop": ["a"], "max_tokens": 50, "seed": 2}
    [choice] = server.post(TEXT, body).json()["choices"]
    assert re.fullmatch("b*", choice["text"])
    assert choice["finish_reason"] == "stop"


def test_an_output_may_be_cut(server: Live) -> None:
    [choice] = server.post(TEXT, {**BODIES[TEXT], "guided_choice": ["abcdef"], "max_tokens": 3}).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")


def test_with_the_official_client(client: openai.OpenAI) -> None:
    from pydantic import BaseModel, Field

    class Answer(BaseModel):
        yes: bool
        count: int = Field(ge=0, le=9)

    answer = client.chat.completions.parse(
        model="lora", messages=[{"role": "user", "content": "x"}], response_format=Answer, max_tokens=100
    )
    assert isinstance(answer.choices[0].message.parsed, Answer)


def named(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format", "must be one of"),
    ({"response_format": {"type": "text", "schema": {"type": "object"}}}, "response_format", "must be one of"),
    ({"response_format": {"schema": {"type": "object"}}}, "response_format", "must be one of"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "is missing"),
    ({"structural_tag": {"format": {"type": "tags_with_separator", "tags": [1], "separator": ","}}},
     "structural_tag", "cannot be read"),
    (named(None), "response_format", "must be an object"),
    (named([]), "response_format", "must be an object"),
    (named({"name": "x"}), "response_format", "schema: is missing"),
    (named({"name": 5, "schema": {}}), "response_format", "name: must be a text"),
    (named({"schema": 5}), "response_format", "is an object"),
    ({"guided_json": {"properties": {"a": {"items": {"not": {}}}}}}, "guided_json", "guided_json.properties.a.items: "),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "`uniqueItems`"),
    ({"guided_json": {"$ref": "#/$defs/x"}}, "guided_json", "does not exist"),
    ({"guided_json": {"$ref": "https://example.com/x"}}, "guided_json", "example.com"),
    ({"guided_json": {"type": "string", "format": "idn-email"}}, "guided_json", "idn-email"),
    ({"guided_json": {"type": "integer", "minimum": 3, "maximum": 2}}, "guided_json", "minimum"),
    ({"guided_json": "{"}, "guided_json", "is no JSON"),
    ({"guided_json": '"\\ud800"'}, "guided_json", "guided_json"),
    ({"structured_outputs": {"json": {"type": "object", "properties": {"a": False}, "required": ["a"]}}},
     "structured_outputs", "unsatisfiable"),
    ({"guided_regex": "("}, "guided_regex", "unclosed group"),
    ({"guided_regex": "(?=x)y"}, "guided_regex", "look-around"),
    ({"guided_choice": [1]}, "guided_choice", "list of texts"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "1 to"),
    ({"guided_grammar": "root ::= ("}, "guided_grammar", "GBNF"),
    ({"guided_grammar": "start: nobody"}, "guided_grammar", "nobody"),
    ({"grammar": "start: <|nobody|>"}, None, "nobody"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "leave one of them out"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "leave one of them out"),
    ({"guided_regex": "x", "allowed_token_ids": [1]}, None, "continues the output"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=[str(case[0])[:60] for case in REFUSED])
def test_what_is_refused_and_where(server: Live, fields: dict[str, Any], param: str | None, words: str) -> None:
    error = error_of(server.post(CHAT, {**BODIES[CHAT], **fields, "max_tokens": 5}))
    assert words in error["message"]
    assert error["param"] == param
    assert len(error["message"]) < 600


def test_what_would_take_for_ever_or_end_a_process_harms_nobody(server: Live) -> None:
    deep = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(4000)} | {"a4000": {"type": "string"}}
    error = error_of(server.post(TEXT, {**BODIES[TEXT], "guided_json": {"$defs": deep, "$ref": "#/$defs/a0"}}))
    assert "make it simpler" in error["message"]
    error = error_of(server.post(TEXT, {**BODIES[TEXT], "guided_grammar": "start: " + '"a"? ' * 5000}))
    assert "too much" in error["message"]
    answer = server.post(TEXT, {**BODIES[TEXT], "guided_choice": ["ok"], "max_tokens": 5})
    assert texts_of(answer.json()) == ["ok"]
