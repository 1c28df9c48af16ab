"""Walks over JSON schemas: their parts, what of them is no assertion, and where one goes wrong. Knows no grammars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any] | bool
Path = tuple[str | int, ...]

_ONE = ("items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
        "unevaluatedItems", "unevaluatedProperties", "contentSchema")  # fmt: skip
_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_DEFINITIONS = ("$defs", "definitions")

# Of JSON Schema's own formats; all others are remarks, which validators pass over.
_FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
     "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex"}
)  # fmt: skip


def parts(schema: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """The schemas right within ``schema``, and where they stand; those it only defines come last."""
    for name in _ONE:
        if isinstance(schema.get(name), dict | bool):
            yield (name,), schema[name]
    for name in _SEVERAL:
        if isinstance(schema.get(name), list):
            yield from (((name, i), part) for i, part in enumerate(schema[name]))
    for name in _NAMED:
        if isinstance(schema.get(name), dict):
            yield from (((name, key), part) for key, part in schema[name].items())


def with_unknown_formats_left_out(schema: Any) -> Any:
    """``schema`` without the formats that JSON Schema does not know, which say nothing about what is valid."""
    if not isinstance(schema, dict):
        return schema
    changed = {**schema}
    if isinstance(found := schema.get("format"), str) and found not in _FORMATS:
        del changed["format"]
    for (name, *rest), part in parts(schema):
        cleaned = with_unknown_formats_left_out(part)
        if cleaned is part:
            continue
        if not rest:
            changed[name] = cleaned
        else:
            if changed[name] is schema[name]:
                changed[name] = schema[name].copy()
            changed[name][rest[0]] = cleaned
    return changed


def find_fault(schema: Schema, problem: str, problem_of: Callable[[Schema], str], seconds: float = 0.5) -> Path:
    """The innermost part of ``schema`` that has the same ``problem`` as all of it, as ``problem_of`` says of a part."""
    until = time.monotonic() + seconds
    where: Path = ()
    here, seen = schema, set[Path]()
    definitions = {name: schema[name] for name in _DEFINITIONS if not isinstance(schema, bool) and name in schema}
    while isinstance(here, dict):
        for place, part in _next(here, where, definitions):
            if place in seen or not isinstance(part, dict | bool):
                continue
            seen.add(place)
            if time.monotonic() > until:
                return where
            if problem_of({**part, **definitions} if isinstance(part, dict) else part) == problem:
                where, here = place, part
                break
        else:
            return where
    return where


def written(path: Path) -> str:
    """A path as it stands behind the name of a field: ``.properties.a.anyOf[0]``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _next(schema: Mapping[str, Any], where: Path, definitions: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """What to look at behind a part: the parts of it, or what it refers to."""
    yield from ((where + path, part) for path, part in parts(schema))
    steps = str(schema.get("$ref", "")).removeprefix("#/").split("/")
    if len(steps) == 2 and steps[1] in definitions.get(steps[0], {}):
        yield tuple(steps), definitions[steps[0]][steps[1]]
