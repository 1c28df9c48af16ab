"""The Jinja that chat templates are written for, as transformers' ``apply_chat_template`` sets it up; nothing else.

The process that renders foreign templates imports this and little more: transformers itself takes seconds and hundreds
of megabytes. A test holds the two together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from adapters.quoting import describe_error

Message = dict[str, Any]
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names for one thing
_ADDRESS = re.compile(r"( at)? 0x[0-9a-fA-F]+")


def make_environment() -> ImmutableSandboxedEnvironment:
    """An environment with the filters, globals and tags that chat templates may use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def variables(messages: Sequence[Message], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees of ``messages``, and ``arguments`` beside them."""
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    return {"tools": None, "documents": None, **arguments, "messages": [_with_reasoning(m) for m in plain]}


def reason_of(error: Exception) -> str:
    """Why a template failed, in its own words: on one line, bounded, without addresses."""
    said = (error.message if isinstance(error, TemplateError) else str(error)) or ""
    return _ADDRESS.sub("", describe_error(ValueError(said))) or type(error).__name__


def _with_reasoning(message: Message) -> Message:
    said = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if said is None else {"thinking": said, **message, "reasoning_content": said}


class _Generation(Extension):
    """``{% generation %}`` marks what is learned in training; here it only lets it through."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag's body, written by a macro."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` with its constructor and ``fromkeys`` alone."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's namespace, without names that Python keeps for itself."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}, which begins with an underscore")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # the template's today is the server's
