"""Puts one source of settings (a file, the environment, the command line) over those below it.

Names may be ours, dotted or flat, or another tool's (``trainer.config.aliases``). Two names of one source that
contradict each other are refused; a later source overrides an earlier one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.aliases import ALIASES, Alias
from trainer.config.conversions import AS_IS, NOT_GIVEN, TEMPLATE, Several
from trainer.config.keys import full_key, is_section
from trainer.errors import ConfigError

_KINDS = ("method", "preference")  # sections whose keys depend on their type
_KIND_KEYS = {f"{kind}.type" for kind in _KINDS}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Setting:
    """``key`` is ours, dotted or flat; ``name`` is what was written."""

    key: str
    value: Any
    name: str
    alias: Alias | None = None


def apply_layer(raw: dict[str, Any], entries: Iterable[tuple[str, Any]]) -> None:
    """Put ``entries`` (name and value) into the nested ``raw``. Raises ConfigError naming what was written."""
    settings = [setting for name, value in entries for setting in _settings(name, value)]
    given: dict[str, _Setting] = {}
    for setting in settings:
        if setting.key in _KIND_KEYS:
            _note(given, setting.key, setting)
            _choose(raw, setting.key.partition(".")[0], setting.value)
    for setting in settings:
        if setting.alias and setting.alias.method:
            _imply_method(raw, setting.alias)
    for setting in settings:
        if setting.key not in _KIND_KEYS:
            key = full_key(setting.key, raw)
            _note(given, key, setting)
            _put(raw, key, setting.value)
    for setting in settings:
        for key, value in (setting.alias.with_it if setting.alias else {}).items():
            if _get(raw, key) is NOT_GIVEN:
                _put(raw, key, value)


def meaning_of(name: str) -> str:
    """Our key for ``name`` where another tool's, or a section's, means it word for word; otherwise ``name``."""
    if name == "data":
        return "data.path"
    alias = _alias_of(name)
    return alias.ours if alias and alias.conversion in (AS_IS, TEMPLATE) else name


def _alias_of(name: str) -> Alias | None:
    return ALIASES.get(name if _is_known(name) else name.rsplit(".", 1)[-1])


def _settings(name: str, value: Any) -> Iterator[_Setting]:
    """What ``name: value`` sets: the keys of a whole section, those that an alias means, or one."""
    if name == "type":
        name = "method.type"
    if is_section(name):
        yield from _section(name, value)
    elif alias := _alias_of(name):
        yield from _aliased(alias, name, value)
    else:
        yield _Setting(name, value, name)


def _section(name: str, value: Any) -> Iterator[_Setting]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _settings(f"{name}.{key}", inner)
    elif name in _KINDS and isinstance(value, str):
        yield _Setting(f"{name}.type", value, name)
    elif name == "data" and isinstance(value, str | list):
        yield _Setting("data.path", value, name)
    elif value is not None:  # an empty section says nothing
        yield _Setting(name, value, name)


def _aliased(alias: Alias, name: str, value: Any) -> Iterator[_Setting]:
    try:
        converted = NOT_GIVEN if value is None else alias.conversion.apply(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    if converted is NOT_GIVEN:
        if alias.ours.rpartition(".")[2] == alias.name:  # our own name too: takes back what an earlier source set
            yield _Setting(alias.ours, NOT_GIVEN, name, alias)
        elif value is not None and alias.conversion.words.startswith("no effect"):
            _log.warning("%s has %s", name, alias.conversion.words)
        return
    pairs = converted if isinstance(converted, Several) else {alias.ours: converted}
    for key, one in pairs.items():
        yield _Setting("method.type" if key == "method" else key, one, name, alias)


def _is_known(name: str) -> bool:
    try:
        return full_key(name, {}) == name
    except ConfigError:
        return False


def _note(given: dict[str, _Setting], key: str, setting: _Setting) -> None:
    """Remember that ``key`` was given. ConfigError when another name has said otherwise."""
    other = given.setdefault(key, setting)
    if other.name != setting.name and other.value != setting.value:
        raise ConfigError(
            f"{other.name} says {key}: {other.value}, but {setting.name} says {setting.value}; give one of them"
        )
    given[key] = setting


def _choose(raw: dict[str, Any], section: str, kind: Any) -> None:
    """Set the type of ``section``; settings that were for another type are left behind."""
    current = raw.get(section)
    if not isinstance(current, dict) or current.get("type", kind) != kind:
        current = {}
    raw[section] = {"type": kind, **current}


def _imply_method(raw: dict[str, Any], alias: Alias) -> None:
    kind = _get(raw, "method.type")
    if kind is NOT_GIVEN:
        _put(raw, "method.type", alias.method)
    elif kind != alias.method:
        raise ConfigError(f"{alias.name} belongs to the method {alias.method}, but the method is {kind}")


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    place = raw
    for section in sections:
        if not isinstance(place.get(section), dict):
            place[section] = {}
        place = place[section]
    if value is NOT_GIVEN:
        place.pop(leaf, None)
    else:
        place[leaf] = value


def _get(raw: Mapping[str, Any], key: str) -> Any:
    place: Any = raw
    for part in key.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return NOT_GIVEN
        place = place[part]
    return place
