"""Every format of calls: what it reads, that it reads the same however the text is cut, and what it leaves alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest

from server.text.output.calls import CallOptions
from server.text.output.formats import FORMATS
from server.text.output.parts import AssistantMessage, Part, ToolCall, ToolCallBegin, ToolCallDelta
from server.text.output.reader import MAX_UNDECIDED_CHARS

SCHEMAS = {
    "f": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}},
    "g": {"type": "object", "properties": {}},
}
SAID: dict[str, Any] = {"a": 'x "y", (z)]}</p>\n\\', "b": 5}
JSON = json.dumps(SAID)
DEEPSEEK = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
BOTH: list[tuple[str, str]] = [  # a call of f with SAID, then one of g with nothing
    ("hermes", f'<tool_call>\n{{"name": "f", "arguments": {JSON}}}\n</tool_call>\n'
     '<tool_call>{"name":"g"}</tool_call>'),
    ("hermes", f'<tool_call>{{"arguments": {JSON}, "name": "f"}} {{"name": "g", "arguments": null}}</tool_call>\n'),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\n" + SAID["a"] + "\n</parameter>\n<parameter=b>\n5\n"
     "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>"),
    ("glm45", "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>" + SAID["a"] + "</arg_value>\n<arg_key>b</arg_key>\n"
     "<arg_value>5</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>"),
    ("llama3_json", f'<|python_tag|>{{"name": "f", "parameters": {JSON}}}; {{"name": "g", "parameters": {{}}}}'),
    ("llama3_json", f'{{"type": "function", "name": "f", "parameters": {JSON}}}\n{{"name": "g", "parameters": {{}}}}'),
    ("mistral", f'[TOOL_CALLS] [{{"name": "f", "arguments": {JSON}, "id": "abcdefghi"}}, '
     '{"name": "g", "arguments": {}}]'),
    ("mistral", f"[TOOL_CALLS]f[CALL_ID]abc[ARGS]{JSON}[TOOL_CALLS]g{{}}"),
    ("deepseek_v3", DEEPSEEK.format("<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
     f"```json\n{JSON}\n```<｜tool▁call▁end｜>\n"
     "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>")),
    ("deepseek_v3", DEEPSEEK.format(f"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>"
     "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜>")),
    ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
     f"{JSON}<|tool_call_end|><|tool_call_begin|>functions.g:1 <|tool_call_argument_begin|> {{}} <|tool_call_end|>"
     "<|tool_calls_section_end|>"),
    ("kimi_k2", f"<|tool_call_begin|>f<|tool_call_argument_begin|>{JSON}<|tool_call_end|>\n<|tool_call_begin|>g:1"
     "<|tool_call_argument_begin|>{}"),
    ("minimax_m2", '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">' + SAID["a"] + "</parameter>\n"
     '<parameter name="b" type="integer">5</parameter>\n</invoke>\n<invoke name="g" description="(e.g. g)">\n'
     "</invoke>\n</minimax:tool_call>"),
    ("minimax_m2", "<minimax:tool_call><invoke name='f'><parameter name=a>" + SAID["a"] + "</parameter>"
     '<parameter name=b>5</parameter></invoke></minimax:tool_call><minimax:tool_call><invoke name="g"></invoke>'
     "</minimax:tool_call>"),
    ("pythonic", f"[f(a={SAID['a']!r}, b=5), g()]"),
    ("pythonic", f"<|tool_call_start|>[f(a={SAID['a']!r},b=5), g()]<|tool_call_end|>"),
    ("granite", f'<|tool_call|>[{{"name": "f", "arguments": {JSON}}}, {{"name": "g", "arguments": {{}}}}]'),
    ("json_list", f'<TOOLCALL>[{{"name": "f", "arguments": {JSON}}}, {{"name": "g", "arguments": {{}}}}]</TOOLCALL>'),
    ("json_list", f'functools[{{"name": "f", "arguments": {JSON}}}, {{"name": "g", "arguments": {{}}}}]'),
    ("json", f'{{"name": "f", "arguments": {JSON}}}\n{{"name": "g", "arguments": {{}}}}'),
    ("json", f'```json\n[{{"name": "f", "arguments": {JSON}}}, {{"name": "g", "arguments": {{}}}}]\n```'),
    ("json", f'{{"name": "f", "arguments": {json.dumps(JSON)}}}\n{{"name": "g", "arguments": ""}}\n'),
]  # fmt: skip
NONE: list[tuple[str, str]] = [  # no calls, though they look like some
    ("hermes", "Write <tool_call> and </tool_call> around it: <tool_call>{}</tool_call>\n"),
    ("hermes", '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "f", "argu'),
    ("qwen3_coder", "<tool_call>\n<function=nobody>\n</function>\n</tool_call>"),
    ("glm45", "<tool_call>nobody\n<arg_key>a</arg_key></tool_call>"),
    ("llama3_json", '{"name": "Ada", "parameters": "none"}  '),
    ("llama3_json", '<|python_tag|>brave_search.call(query="x")'),
    ("mistral", "[TOOL_CALLS]nobody{}"),
    ("mistral", "[TOOL_CALL] [TOOL_CALLS"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>nobody<｜tool▁sep｜>{}<｜tool▁call▁end｜>"),
    ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.h:0<|tool_call_argument_begin|>{}"),
    ("kimi_k2", "<|tool_calls_section_begin|>\n<|tool_calls_section_end|>"),
    ("minimax_m2", '<minimax:tool_call>\n<invoke name="h">\n</invoke>\n</minimax:tool_call>'),
    ("minimax_m2", "<minimax:tool_call>\n<invoke>\n</invoke>"),
    ("pythonic", "[f(x) for x in xs]\n[g, f]\n[link](http://g)"),
    ("granite", "<|tool_call|>[]"),
    ("json", '{"name": "f"}\n{"name": "Ada", "arguments": {}}\n[1, 2]\n```json\n{"a": 1}\n```\n'),
    ("json", 'so {"name": "f", "arguments": {"a": "x"}} inside a line'),
    ("json", '{"name": "f", "description": "A function.", "parameters": {"type": "object"}}'),
    ("json", '{"name": "' + "f" * (MAX_UNDECIDED_CHARS + 5) + '"}'),
]


def parse(name: str, pieces: Iterable[str], *, parallel: bool = True) -> AssistantMessage:
    numbers = itertools.count()
    parser = FORMATS[name].parser(CallOptions(SCHEMAS, lambda: f"c{next(numbers)}", parallel))
    message = AssistantMessage()
    begun = 0
    parts: list[Part] = []
    for piece in pieces:
        parts += parser.feed(piece)
    for part in (*parts, *parser.finish()):
        begun += isinstance(part, ToolCallBegin)
        message.add([part])
        assert len(message.calls) == begun
    return message


@pytest.mark.parametrize(("name", "text"), BOTH)
def test_calls_are_read(name: str, text: str) -> None:
    found = parse(name, [text])
    assert [(call.id, call.name) for call in found.calls] == [("c0", "f"), ("c1", "g")]
    assert [json.loads(call.arguments or "{}") for call in found.calls] == [SAID, {}]
    assert found.content == ""
    beside = parse(name, [f"Let me see.\n\n{text}\n"])
    assert (beside.content, beside.calls) == ("Let me see.", found.calls)
    alone = parse(name, [text], parallel=False)
    assert alone.calls == found.calls[:1]


@pytest.mark.parametrize(("name", "text"), BOTH + NONE)
def test_no_cut_changes_what_is_read(name: str, text: str) -> None:
    text = f"Ok\n{text[:400]} done"
    whole = parse(name, [text])
    assert parse(name, text) == whole, "a character at a time"
    for at in range(len(text) + 1):
        assert parse(name, [text[:at], text[at:]]) == whole
        assert parse(name, text[:at]) == parse(name, [text[:at]]), "the output ends here"


@pytest.mark.parametrize(("name", "text"), NONE)
def test_what_is_no_call_is_content_whole(name: str, text: str) -> None:
    assert parse(name, [text]) == AssistantMessage(text)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "Lon'),
        ("llama3_json", '{"name": "f", "parameters": {"a": "Lon'),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": "Lon'),
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\nLon"),
        ("glm45", "<tool_call>f<arg_key>a</arg_key><arg_value>Lon"),
        ("kimi_k2", '<|tool_call_begin|>functions.f:12<|tool_call_argument_begin|>{"a": "Lon'),
        ("minimax_m2", '<minimax:tool_call><invoke name="f"><parameter name="a">Lon'),
        ("json", '{"name": "f", "arguments": {"a": "Lon'),
    ],
)
def test_arguments_come_as_they_are_written(name: str, before: str) -> None:
    parser = FORMATS[name].parser(CallOptions(SCHEMAS, lambda: "c0"))
    begun, *_ = [part for char in before[:-1] for part in parser.feed(char)]
    assert begun == ToolCallBegin(0, "c0", "f")
    assert parser.feed("n") == [ToolCallDelta(0, "n")]


def test_what_stands_between_calls_is_kept() -> None:
    text = 'One\n{"name": "f", "arguments": {}}\nTwo\n{"name": "g", "arguments": {}}\n'
    assert parse("json", [text]) == AssistantMessage(
        "One\nTwo", calls=[ToolCall("c0", "f", "{}"), ToolCall("c1", "g", "{}")]
    )


def test_an_output_that_is_cut_ends_inside_its_call() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "Lon'
    assert parse("hermes", [text]).calls == [ToolCall("c0", "f", '{"a": "Lon')]
    text = "<tool_call><function=f><parameter=a>\nLon"
    assert parse("qwen3_coder", [text]).calls == [ToolCall("c0", "f", '{"a": "Lon')]


@pytest.mark.parametrize(
    ("written", "read"),
    [("5", 5), ("-0.5", -0.5), ("true", True), ("True", True), ("None", None), ('["x"]', ["x"]), ("hi", "hi"),
     ("NaN", "NaN"), ('{"k": {}}', {"k": {}}), ("", "")],
)  # fmt: skip
def test_values_between_tags_are_what_the_schema_lets_them_be(written: str, read: object) -> None:
    text = f"<tool_call>g<arg_key>k</arg_key><arg_value>{written}</arg_value></tool_call>"
    assert json.loads(parse("glm45", [text]).calls[0].arguments) == {"k": read}
    text = f"<tool_call>f<arg_key>a</arg_key><arg_value>{written}</arg_value></tool_call>"
    assert json.loads(parse("glm45", [text]).calls[0].arguments) == {"a": written}


def test_values_in_python_are_json() -> None:
    text = "[g(a=[1, -2.5, true, None], b={'k': ('x',)}, c=nonsense(1), d='it\\'s')]"
    wanted = {"a": [1, -2.5, True, None], "b": {"k": ["x"]}, "c": "nonsense(1)", "d": "it's"}
    assert json.loads(parse("pythonic", [text]).calls[0].arguments) == wanted


@pytest.mark.parametrize("schema", [{}, {"type": 3}, {"type": [3]}, {"anyOf": 3}, {"oneOf": [3]}, {"enum": 3}, True, 3])
def test_a_schema_of_no_known_form_lets_a_value_be_what_it_spells(schema: Any) -> None:
    options = CallOptions({"f": {"properties": {"a": schema}}}, lambda: "c0")
    message = AssistantMessage()
    parser = FORMATS["glm45"].parser(options)
    message.add(parser.feed("<tool_call>f<arg_key>a</arg_key><arg_value>5</arg_value></tool_call>"))
    assert message.calls == [ToolCall("c0", "f", '{"a": 5}')]
