"""Calls written as a list of Python's: ``[f(a=1), g(b='x')]``, as Llama 3.2 and 4, Olmo and LFM do."""

from __future__ import annotations

import ast
import json
from typing import Any

from typing_extensions import override

from server.text.output.calls import CallParser
from server.text.output.reader import SPACES, NoMatchError, Wait

_NAME = "._-"  # beside letters and digits
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}


class PythonicParser(CallParser):
    """A list alone on its lines, or between marks. Each argument is passed on when it is whole."""

    openers = ("<|python_start|>", "<|python_tag|>", "<|tool_call_start|>", "<function_calls>")
    line_openers = ("[",)
    closers = ("<|python_end|>", "<|tool_call_end|>", "</function_calls>")

    @override
    def call(self) -> Wait[None]:
        reader = self.reader
        marked = False
        for opener in self.openers:
            marked = marked or (yield from reader.literal(opener))
        yield from reader.spaces()
        listed = yield from reader.literal("[")
        if not (listed or marked):
            raise NoMatchError
        while True:
            yield from reader.spaces()
            yield from self._call()
            reader.mark()
            yield from reader.spaces()
            if listed and not (yield from reader.literal(",")):
                break
            yield from reader.spaces()
            following = yield from reader.peek()
            if not (following.isalpha() or following == "_"):
                break
        reader.rewind()
        yield from reader.spaces(SPACES + ",")
        yield from reader.literal("]")
        yield from reader.spaces()
        for closer in self.closers:
            if (yield from reader.literal(closer)):
                return

    def _call(self) -> Wait[None]:
        """Read one call."""
        reader, first = self.reader, True
        name = yield from reader.word(lambda char: char.isalnum() or char in _NAME)
        self.schema(name)
        yield from reader.expect("(")
        yield from reader.spaces()
        while (yield from reader.peek()) not in (")", ""):
            key = yield from reader.word(lambda char: char.isalnum() or char == "_")
            yield from reader.spaces()
            yield from reader.expect("=")
            if first:
                self.begin(name)
            self.argue(("{" if first else ", ") + json.dumps(key) + ": ")
            self.argue((yield from self._value()))
            first = False
            yield from reader.literal(",")
            yield from reader.spaces()
        yield from reader.expect(")")
        if first:
            self.begin(name)
        self.argue("{}" if first else "}")

    def _value(self) -> Wait[str]:
        """Read a value, up to the comma or parenthesis behind it, as JSON. Raises NoMatchError at the end."""
        reader = self.reader
        read, depth, quote, escaped = "", 0, "", False
        while char := (yield from reader.peek()):
            if not quote and not depth and char in ",)":
                return _as_json(read)
            if quote:
                quote, escaped = ("" if char == quote and not escaped else quote), char == "\\" and not escaped
            elif char in "'\"":
                quote = char
            else:
                depth += (char in "([{") - (char in ")]}")
            read += reader.take(1)
        raise NoMatchError


def _as_json(text: str) -> str:
    try:
        return json.dumps(_value_of(ast.parse(text.strip(), mode="eval").body), ensure_ascii=False)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return json.dumps(text.strip(), ensure_ascii=False)


def _value_of(node: ast.expr) -> Any:
    """The value of a literal; the words of JSON are ones too. Raises ValueError."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value_of(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        if not all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in node.keys):
            raise ValueError("keys are texts")
        return {key.value: _value_of(value) for key, value in zip(node.keys, node.values, strict=True)}  # type: ignore[union-attr]
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError("no JSON has it")
    return value
