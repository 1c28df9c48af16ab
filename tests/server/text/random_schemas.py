"""Random JSON schemas of all that grammars can express, small enough for a model without sense to come to an end."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
_WORDS = ("a", "bé", "name", 'q"\\', "\u2603", "x y", "0", "_")
_PATTERNS = ("^[a-c]{1,4}$", "^(x|yy)[0-9]$", "^\\d\\d-\\w$", "^é?\u2603{2}$")
_FORMATS = ("date", "uuid", "ipv4", "time")


def random_schema(rng: random.Random, depth: int = 3) -> Schema:
    """A schema; with definitions, among them one that refers to itself, on some."""
    schema = _schema(rng, depth)
    if rng.random() < 0.3:
        node: Schema = {"type": "object", "properties": {"v": {"enum": [1, 2]}, "next": {"$ref": "#/$defs/node"}}}
        node |= {"required": ["v"], "additionalProperties": False}
        name = rng.choice(("tree", "list"))
        return _object({name: {"$ref": "#/$defs/node"}, "rest": schema}, rng) | {"$defs": {"node": node}}
    return schema


def _schema(rng: random.Random, depth: int) -> Schema:
    kinds = [_string, _number, _literal] if depth == 0 else [_string, _number, _literal, _array, _some_object, _any_of]
    return rng.choice(kinds)(rng, depth)


def _string(rng: random.Random, _: int) -> Schema:
    kind = rng.randrange(3)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(_PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": rng.choice(_FORMATS)}
    low = rng.randrange(3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(4)}


def _number(rng: random.Random, _: int) -> Schema:
    low = rng.randrange(-50, 50)
    if rng.random() < 0.5:
        return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(200)}
    return {"type": "number", "exclusiveMinimum": low, "maximum": low + 1 + rng.randrange(9)}


def _literal(rng: random.Random, _: int) -> Schema:
    values = rng.sample([None, True, False, 5, -0.5, *_WORDS, [1, "x"], {"k": None}], rng.randrange(1, 5))
    return {"const": values[0]} if rng.random() < 0.3 else {"enum": values}


def _array(rng: random.Random, depth: int) -> Schema:
    low = rng.randrange(3)
    found: Schema = {
        "type": "array",
        "items": _schema(rng, depth - 1),
        "minItems": low,
        "maxItems": low + rng.randrange(3),
    }
    if rng.random() < 0.3:
        found["prefixItems"] = [_schema(rng, 0)]
    return found


def _some_object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_WORDS, rng.randrange(4))
    return _object({name: _schema(rng, depth - 1) for name in names}, rng)


def _object(properties: Schema, rng: random.Random) -> Schema:
    required = [name for name in properties if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}
