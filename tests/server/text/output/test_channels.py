"""Outputs of gpt-oss: what of them is thought, what is a call and what is content, however they are cut."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from llguidance import LLMatcher

from server.text.grammars import Form, Kind, grammar_of
from server.text.output.call_grammars import CallGrammar
from server.text.output.calls import CallOptions
from server.text.output.channels import ChannelParser
from server.text.output.formats import CHANNELS, find_format
from server.text.output.parts import AssistantMessage, ToolCall, ToolCallDelta
from server.text.output.thoughts import MARKS, find_marks
from tests.server.text.output.test_call_grammars import SCHEMAS, consumes, draw

WHY = "<|channel|>analysis<|message|>Why?\n\nSo. <|end|>"
NEXT = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>Yes.\n"
CALL = '<|channel|>commentary to=functions.g <|constrain|>json<|message|>{"a": 1}'
CALLED = [ToolCall("c", "g", '{"a": 1}')]
CASES: list[tuple[str, AssistantMessage]] = [
    (WHY + NEXT + FINAL + "<|return|>", AssistantMessage("Yes.\n", "Why?\n\nSo.")),
    (FINAL, AssistantMessage("Yes.\n")),
    (WHY + NEXT + CALL + "<|call|>", AssistantMessage("", "Why?\n\nSo.", CALLED)),
    (CALL, AssistantMessage(calls=CALLED)),
    (' to=functions.g<|channel|>commentary json<|message|>{"a": 1}', AssistantMessage(calls=CALLED)),
    (
        WHY + NEXT + "<|channel|>commentary<|message|>Let me see.<|end|>" + NEXT + CALL,
        AssistantMessage("Let me see.", "Why?\n\nSo.", CALLED),
    ),
    (
        f"<|channel|>commentary<|message|>A<|end|>{NEXT}{WHY}{NEXT}{FINAL}",
        AssistantMessage("A\n\nYes.\n", "Why?\n\nSo."),
    ),
    (
        "<|channel|>commentary to=functions.g <|constrain|>json<|message|><|call|>",
        AssistantMessage(calls=[ToolCall("c", "g", "{}")]),
    ),
    (
        '<|channel|>commentary to=python <|message|>print("x")',
        AssistantMessage('<|channel|>commentary to=python <|message|>print("x")'),
    ),
    ('{"city": "Oslo"}', AssistantMessage('{"city": "Oslo"}')),
    ("to be <|", AssistantMessage("to be <|")),
    ("<|channel|>analysis<|message|>cut <|en", AssistantMessage("", "cut <|en")),
    ("<|channel|>anal", AssistantMessage()),
    ('<|channel|>commentary to=functions.g json<|message|>{"a', AssistantMessage(calls=[ToolCall("c", "g", '{"a')])),
]


def parse(pieces: Iterable[str], *, thoughts: bool = True) -> tuple[AssistantMessage, int, bool]:
    parser, message = ChannelParser(CallOptions(SCHEMAS, lambda: "c", thoughts=thoughts)), AssistantMessage()
    for piece in pieces:
        message.add(parser.feed(piece))
    message.add(parser.finish())
    return message, parser.thought_chars, parser.thinking


@pytest.mark.parametrize(("text", "expected"), CASES, ids=lambda value: str(value)[:40])
def test_every_part_is_what_its_channel_says(text: str, expected: AssistantMessage) -> None:
    whole = parse([text])
    assert whole[0] == expected
    assert parse(text) == whole
    for at in range(len(text) + 1):
        assert parse([text[:at], text[at:]]) == whole


def test_how_much_is_thought() -> None:
    assert parse([WHY + NEXT + FINAL])[1:] == (len(WHY), False)
    assert parse([WHY[:40]])[1:] == (40, True)
    assert parse([FINAL])[1:] == (0, False)
    assert parse([WHY + NEXT + FINAL], thoughts=False)[0] == AssistantMessage("Why?\n\nSo.\n\nYes.\n")


def test_arguments_come_as_they_are_written() -> None:
    parser = ChannelParser(CallOptions(SCHEMAS, lambda: "c"))
    for char in CALL[:-4]:
        parser.feed(char)
    assert parser.feed("x") == [ToolCallDelta(0, "x")]


def test_the_template_tells_it() -> None:
    template = "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}"
    assert find_format(template) is CHANNELS
    assert find_marks(template) == MARKS["gpt_oss"]


def test_a_grammar_has_thoughts_first_and_one_call() -> None:
    lark = CallGrammar(CHANNELS, lambda _: None).forced(
        [("g", SCHEMAS["g"])], parallel=True, marks=MARKS["gpt_oss"], begun=False
    )
    call = CALL.replace('{"a": 1}', "{}")
    assert consumes(lark, call)
    assert consumes(lark, WHY + NEXT + call)
    assert not consumes(lark, call + NEXT + call)
    assert not consumes(lark, FINAL)
    assert draw(lark, 1) is not None


def test_marks_are_tokens_in_a_grammar_where_they_are_special() -> None:
    numbers = {"<|start|>": 7, "<|channel|>": 8, "<|message|>": 9, "<|end|>": 10, "<|constrain|>": 11}
    grammar = CallGrammar(CHANNELS, numbers.get)
    assert grammar.mark("<|channel|>final<|message|>") == '<[8]> "final" <[9]>'
    assert grammar.mark("<|x|>a") == '"<|x|>a"'
    lead = grammar.lead([], parallel=True, marks=MARKS["gpt_oss"], begun=False)
    assert '(<[7]> "assistant")? <[8]> "final" <[9]>)? @inner' in lead
    forced = grammar.forced([("g", SCHEMAS["g"])], parallel=False, marks=None, begun=False)
    assert LLMatcher.validate_grammar(grammar_of(Form(Kind.GRAMMAR, forced, "tools"))) == ""
