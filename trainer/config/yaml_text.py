"""YAML whose unquoted words mean what their key takes: ``1e5`` is a number for a rate and text for a prompt.

Knows no keys: the caller says, by the dotted name of each unquoted word, what it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from trainer.config.scalars import plain_value
from trainer.errors import ConfigError

ITEM = "[]"  # behind the name of a list: one of its items
Plain = Callable[[str, str], Any]
"""What the unquoted text (second) is, at the dotted name (first)."""


def read_mapping(text: str, plain: Plain) -> dict[str, Any]:
    """The mapping that the YAML ``text`` is. Raises ConfigError, also where it is something else."""
    value = _Reader(plain).value(_compose(text), "")
    if not isinstance(value, dict):
        raise ConfigError("it must hold keys and values, at least data: {path: ...} and output: ...")
    return value


def read_value(name: str, text: str, plain: Plain) -> tuple[Any, bool]:
    """The value of ``text``, written for ``name``, and whether all of it is one quoted text. Raises ConfigError."""
    node = _compose(text)
    whole = node is None or not (text[: node.start_mark.index] + text[node.end_mark.index :]).strip()
    return _Reader(plain).value(node, name), whole and getattr(node, "style", None) in ("'", '"')


def _compose(text: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, _Loader)
        return node
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"it is not valid YAML: {at}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"it is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError("it is nested too deeply") from error


_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_TAGS = {_STRING, _MERGE, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


class _Loader(yaml.SafeLoader):
    """Every unquoted word is text but for the key ``<<``, which takes over another mapping."""

    yaml_implicit_resolvers = {"<": [(_MERGE, re.compile("<<$"))]}  # noqa: RUF012 - as yaml declares it


class _Reader:
    """Turns the nodes of one text into values."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node | None, name: str) -> Any:
        if node is None:
            return None
        if node.tag not in _TAGS:
            raise ConfigError(f"{_line(node)}: leave out the tag {node.tag.replace('tag:yaml.org,2002:', '!!')}")
        if node in self._open:
            raise ConfigError(f"{_line(node)}: it contains itself")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, name)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, name + ITEM) for item in node.value]
            assert isinstance(node, yaml.ScalarNode)
            return node.value if node.style else self._plain(name, node.value)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, name: str) -> dict[str, Any]:
        seen: set[str] = set()
        for key in [key for key, _ in node.value if key.tag != _MERGE]:
            if self._key(key) in seen:
                raise ConfigError(f"{_line(key)}: the key {key.value!r} appears twice")
            seen.add(key.value)
        yaml.constructor.SafeConstructor().flatten_mapping(node)  # <<: *anchor
        dot = f"{name}." if name else ""
        return {(text := self._key(key)): self.value(value, dot + text) for key, value in node.value}

    def _key(self, node: yaml.Node) -> str:
        text = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
        is_word = isinstance(node, yaml.ScalarNode) and (node.style or isinstance(plain_value(text), str))
        if not is_word:
            raise ConfigError(f"{_line(node)}: {text} is not a key; keys are words")
        return str(text)


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def write(value: Any) -> str:
    """``value``, of plain data, as YAML that is read back to the same with and without knowledge of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that could be taken for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")  # YAML reads some of them as a line's end


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _BREAKS.search(text) else None if isinstance(plain_value(text), str) else "'"
    return dumper.represent_scalar(_STRING, text, style=style)


_Dumper.add_representer(str, _text)
