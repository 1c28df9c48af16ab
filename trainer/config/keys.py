"""The keys of a configuration: which are known, what a short one means, which is nearest to an unknown one."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trainer.config.data import Columns, DataConfig
from trainer.config.methods import METHODS, LoraMethod
from trainer.config.schema import TrainConfig
from trainer.config.training import TrainingConfig
from trainer.errors import ConfigError

FREE_MAPPINGS = ("method.rank_pattern", "method.alpha_pattern")  # their keys name modules


def full_key(key: str, raw: Mapping[str, Any]) -> str:
    """The dotted key meant by ``key``, dotted or flat, in a configuration like ``raw``. Raises ConfigError."""
    known = _known_keys(raw)
    if key in known or any(key.startswith(f"{mapping}.") for mapping in FREE_MAPPINGS if mapping in known):
        return key
    found = [full for full in known if full.endswith(f".{key}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{key!r} could mean {' or '.join(found)}; write it out")
    raise _unknown(key, known)


def _known_keys(raw: Mapping[str, Any]) -> list[str]:
    method = raw.get("method")
    kind = method.get("type") if isinstance(method, Mapping) else None
    parts: list[tuple[str, Iterable[str]]] = [
        ("", TrainConfig.__struct_fields__),
        ("method.", ["type", *METHODS.get(str(kind), LoraMethod).__struct_fields__]),
        ("data.", DataConfig.__struct_fields__),
        ("data.columns.", Columns.__struct_fields__),
        ("training.", TrainingConfig.__struct_fields__),
    ]
    return [prefix + name for prefix, names in parts for name in names]


def check_keys(raw: dict[str, Any]) -> None:
    """Raise ConfigError for the first unknown key."""
    method = raw.get("method")
    if isinstance(method, dict):
        method.setdefault("type", LoraMethod.KIND)
        if method["type"] not in METHODS:
            raise ConfigError(f"method.type: {method['type']!r} is not a method; known are {', '.join(METHODS)}")
    known = _known_keys(raw)
    for key in _walk(raw, ""):
        if key not in known:
            raise _unknown(key, known)


def _walk(raw: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in raw.items():
        key = prefix + name
        yield key
        if isinstance(value, Mapping) and key not in FREE_MAPPINGS:
            yield from _walk(value, key + ".")


def _unknown(key: str, known: Sequence[str]) -> ConfigError:
    leaves = {full.rsplit(".", 1)[-1]: full for full in known}
    near = difflib.get_close_matches(key, known, 1, 0.6) or [
        leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, 1, 0.6)
    ]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    leaf = key.rsplit(".", 1)[-1]
    owners = [kind for kind, struct in METHODS.items() if leaf in struct.__struct_fields__]
    if owners and not near:
        hint = f"; it belongs to the method {' and '.join(owners)}"
    return ConfigError(f"unknown key {key!r}{hint}")


def choices_of(key: str) -> list[str]:
    """The values that the dotted ``key`` may have, where they are few."""
    struct: Any = TrainConfig
    *sections, leaf = key.split(".")
    for section in sections:
        struct = LoraMethod if section == "method" else typing.get_type_hints(struct)[section]
    hint = typing.get_type_hints(struct).get(leaf)
    return [str(choice) for choice in typing.get_args(hint)] if typing.get_origin(hint) is typing.Literal else []
