"""What a chat template writes, without running it: for templates that came with an adapter and are not allowed to run.

A small interpreter of Jinja's syntax tree over plain data. It calls nothing of Python's that a template could choose,
and is bounded in steps and in what it makes. It knows what templates in use are written with; whatever else there is
ends the reading, and nothing is known then. What it does read is what rendering gives: tests compare the two.
"""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from jinja2 import TemplateError, Undefined, nodes

from server.text.template_environment import Message, make_environment, variables

MAX_CHARS = 32_768  # of a template; the longest in use have 30,000
MAX_MADE = 16_384  # of what is written, and of any one text or list that is made
MAX_STEPS = 5_000
STEP_CHARS = 256  # of a value are as much work as a step
_FILTERS = frozenset({"default", "first", "items", "last", "length", "list"})
_TEXT_FILTERS = frozenset({"capitalize", "lower", "string", "trim", "upper"})
_TESTS = frozenset(
    {"boolean", "defined", "eq", "equalto", "false", "iterable", "mapping", "none", "sequence", "string", "true"}
) | {"undefined"}
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset({"capitalize", "endswith", "lower", "lstrip", "rstrip", "split", "startswith", "strip", "upper"}),
    dict: frozenset({"get", "items", "keys", "values"}),
}
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda one, many: one in many,
    "notin": lambda one, many: one not in many,
}
_FAULTS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
_environment = make_environment()


class _UnreadableError(TemplateError):
    """Something that is not known here, or too much of it."""


class _Break(Exception):  # noqa: N818 - no fault
    """``{% break %}``"""


class _Continue(Exception):  # noqa: N818 - no fault
    """``{% continue %}``"""


def read_template(source: str, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str | None:
    """What ``source`` writes of ``messages``, with ``arguments`` beside them; None where that cannot be told."""
    if len(source) > MAX_CHARS:
        return None
    try:
        return _Reading(variables(messages, arguments)).template(_environment.parse(source))
    except _FAULTS:
        return None


class _Reading:
    """One reading: the names that are known, and what has been written."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names: ChainMap[str, Any] = ChainMap(names)
        self._written: list[str] = []
        self._chars = self._steps = 0

    def template(self, template: nodes.Template) -> str:
        self._run(template.body)
        return "".join(self._written)

    # ---- statements ----

    def _run(self, statements: Iterable[nodes.Node]) -> None:
        for statement in statements:
            self._step()
            match statement:
                case nodes.Output():
                    for part in statement.nodes:
                        self._write(_text(self._value(part)))
                case nodes.If():
                    self._run(self._branch(statement))
                case nodes.For():
                    self._loop(statement)
                case nodes.Assign():
                    self._assign(statement.target, self._value(statement.node))
                case nodes.AssignBlock(filter=None):
                    self._assign(statement.target, self._captured(statement.body, {}))
                case nodes.Macro():
                    self._names[statement.name] = statement
                case nodes.CallBlock(call=nodes.Call(node=nodes.ExtensionAttribute())):  # {% generation %}
                    self._write(self._captured(statement.body, {}))
                case nodes.Break():
                    raise _Break
                case nodes.Continue():
                    raise _Continue
                case _:
                    raise _UnreadableError(type(statement).__name__)

    def _branch(self, statement: nodes.If) -> list[nodes.Node]:
        for branch in (statement, *statement.elif_):
            if self._value(branch.test):
                return branch.body
        return statement.else_

    def _loop(self, loop: nodes.For) -> None:
        if loop.recursive:
            raise _UnreadableError("a recursive loop")
        before, items = self._names, list(self._items(loop))
        try:
            for place, item in enumerate(items):
                self._names = before.new_child({"loop": _place(items, place)})
                self._assign(loop.target, item)
                try:
                    self._run(loop.body)
                except _Continue:
                    continue
        except _Break:
            pass
        finally:
            self._names = before
        if not items:
            self._run(loop.else_)

    def _items(self, loop: nodes.For) -> Iterator[Any]:
        before = self._names
        for item in islice(self._value(loop.iter), MAX_STEPS):
            self._step()
            self._names = before.new_child()
            self._assign(loop.target, item)
            wanted = loop.test is None or self._value(loop.test)
            self._names = before
            if wanted:
                yield item

    def _assign(self, target: nodes.Node, value: Any) -> None:
        match target:
            case nodes.Name():
                self._names[target.name] = value
            case nodes.NSRef() if isinstance(found := self._names.get(target.name), _Namespace):
                found.values[target.attr] = value
            case nodes.Tuple():
                for part, one in zip(target.items, value, strict=True):
                    self._assign(part, one)
            case _:
                raise _UnreadableError("a target")

    def _captured(self, body: Iterable[nodes.Node], names: dict[str, Any]) -> str:
        before, written, self._written = self._names, self._written, []
        self._names = before.new_child(names)
        try:
            self._run(body)
            return "".join(self._written)
        finally:
            self._names, self._written = before, written

    def _write(self, text: str) -> None:
        self._chars += len(text)
        if self._chars > MAX_MADE:
            raise _UnreadableError("too long a text")
        self._written.append(text)

    def _step(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise _UnreadableError("too many steps")

    # ---- expressions ----

    def _value(self, node: nodes.Node | None) -> Any:
        value = self._evaluated(node)
        size = len(value) if isinstance(value, (str, list)) else 0
        if size > MAX_MADE:
            raise _UnreadableError("too long a value")
        self._step(1 + size // STEP_CHARS)
        return value

    def _evaluated(self, node: nodes.Node | None) -> Any:
        match node:
            case None:
                return None
            case nodes.Const():
                return node.value
            case nodes.TemplateData():
                return node.data
            case nodes.Name():
                return self._names.get(node.name, Undefined(name=node.name))
            case nodes.List() | nodes.Tuple():
                return [_flat(self._value(item)) for item in node.items]
            case nodes.And() | nodes.Or() | nodes.Not() | nodes.CondExpr() | nodes.Compare() | nodes.Test():
                return self._logic(node)
            case nodes.Getattr() | nodes.Getitem():
                return self._part(node)
            case nodes.Filter():
                return self._filtered(node)
            case nodes.Call():
                return self._called(node)
            case _:
                return self._computed(node)

    def _logic(self, node: nodes.Expr) -> Any:
        match node:
            case nodes.And():
                return self._value(node.left) and self._value(node.right)
            case nodes.Or():
                return self._value(node.left) or self._value(node.right)
            case nodes.Not():
                return not self._value(node.node)
            case nodes.CondExpr():
                if node.expr2 is None and not self._value(node.test):
                    return Undefined()
                return self._value(node.expr1 if self._value(node.test) else node.expr2)
            case nodes.Test() if node.name in _TESTS:
                return _environment.call_test(node.name, self._value(node.node), [*map(self._value, node.args)])
            case nodes.Compare():
                left = self._value(node.expr)
                for operand in node.ops:
                    right = self._value(operand.expr)
                    if not _OPERATORS[operand.op](left, right):
                        return False
                    left = right
                return True
        raise _UnreadableError(type(node).__name__)

    def _computed(self, node: nodes.Node) -> Any:
        match node:
            case nodes.Concat():
                return "".join(_text(self._value(part)) for part in node.nodes)
            case nodes.Add():
                return self._value(node.left) + self._value(node.right)
            case nodes.Sub():
                return _integer(self._value(node.left)) - _integer(self._value(node.right))
            case nodes.Mod():
                return _integer(self._value(node.left)) % _integer(self._value(node.right))
            case nodes.Neg():
                return -_integer(self._value(node.node))
        raise _UnreadableError(type(node).__name__)

    def _part(self, node: nodes.Getattr | nodes.Getitem) -> Any:
        value = self._value(node.node)
        if isinstance(node, nodes.Getattr):
            return _attribute(value, node.attr)
        if isinstance(node.arg, nodes.Slice):
            return value[slice(*map(self._value, (node.arg.start, node.arg.stop, node.arg.step)))]
        key = self._value(node.arg)
        if isinstance(value, dict) and key in value:
            return value[key]
        if isinstance(key, str):
            return _attribute(value, key)
        if not isinstance(value, (str, list)):
            raise _UnreadableError("an item")
        return value[key] if -len(value) <= _integer(key) < len(value) else Undefined()

    def _filtered(self, node: nodes.Filter) -> Any:
        value, args = self._value(node.node), [self._value(arg) for arg in node.args]
        options = {str(option.key): self._value(option.value) for option in node.kwargs}
        if node.name == "safe":
            return value
        if node.name == "join":
            return _text(args[0] if args else "").join(map(_text, value))
        if node.name in _TEXT_FILTERS:
            value = _text(value)
        elif node.name not in _FILTERS:
            raise _UnreadableError(node.name)
        found = _environment.call_filter(node.name, value, args, options)
        return list(found) if node.name == "items" else found

    def _called(self, node: nodes.Call) -> Any:
        args = [self._value(arg) for arg in node.args]
        options = {str(option.key): self._value(option.value) for option in node.kwargs}
        match node.node:
            case nodes.Getattr(attr=name):
                value = self._value(node.node.node)
                if name in _METHODS.get(type(value), ()):
                    found = getattr(value, name)(*args, **options)
                    return found if isinstance(value, str) or name == "get" else list(found)
            case nodes.Name(name="namespace") if not args:
                return _Namespace(options)
            case nodes.Name(name="range"):
                return list(islice(range(*args), MAX_STEPS))
            case nodes.Name(name="strftime_now"):
                return "today"
            case nodes.Name(name=name) if isinstance(macro := self._names.get(name), nodes.Macro):
                return self._captured(macro.body, self._bound(macro, args, options))
        raise _UnreadableError("a call")

    def _bound(self, macro: nodes.Macro, args: list[Any], options: dict[str, Any]) -> dict[str, Any]:
        names = [name.name for name in macro.args]
        if len(args) > len(names) or not options.keys() <= set(names):
            raise _UnreadableError("arguments")
        defaults = zip(reversed(names), map(self._value, reversed(macro.defaults)), strict=False)
        return dict.fromkeys(names, Undefined()) | dict(defaults) | dict(zip(names, args, strict=False)) | options


class _Namespace:
    """Jinja's ``namespace``."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


def _attribute(value: Any, name: str) -> Any:
    """As Jinja looks names up, where that is no attribute of Python's."""
    if hasattr(type(value), name) or isinstance(value, Undefined):
        raise _UnreadableError("an attribute")
    values = value.values if isinstance(value, _Namespace) else value if isinstance(value, dict) else {}
    return values.get(name, Undefined(name=name))


def _place(items: list[Any], place: int) -> dict[str, Any]:
    """What ``loop`` is."""
    return {
        "index": place + 1,
        "index0": place,
        "revindex": len(items) - place,
        "revindex0": len(items) - place - 1,
        "first": place == 0,
        "last": place == len(items) - 1,
        "length": len(items),
        "previtem": items[place - 1] if place else Undefined(),
        "nextitem": items[place + 1] if place + 1 < len(items) else Undefined(),
    }


def _integer(value: Any) -> int:
    if not isinstance(value, int):
        raise _UnreadableError("arithmetic")
    return value


def _text(value: Any) -> str:
    """As it is written. Lists may hold themselves many times over, and are long then."""
    if not isinstance(value, (str, int, float, Undefined)) and value is not None:
        raise _UnreadableError("a text of many parts")
    return str(value)


def _flat(value: Any) -> Any:
    """An item of a list; for the same reason no list."""
    if isinstance(value, list):
        raise _UnreadableError("a list in a list")
    return value
