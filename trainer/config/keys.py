"""The keys of a configuration: which are known, what a short one means, and the methods' in words.

The sections are read from the types of TrainConfig: a new section is known here as soon as it stands there. Methods are
described from their structs alone: docstring, keys, defaults.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from trainer.config.methods import METHODS, LoraMethod
from trainer.config.preference import PREFERENCES
from trainer.config.schema import StartConfig, TrainConfig
from trainer.config.task import TASKS
from trainer.config.yaml_text import ITEM
from trainer.errors import ConfigError

Struct = type[msgspec.Struct]
START = "start"  # the section of StartConfig
# sections whose keys depend on their type, and what that is called
_KINDS = {"method": "method", "preference": "kind", "task": "task"}
_STRUCTS: dict[str, Mapping[str, Struct]] = {"method": METHODS, "preference": PREFERENCES, "task": TASKS}
_PROSE = ("system_prompt", "prompt_prefix", "init_text")


def full_key(key: str, raw: Mapping[str, Any]) -> str:
    """The dotted key meant by ``key``, dotted or flat, in a configuration like ``raw``. Raises ConfigError."""
    known = _known_keys(raw)
    if key in known or any(key.startswith(f"{mapping}.") for mapping in _free_mappings(known)):
        return key
    found = [full for full in known if full.endswith(f".{key}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{key!r} could mean {' or '.join(found)}; write it out")
    raise _unknown(key, known)


def remove_unknown_kinds(raw: dict[str, Any]) -> Iterator[str]:
    """Take a method or preference training that nobody knows out of ``raw``; what to say of each."""
    if isinstance(method := raw.get("method"), dict):
        method.setdefault("type", LoraMethod.KIND)
    for section in _unknown_kinds(raw):
        kinds = _STRUCTS[section]
        kind = raw.pop(section).get("type")
        yield f"{section}.type: unknown {_KINDS[section]} {kind!r}; choose from {', '.join(kinds)}"


def remove_unknown_keys(raw: dict[str, Any]) -> Iterator[str]:
    """Take what is unknown out of ``raw``, but for sections whose kind is; what to say of each."""
    known = _known_keys(raw)
    kinds = _unknown_kinds(raw)
    for key in list(_walk(raw, "", _free_mappings(known))):
        outer = _outer(key)
        if key not in known and not any(section in kinds or section not in known for section in outer):
            remove(raw, key)
            yield str(_unknown(key, known))


def _unknown_kinds(raw: Mapping[str, Any]) -> list[str]:
    found = []
    for section, kinds in _STRUCTS.items():
        value, default = raw.get(section), LoraMethod.KIND if section == "method" else None
        if isinstance(value, Mapping) and value.get("type", default) not in list(kinds):
            found.append(section)
    return found


def remove(raw: dict[str, Any], key: str) -> bool:
    """Take the dotted ``key`` out of ``raw``; whether it was there."""
    *sections, leaf = key.split(".")
    place: Any = raw
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    return isinstance(place, dict) and place.pop(leaf, remove) is not remove


def infinite_numbers(raw: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What to say of every number that is infinite or none."""
    for name, value in raw.items():
        if isinstance(value, Mapping):
            yield from infinite_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{prefix}{name}: {value} is not a finite number"


def is_section(key: str) -> bool:
    """Whether the dotted ``key`` names a group of keys."""
    return key in _KINDS or _struct_of(_known_keys({}).get(key)) is not None


def choices_of(key: str, raw: Mapping[str, Any] | None = None) -> list[str]:
    """The values that ``key`` may have where they are few: in a configuration like ``raw``, or in any."""
    hints = _hints_of(key) if raw is None else [_known_keys(raw).get(key)]
    parts = [part for hint in hints for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is Literal]
    switches = ["true", "false"] if parts and is_switch(key) else []
    return list(dict.fromkeys([*switches, *(str(choice) for part in parts for choice in typing.get_args(part))]))


def takes(key: str, kind: type) -> bool:
    """Whether ``key``, dotted or flat, may hold a value of ``kind``; a whole number is a float too."""
    kinds = (int, float) if kind is int else (kind,)
    parts = [part for hint in _hints_of(key) for part in _alternatives(hint)]
    return any(part in kinds or typing.get_origin(part) in kinds for part in parts)


def is_switch(key: str) -> bool:
    """Whether ``key``, dotted or flat, may be true or false wherever it is known."""
    hints = _hints_of(key)
    return bool(hints) and all(bool in _alternatives(hint) for hint in hints)


def is_prose(key: str) -> bool:
    """Whether ``key``, dotted or flat, holds text for a model, in which commas are nothing but commas."""
    return key.rpartition(".")[2] in _PROSE


def check_somewhere_known(key: str) -> None:
    """Raise ConfigError unless ``key``, dotted or flat, is one of some method or preference training."""
    first: ConfigError | None = None
    for raw in _every_kind():
        known = _known_keys(raw)
        if any(full == key or full.endswith(f".{key}") for full in known):
            return
        if any(key.startswith(f"{mapping}.") for mapping in _free_mappings(known)):
            return
        first = first or _unknown(key, known)
    assert first is not None
    raise first


def _known_keys(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The type of every key, with those of the method and the preference training that ``raw`` names."""
    there = tuple(section for section in _KINDS if section == "method" or raw.get(section) is not None)
    return _keys_with(tuple(_type_of(raw, section) for section in _KINDS), there)


@functools.cache
def _keys_with(types_of_kinds: tuple[str, ...], there: tuple[str, ...]) -> Mapping[str, Any]:
    chosen: dict[str, Struct] = {"method": LoraMethod}
    for section, kind in zip(_KINDS, types_of_kinds, strict=True):
        if kind in _STRUCTS[section]:
            chosen[section] = _STRUCTS[section][kind]
    kinds = {f"{section}.type": str for section in there}
    return {**kinds, **_keys_of(TrainConfig, "", chosen), START: StartConfig, **_keys_of(StartConfig, f"{START}.", {})}


@functools.cache
def _hints_of(key: str) -> tuple[Any, ...]:
    """The types of ``key``, dotted or flat, in every method and preference training; ``key[]`` is an item of a list."""
    if key.endswith(ITEM):
        lists = [part for hint in _hints_of(key.removesuffix(ITEM)) for part in _alternatives(hint)]
        return tuple(typing.get_args(part)[0] for part in lists if typing.get_origin(part) is list)
    known = [_known_keys(raw) for raw in _every_kind()]
    return tuple(hint for keys in known for full, hint in keys.items() if full == key or full.endswith(f".{key}"))


def _every_kind() -> list[dict[str, Any]]:
    """A configuration for every kind of every section that has kinds."""
    return [{section: {"type": kind}} for section, kinds in _STRUCTS.items() for kind in kinds]


def _outer(key: str) -> list[str]:
    """The sections that ``key`` stands in."""
    parts = key.split(".")
    return [".".join(parts[:at]) for at in range(1, len(parts))]


def _type_of(raw: Mapping[str, Any], section: str) -> str:
    value = raw.get(section)
    return str(value.get("type")) if isinstance(value, Mapping) else ""


def _keys_of(struct: Struct, prefix: str, chosen: Mapping[str, Struct]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, hint in _field_types(struct).items():
        keys[prefix + name] = hint
        section = chosen.get(prefix + name) or _struct_of(hint)
        if section is not None:
            keys |= _keys_of(section, f"{prefix}{name}.", chosen)
    return keys


@functools.cache
def _field_types(struct: Struct) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(struct).items() if name in struct.__struct_fields__}


def _struct_of(hint: Any) -> Struct | None:
    """The one struct that ``hint`` allows (``Section`` or ``Section | None``)."""
    structs = [part for part in _alternatives(hint) if isinstance(part, type) and issubclass(part, msgspec.Struct)]
    return structs[0] if len(structs) == 1 else None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _free_mappings(known: Mapping[str, Any]) -> list[str]:
    """Keys that hold mappings with names of the user's, such as modules."""
    return [key for key, hint in known.items() if dict in (typing.get_origin(hint), hint)]


def _walk(raw: Mapping[str, Any], prefix: str, free: Sequence[str]) -> Iterator[str]:
    for name, value in raw.items():
        key = prefix + name
        yield key
        if isinstance(value, Mapping) and key not in free:
            yield from _walk(value, key + ".", free)


def _unknown(key: str, known: Mapping[str, Any]) -> ConfigError:
    leaf = key.rsplit(".", 1)[-1]
    owners = [kind for kind, struct in METHODS.items() if leaf in struct.__struct_fields__]
    preferences = [kind for kind, struct in PREFERENCES.items() if leaf in struct.__struct_fields__]
    tasks = [kind for kind, struct in TASKS.items() if leaf in struct.__struct_fields__]
    leaves = {full.rsplit(".", 1)[-1]: full for full in known}
    near = difflib.get_close_matches(key, known, 1, 0.6) or [
        leaves[close] for close in difflib.get_close_matches(leaf, leaves, 1, 0.6)
    ]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if owners and leaf not in leaves:
        hint = f"; it belongs to the method {' and '.join(owners)}"
    elif preferences and leaf not in leaves:
        hint = f"; it belongs to training with preference: {', '.join(preferences)}"
    elif tasks and leaf not in leaves:
        hint = f"; it belongs to the task {' and '.join(tasks)}"
    return ConfigError(f"unknown key {key!r}{hint}")


class MethodSetting(msgspec.Struct, frozen=True):
    """One key of a method: what it may be and its default, as YAML would write them."""

    key: str
    type: str
    default: str


class MethodDescription(msgspec.Struct, frozen=True):
    """One method. ``details`` is the rest of its docstring, ``quantized`` the quantizations of bases it trains on."""

    name: str
    summary: str
    details: str
    settings: list[MethodSetting]
    learning_rate: str
    quantized: list[str]


def describe_methods() -> list[MethodDescription]:
    """Every method in the order of METHODS."""
    return [describe_method(name) for name in METHODS]


def describe_method(name: str) -> MethodDescription:
    """The method called ``name``. Raises ConfigError naming the nearest one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(METHODS)}"
        raise ConfigError(f"unknown method {name!r}; {hint}")
    struct: Any = METHODS[name]
    summary, _, details = inspect.cleandoc(struct.__doc__ or "").partition("\n\n")
    hints = typing.get_type_hints(struct, include_extras=True)
    settings = [
        MethodSetting(field.name, _type(hints[field.name]), _written(field)) for field in msgspec.structs.fields(struct)
    ]
    return MethodDescription(
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
