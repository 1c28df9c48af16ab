"""Whatever the grammar of a format lets through is a call that its parser reads."""

from __future__ import annotations

import json
import random

import llguidance.numpy as masks
import pytest
from llguidance import LLMatcher, LLTokenizer

from server.engine.grammar_limits import LIMITS
from server.text.grammars import Form, Kind, grammar_of, within
from server.text.output.call_grammars import CallGrammar
from server.text.output.calls import CallOptions
from server.text.output.formats import FORMATS
from server.text.output.parts import AssistantMessage
from server.text.output.thoughts import MARKS

SCHEMAS = {
    "f": {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"type": "integer"}, "c": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
    },
    "g": {"type": "object", "properties": {}},
}
BYTES = LLTokenizer("byte")


def matcher(lark: str) -> LLMatcher:
    made = LLMatcher(BYTES, grammar_of(Form(Kind.GRAMMAR, lark, "tools")))
    assert not made.is_error(), made.get_error()
    return made


def allowed(made: LLMatcher) -> list[int]:
    mask = masks.allocate_token_bitmask(1, BYTES.vocab_size)
    masks.fill_next_token_bitmask(made, mask, 0)
    return [byte for byte in range(256) if mask[0, byte // 32] >> (byte % 32) & 1]


def draw(lark: str, seed: int) -> str | None:
    """A text that the grammar lets through; None where it becomes too long."""
    dice, made, out = random.Random(seed), matcher(lark), bytearray()
    while len(out) < 400:
        if made.is_stopped() or (made.is_accepting() and dice.random() < 0.3):
            return out.decode()
        found = allowed(made)
        byte = dice.choice([one for one in found if 32 <= one < 127] or found)
        made.consume_token(byte)
        out.append(byte)
    return None


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_grammar_lets_through_is_a_call(name: str) -> None:
    form = FORMATS[name]
    for only, seed in (("f", 1), ("f", 2), ("g", 3)):
        functions = [(only, SCHEMAS[only])]
        text = draw(CallGrammar(form, lambda _: None).forced(functions, parallel=False, marks=None, begun=False), seed)
        if text is None:  # a text of tags that does not end
            continue
        parser, message = form.parser(CallOptions(SCHEMAS, lambda: "c0")), AssistantMessage()
        message.add([*parser.feed(text), *parser.finish()])
        assert [call.name for call in message.calls] == [only], text
        assert set(json.loads(message.calls[0].arguments)) >= set(SCHEMAS[only].get("required", ()))
        assert not message.content


def consumes(lark: str, text: str) -> bool:
    return follows(matcher(lark), text)


def follows(made: LLMatcher, text: str) -> bool:
    return all(made.consume_token(byte) for byte in text.encode()) and made.is_accepting()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", ["hermes", "json"])
def test_a_form_comes_behind_thoughts_or_calls_in_its_place(name: str, *, begun: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    inner = grammar_of(Form(Kind.JSON_SCHEMA, {**schema, "additionalProperties": False}, "response_format"))
    lead = CallGrammar(FORMATS[name], lambda _: None).lead(
        [("g", SCHEMAS["g"])], parallel=False, marks=MARKS["think"], begun=begun
    )
    start = "" if begun else "<think>"

    def accepts(text: str) -> bool:
        made = LLMatcher(BYTES, within(lead, inner), log_level=0, limits=LIMITS)
        assert not made.is_error(), made.get_error()
        return follows(made, text)

    for thought in ("", "no {</thin k> " * 500):
        assert accepts(f'{start}{thought}</think>\n\n{{"a": 1}}')
        assert not accepts(f'{start}{thought}</think>\n\n{{"b": 1}}')
    assert accepts('{"a": 1}') is not begun
    call = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert accepts(f"{start}x</think>{call}") is (name == "hermes")
    assert not accepts(f'{start}x</think>{call}{{"a": 1}}')
    assert CallGrammar(FORMATS["json"], lambda _: None).lead([], parallel=True, marks=None, begun=False) == ""


def test_thoughts_may_come_first_where_there_are_marks() -> None:
    grammar = CallGrammar(FORMATS["json"], lambda _: None)
    lark = grammar.forced([("g", SCHEMAS["g"])], parallel=False, marks=MARKS["think"], begun=False)
    call = '{"name": "g", "arguments": {}}'
    assert consumes(lark, call)
    assert consumes(lark, f"<think>why?</think>\n{call}")
    assert not consumes(lark, f"why? {call}")
    begun = CallGrammar(FORMATS["json"], lambda _: None)
    lark = begun.forced([("g", SCHEMAS["g"])], parallel=False, marks=MARKS["think"], begun=True)
    assert consumes(lark, f"why?</think>{call}")
    assert not consumes(lark, call)


def test_a_strict_call_is_held_where_a_mark_opens_it() -> None:
    lark = CallGrammar(FORMATS["hermes"], lambda _: None).when_opened([("g", SCHEMAS["g"])])
    assert consumes(lark, "Just text.")
    assert consumes(lark, 'So: <tool_call>\n{"name": "g", "arguments": {}}\n</tool_call> done')
    assert not consumes(lark, '<tool_call>\n{"name": "h"')
    assert CallGrammar(FORMATS["json"], lambda _: None).when_opened([("g", SCHEMAS["g"])]) == ""
