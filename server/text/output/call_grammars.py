"""Grammars of calls: what an answer that has to call tools may be, in each format, from the tools' JSON schemas.

Texts in llguidance's Lark; ``server.text.grammar_maker`` finds out whether they compile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.text.grammars import inline_schema, literal
from server.text.output.channels import CHANNEL, CONSTRAIN, MESSAGE, START
from server.text.output.formats import (
    CHANNELS,
    DEEPSEEK,
    DEEPSEEK_FENCED,
    GLM,
    GRANITE,
    HERMES,
    KIMI,
    LISTED,
    LLAMA,
    MINIMAX,
    MISTRAL,
    MISTRAL_NAMED,
    PYTHONIC,
    QWEN_CODER,
    CallFormat,
)
from server.text.output.tagged_calls import is_text
from server.text.output.thoughts import ThoughtMarks

_SPECIAL = re.compile(r"<\|[^<|>]+\|>|(?:(?!<\|).)+|.", re.DOTALL)
ANY = r"/(.|\n)*/"
_NEXT = '({} "assistant")?'  # another message of the same answer
_MORE = "{0,15}"  # calls of one answer, beside the first
Function = tuple[str, Mapping[str, Any]]  # a name, and the schema of its arguments


@dataclass
class CallGrammar:
    """Writes the rules of one grammar. ``token`` is the number of a special token by its text, None for other text."""

    format: CallFormat
    token: Callable[[str], int | None]
    rules: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """``text``, which may be a special token, or hold some between ``<|`` and ``|>``."""
        pieces = [text] if self.token(text) is not None else _SPECIAL.findall(text)
        numbers = [self.token(piece) for piece in pieces]
        if all(number is None for number in numbers):
            return literal(text)
        return " ".join(
            literal(piece) if number is None else f"<[{number}]>" for piece, number in zip(pieces, numbers, strict=True)
        )

    def rule(self, body: str, options: str = "") -> str:
        """The name of a new rule."""
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body}")
        return name

    # ---- whole outputs ----

    def forced(self, functions: Sequence[Function], *, parallel: bool, marks: ThoughtMarks | None, begun: bool) -> str:
        """One call of ``functions``, or several, behind thoughts if there may be any."""
        calls = self._calls(functions, parallel=parallel)
        return self._text(f"start: {self._thoughts(marks, begun=begun)} {calls}")

    def when_opened(self, functions: Sequence[Function]) -> str:
        """Any text, with calls of ``functions`` wherever it opens one; empty where nothing tells that."""
        if self.format.opener is None:
            return ""
        number = self.token(self.format.opener)
        calls = self._calls(functions, parallel=False, opened=True)
        if number is None:
            opening = self.rule(f"/(.|\\n)*/ {literal(self.format.opener)}", "[lazy]")
        else:
            opening = self.rule(f"{ANY} <[{number}]>")
        return self._text(f"start: ({opening} {calls})* rest\nrest: {ANY}")

    def lead(self, functions: Sequence[Function], *, parallel: bool, marks: ThoughtMarks | None, begun: bool) -> str:
        """What may stand before a form, for ``grammars.within``: thoughts; and in its place: calls of ``functions``.

        Calls where nothing tells them from the form's beginning are left out; empty where there is nothing else.
        """
        form = "@inner"
        if functions and self.format.opener is not None:
            form = f"({self._calls(functions, parallel=parallel)} | @inner)"
        if self.format is CHANNELS:
            form = f"({_NEXT.format(self.mark(START))} {self.mark(f'{CHANNEL}final{MESSAGE}')})? {form}"
        thoughts = self._thoughts(marks, begun=begun)
        return self._text(f"{thoughts} {form}") if thoughts or form != "@inner" else ""

    def _text(self, start: str) -> str:
        return "\n".join([start, *self.rules]).replace("::=", "\\u003a:=")  # in texts alone; GBNF would be told by it

    def _thoughts(self, marks: ThoughtMarks | None, *, begun: bool) -> str:
        if marks is None:
            return ""
        if self.token(marks.end) is None:
            thought = self.rule(f"/(.|\\n)*/ {literal(marks.end)}", "[lazy]")
        else:
            thought = self.rule(f"{ANY} {self.mark(marks.end)}")
        blank = r"/[ \n]{0,4}/"
        if begun:
            return f"{thought} {blank}"
        return f"({self.mark(marks.starts[0])} {thought} {blank})?"

    # ---- calls ----

    def _calls(self, functions: Sequence[Function], *, parallel: bool, opened: bool = False) -> str:
        """The rule of one call or several; ``opened``: the format's opener stands before it."""
        form = _FORMS.get(self.format.name, _GENERIC)
        one = self.rule(" | ".join(form.call(self, name, schema) for name, schema in functions))
        whole = [*form.outer[:1], *form.before]
        opener = self._marks(whole[1:] if opened else whole)
        between = [literal(form.between)] if form.between else []
        parallel = parallel and not form.alone
        if form.each:
            again = " ".join([*between, *self._marks(form.before), one, *self._marks(form.behind)])
            more = [f"({again}){_MORE}"] if parallel else []
            return self.rule(" ".join([*opener, one, *self._marks(form.behind), *more, *self._marks(form.outer[1:])]))
        more = [f"({' '.join([*between, one])}){_MORE}"] if parallel else []
        return self.rule(" ".join([*opener, one, *more, *self._marks(form.behind)]))

    def _marks(self, texts: Sequence[str]) -> list[str]:
        return [self.mark(text) for text in texts]


@dataclass(frozen=True)
class _Form:
    """``before`` and ``behind`` stand around ``each`` call or around all, ``outer`` around it.

    ``between`` stands between two calls. ``alone``: an answer has no more than one.
    """

    call: Callable[[CallGrammar, str, Mapping[str, Any]], str]
    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    between: str = ""
    each: bool = True
    outer: tuple[str, ...] = ()
    alone: bool = False


def _json_call(key: str) -> Callable[[CallGrammar, str, Mapping[str, Any]], str]:
    def call(grammar: CallGrammar, name: str, schema: Mapping[str, Any]) -> str:
        head = f'{{"name": {json.dumps(name)}, {json.dumps(key)}: '
        return grammar.rule(f'{literal(head)} {_arguments(schema)} "}}"')

    return call


def _named_call(between: str, behind: str = "") -> Callable[[CallGrammar, str, Mapping[str, Any]], str]:
    """A name and an object, with a mark or text between them."""

    def call(grammar: CallGrammar, name: str, schema: Mapping[str, Any]) -> str:
        separated, _, fence = between.partition("\n")
        parts = [literal(name), grammar.mark(separated), *([literal("\n" + fence)] if fence else [])]
        return grammar.rule(" ".join([*parts, _arguments(schema), *([literal(behind)] if behind else [])]))

    return call


def _fenced_call(grammar: CallGrammar, name: str, schema: Mapping[str, Any]) -> str:
    head = f"{literal('function')} {grammar.mark('<｜tool▁sep｜>')} {literal(name + chr(10) + '```json' + chr(10))}"
    return grammar.rule(f"{head} {_arguments(schema)} {literal(chr(10) + '```')}")


def _indexed_call(grammar: CallGrammar, name: str, schema: Mapping[str, Any]) -> str:
    begun = f"{literal(f'functions.{name}:')} /[0-9]{{1,3}}/ {grammar.mark('<|tool_call_argument_begin|>')}"
    return grammar.rule(f"{begun} {_arguments(schema)}")


def _channel_call(grammar: CallGrammar, name: str, schema: Mapping[str, Any]) -> str:
    head = grammar.mark(f"{CHANNEL}commentary to=functions.{name} {CONSTRAIN}json{MESSAGE}")
    return grammar.rule(f"{_NEXT.format(grammar.mark(START))} {head} {_arguments(schema)}")


def _arguments(schema: Mapping[str, Any]) -> str:
    return inline_schema(_closed(schema))


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """``schema`` without arguments that it does not name, unless it says that there may be some."""
    return schema if "additionalProperties" in schema else {**schema, "additionalProperties": False}


def _properties(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """Name, schema and whether it has to be there, of each argument."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = schema.get("required") or []
    properties = schema.get("properties") or {}
    return [
        (name, {**shared, **one} if isinstance(one, Mapping) else {}, name in required)
        for name, one in properties.items()
    ]


def _pythonic_call(grammar: CallGrammar, name: str, schema: Mapping[str, Any]) -> str:
    first, later = '""', '""'  # what may follow before there is an argument, and behind one
    for key, one, needed in reversed(_properties(schema)):
        item = grammar.rule(f"{literal(key + '=')} {inline_schema(one)}")
        begin, go_on = f"{item} {later}", f'", " {item} {later}'
        first, later = (
            grammar.rule(body if needed else f"{body} | {skipped}")
            for body, skipped in ((begin, first), (go_on, later))
        )
    return grammar.rule(f'{literal(name + "(")} {first} ")"')


def _tagged_call(
    before: str, behind: str, key_before: str, key_behind: str, value_behind: str
) -> Callable[[CallGrammar, str, Mapping[str, Any]], str]:
    """A tag for each argument; texts stand in them as they are."""

    def call(grammar: CallGrammar, name: str, schema: Mapping[str, Any]) -> str:
        parts = [literal(before.format(name))]
        for key, one, needed in _properties(schema):
            head = literal(key_before + key + key_behind)
            if is_text(schema, key) and "enum" not in one:
                value = grammar.rule(f"/(.|\\n)*/ {literal(value_behind)}", "[lazy]")
            elif is_text(schema, key) and isinstance(one.get("enum"), list):
                texts = " | ".join(literal(str(text)) for text in one["enum"])
                value = f"({texts}) {literal(value_behind)}"
            else:
                value = f"{inline_schema(one)} {literal(value_behind)}"
            parts.append(f"({head} {value})" + ("" if needed else "?"))
        return grammar.rule(" ".join([*parts, literal(behind)]))

    return call


_BEGIN, _END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_BEGIN_ALL, _END_ALL = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_GENERIC = _Form(_json_call("arguments"), between="\n")
_FORMS: dict[str, _Form] = {
    HERMES.name: _Form(_json_call("arguments"), ("<tool_call>", "\n"), ("\n", "</tool_call>"), "\n"),
    QWEN_CODER.name: _Form(
        _tagged_call("\n<function={}>\n", "</function>\n", "<parameter=", ">\n", "\n</parameter>\n"),
        ("<tool_call>",), ("</tool_call>",), "\n",
    ),
    GLM.name: _Form(
        _tagged_call("{}\n", "", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
        ("<tool_call>",), ("</tool_call>",), "\n",
    ),
    LLAMA.name: _Form(_json_call("parameters"), between="; "),
    MISTRAL.name: _Form(_json_call("arguments"), ("[TOOL_CALLS]", "["), ("]",), ", ", each=False),
    MISTRAL_NAMED.name: _Form(_named_call("[ARGS]"), ("[TOOL_CALLS]",)),
    DEEPSEEK.name: _Form(_named_call("<｜tool▁sep｜>"), (_BEGIN,), (_END,), outer=(_BEGIN_ALL, _END_ALL)),
    DEEPSEEK_FENCED.name: _Form(_fenced_call, (_BEGIN,), (_END,), outer=(_BEGIN_ALL, _END_ALL)),
    KIMI.name: _Form(_indexed_call, KIMI.marks[1:2], KIMI.marks[3:4], outer=(KIMI.marks[0], KIMI.marks[4])),
    MINIMAX.name: _Form(
        _tagged_call('<invoke name="{}">\n', "</invoke>\n", '<parameter name="', '">', "</parameter>\n"),
        ("<minimax:tool_call>", "\n"), ("</minimax:tool_call>",), each=False,
    ),
    PYTHONIC.name: _Form(_pythonic_call, ("[",), ("]",), ", ", each=False),
    GRANITE.name: _Form(_json_call("arguments"), ("<|tool_call|>", "["), ("]",), ", ", each=False),
    CHANNELS.name: _Form(_channel_call, alone=True),
    LISTED.name: _Form(_json_call("arguments"), ("<TOOLCALL>", "["), ("]", "</TOOLCALL>"), ", ", each=False),
}  # fmt: skip
