"""Structural tags: free text in which what stands behind a trigger, until an end, has a form of its own.

Read as xgrammar's users write them, in the older way (``structures`` and ``triggers``) and the newer (``format``), and
written as a Lark grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Schemas = Callable[[Any], str]
Patterns = Callable[[str], str]
MAX_PARTS = 4096


def structural_tag(given: Any, inline_schema: Schemas, inline_regex: Patterns) -> str:
    """The grammar of a structural tag. Raises ValueError saying what is wrong with it."""
    if not isinstance(given, dict):
        raise ValueError("a structural tag is an object")
    writer = _Writer(inline_schema, inline_regex)
    if "format" in given:
        start = writer.write(given["format"])
    elif isinstance(given.get("structures"), list):
        tags = [{**one, "content": {"type": "json_schema", "json_schema": one.get("schema", {})}}
                for one in given["structures"] if isinstance(one, dict)]  # fmt: skip
        start = writer.write({"type": "triggered_tags", "triggers": given.get("triggers"), "tags": tags})
    else:
        raise ValueError("it needs `format`, or `structures` and `triggers`")
    return "\n".join([f"start: {start}", *writer.rules])


class _Writer:
    """Writes one tag; ``rules`` are those that its parts need."""

    def __init__(self, inline_schema: Schemas, inline_regex: Patterns) -> None:
        self.rules: list[str] = []
        self._inline_schema, self._inline_regex = inline_schema, inline_regex
        self._parts = 0

    def write(self, part: Any) -> str:
        """A part as an expression of Lark."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ValueError(f"it has more than {MAX_PARTS} parts")
        kind = part.get("type") if isinstance(part, dict) else None
        write = {
            "const_string": self._const,
            "json_schema": lambda part: self._inline_schema(part.get("json_schema", {})),
            "regex": lambda part: self._inline_regex(_text(part, "pattern")),
            "any_text": lambda _: self._any_text(),
            "sequence": lambda part: " ".join(map(self.write, _several(part, "elements"))),
            "or": lambda part: f"({' | '.join(map(self.write, _several(part, 'elements')))})",
            "tag": self._tag,
            "triggered_tags": self._triggered,
            "tags_with_separator": self._separated,
        }.get(str(kind))
        if write is None:
            raise ValueError(f"parts of type {str(kind)[:40]!r} are not supported")
        return write(part)

    def _const(self, part: Mapping[str, Any]) -> str:
        return _literal(_text(part, "value"))

    def _any_text(self) -> str:
        return r"/(.|\n)*/"

    def _tag(self, tag: Mapping[str, Any], skip: int = 0) -> str:
        """A tag, of whose beginning ``skip`` characters stand elsewhere."""
        begin, end, content = _text(tag, "begin")[skip:], _text(tag, "end"), tag.get("content")
        if isinstance(content, dict) and content.get("type") == "any_text" and end:
            return f"{_literal(begin)} {self._rule('[lazy]', f'{self._any_text()} {_literal(end)}')}"
        return f"{_literal(begin)} {self.write(content)} {_literal(end)}"

    def _triggered(self, part: Mapping[str, Any]) -> str:
        triggers, tags = _several(part, "triggers"), _several(part, "tags")
        forms = []
        for trigger in triggers:
            bodies = [tag for tag in tags if isinstance(tag, dict) and str(tag.get("begin", "")).startswith(trigger)]
            if not isinstance(trigger, str) or not trigger or not bodies:
                raise ValueError("every trigger must begin one of the tags")
            head = self._rule("[lazy]", f"{self._any_text()} {_literal(trigger)}")
            forms.append(f"{head} ({' | '.join(self._tag(tag, len(trigger)) for tag in bodies)})")
        often = {(True, True): "", (True, False): "+", (False, True): "?", (False, False): "*"}
        count = often[bool(part.get("at_least_one")), bool(part.get("stop_after_first"))]
        tail = "" if part.get("stop_after_first") else f" {self._any_text()}"
        return f"({' | '.join(forms)}){count}{tail}"

    def _separated(self, part: Mapping[str, Any]) -> str:
        one = f"({' | '.join(self._tag(tag) for tag in _several(part, 'tags'))})"
        if part.get("stop_after_first"):
            return one if part.get("at_least_one") else f"({one})?"
        several = f"{one} ({_literal(_text(part, 'separator'))} {one})*"
        return several if part.get("at_least_one") else f"({several})?"

    def _rule(self, options: str, body: str) -> str:
        name = f"part_{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body}")
        return name


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _text(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise ValueError(f"`{name}` of {str(part.get('type', 'a tag'))[:40]} must be a text")
    return value


def _several(part: Mapping[str, Any], name: str) -> list[Any]:
    value = part.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{name}` must be a list of at least one")
    return value
