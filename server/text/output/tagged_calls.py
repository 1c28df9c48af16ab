"""Calls between tags: JSON as Hermes and Qwen write it, or a tag for each argument: Qwen3-Coder, GLM and MiniMax."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import override

from server.text.output.json_calls import JsonCallParser
from server.text.output.reader import NoMatchError, Wait

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class TaggedParser(JsonCallParser):
    """All three: what comes behind the tag says which it is."""

    openers = (OPEN, "<function=")
    closers = (CLOSE,)

    @override
    def call(self) -> Wait[None]:
        reader = self.reader
        if (yield from reader.literal(OPEN)):
            yield from reader.spaces()
        if (yield from reader.peek()) in ("{", "["):
            yield from self.json_calls()
        elif (yield from reader.literal("<function=")):
            name = (yield from reader.until((">",))).strip()
            self.begin(name)
            yield from self._arguments_in(name, "<parameter=", ">", "</parameter>", trimmed=True)
            yield from self.close("</function>")
        else:
            name = (yield from reader.word(lambda char: char not in "<\n")).strip()
            yield from reader.spaces()
            yield from self._check_tag("<arg_key>", CLOSE)
            self.begin(name)
            yield from self._arguments_in(name, "<arg_key>", "</arg_key>", "</arg_value>", between="<arg_value>")
        yield from self.close(*self.closers)

    def _check_tag(self, *tags: str) -> Wait[None]:
        reader = self.reader
        while any(tag.startswith(reader.rest) and len(reader.rest) < len(tag) for tag in tags) and not reader.ended:
            yield
        if not reader.rest.startswith(tags):
            raise NoMatchError

    def _arguments_in(
        self,
        name: str,
        before: str,
        behind_key: str,
        behind: str,
        *,
        between: str = "",
        trimmed: bool = False,
        key_of: Callable[[str], str] = str.strip,
    ) -> Wait[None]:
        """Read arguments with tags around keys and values, as many as come."""
        reader, first = self.reader, True
        schema = self.schema(name)
        yield from reader.spaces()
        while (yield from reader.literal(before)):
            key = key_of((yield from reader.until((behind_key,))))
            if between:
                yield from reader.spaces()
                yield from reader.expect(between)
            self.argue(("{" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            first = False
            if trimmed:
                yield from reader.literal("\n")
            ends = ("\n" + behind, behind) if trimmed else (behind,)
            yield from (self._text(ends) if is_text(schema, key) else self._value(ends, schema, key))
            yield from reader.spaces()
        if not reader.ended or reader.rest:
            self.argue("{}" if first else "}")

    def _text(self, ends: tuple[str, ...]) -> Wait[None]:
        """Read a text, and pass it on as it comes."""
        self.argue('"')
        if (yield from self.reader.streamed(ends, lambda said: self.argue(json.dumps(said, ensure_ascii=False)[1:-1]))):
            self.argue('"')

    def _value(self, ends: tuple[str, ...], schema: Mapping[str, Any], key: str) -> Wait[None]:
        """Read a value whole: what it is shows at its end."""
        self.argue(as_json((yield from self.reader.until(ends)), types_of(schema, key)))


class MiniMaxParser(TaggedParser):
    """MiniMax M2: tags with the names of function and arguments as attributes, beside which there may be others."""

    openers = ("<minimax:tool_call>", "<invoke name=")
    closers = ("</minimax:tool_call>",)

    @override
    def call(self) -> Wait[None]:
        reader = self.reader
        if (yield from reader.literal(self.openers[0])):
            yield from reader.spaces()
        yield from reader.expect("<invoke")
        name = _named((yield from reader.until((">",))))
        self.begin(name)
        yield from self._arguments_in(name, "<parameter", ">", "</parameter>", key_of=_named)
        yield from self.close("</invoke>")
        yield from self.close(*self.closers)


def _named(attributes: str) -> str:
    """What ``name`` says of a tag's ``attributes``; empty where there is none."""
    found = re.search(r"""\bname=(?:"([^"]*)"|'([^']*)'|([^\s"']+))""", attributes)
    return next(filter(None, found.groups()), "") if found else ""


def types_of(schema: Mapping[str, Any], key: str) -> set[str]:
    """The types that the argument ``key`` may have, as far as the schema says so plainly."""
    properties = schema.get("properties")
    prop = properties.get(key) if isinstance(properties, Mapping) else None
    if not isinstance(prop, Mapping):
        return set()
    types: set[str] = set()
    ways = [way for key in ("anyOf", "oneOf") if isinstance(prop.get(key), list) for way in prop[key]]
    for one in (prop, *ways):
        if isinstance(one, Mapping):
            named = one.get("type")
            listed = named if isinstance(named, list) else [named]
            types.update(name for name in listed if isinstance(name, str))
    enum = prop.get("enum")
    if not types and isinstance(enum, list) and all(isinstance(value, str) for value in enum):
        return {"string"}
    return types


def is_text(schema: Mapping[str, Any], key: str) -> bool:
    """Whether an argument can only be a text."""
    return types_of(schema, key) == {"string"}


_JSON_TYPES: dict[type, tuple[str, ...]] = {
    bool: ("boolean",), int: ("integer", "number"), float: ("number",), dict: ("object",), list: ("array",),
    type(None): ("null",), str: ("string",),
}  # fmt: skip
_WORDS = {"True": "true", "False": "false", "None": "null"}


def as_json(text: str, types: set[str]) -> str:
    """The value that ``text`` spells, as JSON: a text where it spells none of these types."""
    bare = text.strip()
    bare = _WORDS.get(bare, bare)
    try:
        value = json.loads(bare, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    if "string" in types and not types.intersection(_JSON_TYPES[type(value)]):
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, str) and types and "string" not in types:
        return json.dumps(text, ensure_ascii=False)
    return bare


def _refuse(word: str) -> Any:
    raise ValueError(word)
