"""Grammars as texts: what they accept, byte by byte."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from server.errors import InvalidRequestError
from server.text.grammars import Form, Kind, grammar_of, json_object, within

BYTES = LLTokenizer("byte")
TAG = {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"}
OLD_TAG = {"type": "structural_tag", "structures": [TAG], "triggers": ["<f="]}


def accepts(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    given = list(text.encode())
    return bool(matcher.try_consume_tokens(given) == len(given) and matcher.is_accepting())


def new_tag(part: Any) -> dict[str, Any]:
    return {"type": "structural_tag", "format": part}


def tag(content: Any, begin: str = "<t>", end: str = "</t>") -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


TEXT = {"type": "any_text"}
NUMBER = {"type": "json_schema", "json_schema": {"type": "integer"}}
CASES: list[tuple[Kind, Any, list[str], list[str]]] = [
    (Kind.REGEX, r"a/b\d", ["a/b7"], ["a/bx", "a/b77"]),
    (Kind.REGEX, "^ab$", ["ab"], ["^ab$", "abc"]),
    (Kind.REGEX, "a\nb\\\nc", ["a\nb\nc"], ["ab"]),
    (Kind.REGEX, "\\\\\nx", ["\\\nx"], ["\\nx"]),
    (Kind.CHOICE, ['q"\\', "é\U0001d11e", "", "a\nb"], ['q"\\', "é\U0001d11e", "", "a\nb"], ["q", "é"]),
    (Kind.GRAMMAR, 'root ::= "x" y*\ny ::= [a-c] | "é"', ["x", "xabé"], ["xd", "y"]),
    (Kind.GRAMMAR, 'start: "x" Y*\nY: /[a-c]/', ["x", "xab"], ["xd"]),
    (Kind.JSON_SCHEMA, True, ["1", "{}", "[null]"], ["x"]),
    (Kind.JSON_SCHEMA, {"type": "array", "items": {"const": 1}}, ["[1, 1]", "[\n  1,\n  1\n]"], ["[1,  1]", "[2]"]),
    (Kind.STRUCTURAL_TAG, OLD_TAG, ["free", "x<f=a>5</f>y<f=a>6</f>"], ["<f=b>5</f>", "<f=a>x</f>"]),
    (Kind.STRUCTURAL_TAG, new_tag(tag(TEXT)), ["<t>any\nthing</t>"], ["<t>x", "y"]),
    (Kind.STRUCTURAL_TAG, new_tag({"type": "or", "elements": [tag(NUMBER), NUMBER]}), ["<t>5</t>", "7"], ["<t></t>"]),
    (Kind.STRUCTURAL_TAG, new_tag({"type": "sequence", "elements": [{"type": "const_string", "value": "a "}, NUMBER]}),
     ["a 5"], ["a"]),
    (Kind.STRUCTURAL_TAG, new_tag({"type": "tags_with_separator", "tags": [tag(NUMBER)], "separator": ","}),
     ["", "<t>1</t>,<t>2</t>"], ["<t>1</t><t>2</t>"]),
    (Kind.STRUCTURAL_TAG,
     new_tag({"type": "triggered_tags", "triggers": ["<t>"], "tags": [tag(NUMBER)], "at_least_one": True}),
     ["say <t>1</t>", "<t>1</t> and"], ["nothing"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "good", "bad"), CASES, ids=[str(case[:2])[:70] for case in CASES])
def test_what_a_form_accepts(kind: Kind, value: Any, good: list[str], bad: list[str]) -> None:
    grammar = grammar_of(Form(kind, value, "x"))
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []


def test_json_without_white_space_and_behind_a_space() -> None:
    compact = grammar_of(Form(Kind.JSON_SCHEMA, {"type": "array", "items": {"const": 1}}, "x", whitespace=None))
    assert accepts(compact, "[1,1]")
    assert not accepts(compact, "[1, 1]")
    behind_space = within('" "? @inner', compact)
    assert accepts(behind_space, " [1,1]")
    assert accepts(behind_space, "[1,1]")
    assert not accepts(behind_space, "  [1]")
    assert not accepts(grammar_of(json_object()), "[]")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.JSON_SCHEMA, 5),
        (Kind.JSON_SCHEMA, False),
        (Kind.REGEX, None),
        (Kind.CHOICE, ["x"] * 5000),
        (Kind.CHOICE, ["\ud800"]),
        (Kind.GRAMMAR, "x" * 300_000),
        (Kind.GRAMMAR, "root ::= ("),
        (Kind.STRUCTURAL_TAG, "{"),
        (Kind.STRUCTURAL_TAG, {"structures": [TAG], "triggers": ["<nobody>"]}),
        (Kind.STRUCTURAL_TAG, new_tag({"type": "video"})),
        (Kind.STRUCTURAL_TAG, new_tag({"type": "sequence", "elements": []})),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_form(kind: Kind, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="guided_it") as caught:
        grammar_of(Form(kind, value, "guided_it.field"))
    assert caught.value.param == "guided_it"
