"""Calls written as JSON objects with a name and arguments, alone, in a list, or between marks."""

from __future__ import annotations

import json
import re

from typing_extensions import override

from server.text.output.calls import CallParser
from server.text.output.reader import NoMatchError, Wait

_NAME_KEYS = ("name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")
_OTHER_KEYS = ("id", "type", "index")


class JsonCallParser(CallParser):
    """Such calls; ``closers`` may stand behind them, ``separators`` between them.

    ``bare``: without arguments an object with a name is no call.
    """

    closers: tuple[str, ...] = ()
    separators = ","
    bare = False

    @override
    def call(self) -> Wait[None]:
        for opener in (*self.openers, *self.line_openers):
            if opener not in ("{", "[") and (yield from self.reader.literal(opener)):
                break
        yield from self.reader.spaces()
        yield from self.json_calls()
        yield from self.close(*self.closers)

    def close(self, *closers: str) -> Wait[None]:
        """Read one of ``closers`` and white space before it, where they come next."""
        self.reader.keep()
        yield from self.reader.spaces()
        for closer in closers:
            if (yield from self.reader.literal(closer)):
                return

    def json_calls(self) -> Wait[None]:
        """Read one object, several, or a list of them."""
        reader = self.reader
        listed = yield from reader.literal("[")
        yield from reader.spaces()
        while True:
            yield from self._object()
            reader.mark()
            yield from reader.spaces()
            if (yield from reader.peek()) in tuple(self.separators):
                reader.take(1)
                yield from reader.spaces()
            if (yield from reader.peek()) != "{":
                reader.rewind()
                break
        yield from reader.spaces()
        if listed:
            yield from reader.literal("]")

    def _object(self) -> Wait[None]:
        """Read one call."""
        reader = self.reader
        name, arguments, begun = "", "", False
        yield from reader.expect("{")
        yield from reader.spaces()
        while (yield from reader.peek()) == '"':
            key = yield from reader.json_string()
            yield from self._behind_key()
            if key in _NAME_KEYS and not name:
                name = yield from reader.json_string()
                self.schema(name)
            elif key in _ARGUMENT_KEYS and name and not begun:
                begun = yield from self._arguments(name)
            elif key in _ARGUMENT_KEYS and not begun and not arguments:
                arguments = _plain_arguments((yield from reader.json_text()))
            elif key in _OTHER_KEYS or begun:
                yield from reader.json_text()
            else:
                raise NoMatchError
            yield from reader.spaces()
            if not (yield from reader.literal(",")):
                break
            yield from reader.spaces()
        yield from (reader.literal("}") if begun else reader.expect("}"))
        if not begun and (not name or (self.bare and not arguments)):
            raise NoMatchError
        if not begun:
            self.begin(name)
            self.argue(arguments or "{}")

    def _behind_key(self) -> Wait[None]:
        yield from self.reader.spaces()
        yield from self.reader.expect(":")
        yield from self.reader.spaces()

    def _arguments(self, name: str) -> Wait[bool]:
        """Read arguments and pass them on, an object as it comes."""
        reader = self.reader
        if (yield from reader.peek()) == "{":
            self.begin(name)
            yield from reader.json_value(self.argue)
            return True
        arguments = _plain_arguments((yield from reader.json_text()))
        self.begin(name)
        self.argue(arguments)
        return True


def _plain_arguments(text: str) -> str:
    """The object that a value is, or spells. Raises NoMatchError where it is none."""
    value = json.loads(text, strict=False)
    if isinstance(value, dict):
        return text
    if isinstance(value, str):
        return value
    if value is None:
        return "{}"
    raise NoMatchError


class GenericParser(JsonCallParser):
    """JSON alone on its lines, or in a fence: what data sets and bases use that have no marks."""

    openers = ("```json", "```tool_call")
    line_openers = ("{", "[")
    closers = ("```",)
    separators = ",;"
    bare = True


class LlamaParser(JsonCallParser):
    """Llama 3.1 and later: the mark is optional, several calls stand with semicolons between them."""

    openers = ("<|python_tag|>",)
    line_openers = ("{", "[")
    separators = ",;"
    bare = True


class GraniteParser(JsonCallParser):
    """Granite 3: a list behind a mark."""

    openers = ("<|tool_call|>", "<tool_call>")
    closers = ("</tool_call>",)


class ListParser(JsonCallParser):
    """A list between marks, as Jamba, Nemotron and Phi 4 have it."""

    openers = ("<tool_calls>", "<TOOLCALL>", "<|tool_call|>", "functools")
    closers = ("</tool_calls>", "</TOOLCALL>", "<|/tool_call|>")


class MistralParser(JsonCallParser):
    """Mistral: a list of objects behind a mark, or a mark, a name and an object for each."""

    openers: tuple[str, ...] = ("[TOOL_CALLS]",)

    @override
    def call(self) -> Wait[None]:
        reader = self.reader
        yield from reader.expect(*self.openers)
        yield from reader.spaces()
        if (yield from reader.peek()) in ("[", "{"):
            yield from self.json_calls()
            return
        name = (yield from reader.word(lambda char: char not in "[{\n")).strip()
        if (yield from reader.literal("[CALL_ID]")):
            yield from reader.word(lambda char: char not in "[{\n")
        yield from reader.literal("[ARGS]")
        yield from reader.spaces()
        yield from self.object_of(name)

    def object_of(self, name: str) -> Wait[None]:
        """Read the arguments of a call of ``name``."""
        if (yield from self.reader.peek()) != "{":
            raise NoMatchError
        self.begin(name)
        yield from self.reader.json_value(self.argue)


class DeepSeekParser(MistralParser):
    """DeepSeek V3, R1 and V3.1: calls between marks, each with a name and an object, which V3 puts into a fence."""

    marks = (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    )
    openers = marks[:2]

    @override
    def call(self) -> Wait[None]:
        reader, (begin_all, begin, between, end, end_all) = self.reader, self.marks
        if (yield from reader.literal(begin_all)):
            yield from reader.spaces()
        yield from reader.expect(begin)
        name = yield from reader.until((between,))
        yield from reader.spaces()
        if (yield from reader.peek()) != "{":  # the first was a type
            name = (yield from reader.until(("```json",))).strip()
            yield from reader.spaces()
        yield from self.object_of(name.strip())
        yield from self.close("```")
        yield from self.close(end)
        yield from self.close(end_all)


class KimiParser(MistralParser):
    """Kimi K2: calls between marks, each with an id, which tells the function, and an object."""

    marks = (
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
    )
    openers = marks[:2]
    _id = re.compile(r"(?:functions\.)?(.+?)(?::\d+)?")

    @override
    def call(self) -> Wait[None]:
        reader, (begin_all, begin, between, end, end_all) = self.reader, self.marks
        if (yield from reader.literal(begin_all)):
            yield from reader.spaces()
        yield from reader.expect(begin)
        said = (yield from reader.until((between,))).strip()
        yield from reader.spaces()
        found = self._id.fullmatch(said)
        yield from self.object_of(said if found is None or said in self.options.schemas else found[1])
        yield from self.close(end)
        yield from self.close(end_all)
