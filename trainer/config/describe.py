"""Methods in words, from their structs alone: docstring, keys, defaults."""

from __future__ import annotations

import difflib
import inspect
import json
import types
import typing
from typing import Any

import msgspec

from trainer.config.methods import METHODS
from trainer.errors import ConfigError


class Setting(msgspec.Struct, frozen=True):
    """One key of a method: what it may be and its default, as YAML would write them."""

    key: str
    type: str
    default: str


class Description(msgspec.Struct, frozen=True):
    """One method. ``details`` is the rest of its docstring, ``quantized`` the quantizations of bases it trains on."""

    name: str
    summary: str
    details: str
    settings: list[Setting]
    learning_rate: str
    quantized: list[str]


def describe_methods() -> list[Description]:
    """Every method in the order of METHODS."""
    return [describe_method(name) for name in METHODS]


def describe_method(name: str) -> Description:
    """The method called ``name``. Raises ConfigError naming the nearest one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(METHODS)}"
        raise ConfigError(f"{name!r} is not a method; {hint}")
    struct: Any = METHODS[name]
    summary, _, details = inspect.cleandoc(struct.__doc__ or "").partition("\n\n")
    hints = typing.get_type_hints(struct, include_extras=True)
    settings = [
        Setting(field.name, _type(hints[field.name]), _written(field)) for field in msgspec.structs.fields(struct)
    ]
    return Description(
        name=name,
        summary=_plain(summary),
        details=_plain(details),
        settings=settings,
        learning_rate=_rate(struct),
        quantized=list(struct.QUANTIZED),
    )


def _rate(struct: Any) -> str:
    return f"{struct().default_learning_rate:g}"


def _written(field: Any) -> str:
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return "" if value is msgspec.NODEFAULT else json.dumps(value)


def _type(hint: Any) -> str:
    """A type as users say it: ``number from 1``, ``houlsby or pfeiffer``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return " ".join([_type(arguments[0]), *map(_bounds, arguments[1:])]).strip()
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    return {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}[hint]


def _bounds(meta: Any) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    return " ".join(f"{word} {getattr(meta, name)}" for name, word in words.items() if getattr(meta, name) is not None)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")
