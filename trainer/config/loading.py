"""Reads a configuration from YAML, environment and command line: ``key=value`` over ``HOTSWAP_TRAIN_*`` over the file.

A key is dotted (``training.learning_rate``) or, when it means one thing only, the last part alone (``learning_rate``),
or another tool's name for it (``trainer.config.aliases``). In the environment it is upper case with ``__`` for the dot.
Unknown keys are refused with the nearest known one. Two names of one source that contradict each other are refused; a
later source overrides an earlier one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from trainer.config.aliases import ALIASES, AS_IS, NOT_GIVEN, TEMPLATE, Alias, Several
from trainer.config.data import absolute, complete_data, exists
from trainer.config.keys import check_finite, check_keys, choices_of, full_key, is_section, takes
from trainer.config.preference import complete_preference
from trainer.config.rules import check
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError
from trainer.recipes import RECIPES

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
        yield from _section_settings(name, value)
    elif alias := _alias_of(name):
        yield from _aliased(alias, name, value)
    else:
        yield _Setting(name, value, name)


def _section_settings(name: str, value: Any) -> Iterator[_Setting]:
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


ENV_PREFIX = "HOTSWAP_TRAIN_"


def load_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """The configuration in the YAML file ``path``, overridden by ``environ`` and then ``overrides``.

    ``defaults`` are keys at the top that stand where none of them says anything.

    The learning rate is filled in and paths are made absolute, so that the result stands for itself.
    Raises ConfigError naming the key.
    """
    raw: dict[str, Any] = dict(defaults or {})
    apply_layer(raw, _read_yaml(path).items() if path else ())
    check_keys(raw)
    apply_layer(raw, _environment(os.environ if environ is None else environ))
    apply_layer(raw, map(_override, overrides))
    check_keys(raw)
    return _complete(convert(raw))


def convert(raw: Mapping[str, Any]) -> TrainConfig:
    """The configuration in ``raw``; every key must be known. Raises ConfigError."""
    check_finite(raw)
    try:
        config = msgspec.convert(raw, TrainConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(_plain_words(str(error))) from error
    check(config)
    return config


def dump_config(config: TrainConfig) -> str:
    """``config`` as YAML that ``load_config`` reads back to the same."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML whose numbers may be written 5e-4 (YAML 1.1 reads a text there), and whose keys may not repeat."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: {key!r} is not a key; keys are words")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key!r} appears twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+0123456789.")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold keys and values, at least data: {{path: ...}} and output: ...")
    return raw


def _environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            yield key, _value(key, environ[name])


def _override(item: str) -> tuple[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"{item!r} is not key=value")
    key = key.removeprefix("--").replace("-", "_")
    return key, _value(key, text)


def _value(key: str, text: str) -> Any:
    """What ``text`` would be in a YAML file; for a ``key`` that takes text, itself, unless it is quoted or null."""
    try:
        value = yaml.load(text, _Loader) if text else None
    except (yaml.YAMLError, ConfigError):
        return text
    ours = meaning_of(key)
    null = value is None and text in ("", "~", "null", "Null", "NULL")
    quoted = isinstance(value, str) and text[0] in "\"'"
    other = isinstance(value, list | int | float) and not isinstance(value, bool) and takes(ours, type(value))
    other = other or (isinstance(value, dict) and key == "data")  # the whole section
    return text if takes(ours, str) and not (null or quoted or other) else value


def _plain_words(message: str) -> str:
    """msgspec's message with the key first: ``training.epochs: Expected `float` > 0.0``."""
    what, at, where = message.partition(" - at `$.")
    if at:
        key = where.rstrip("`")
        if what == "Expected `array`, got `str`":
            return f"{key}: write a list, such as [a, b]"
        choices = choices_of(key) if what.startswith("Invalid enum value") else []
        return f"{key}: {what.replace('`', '')}" + (f"; choose from {', '.join(choices)}" if choices else "")
    return what.replace("Object missing required field", "the configuration lacks").replace("`", "'")


def _complete(config: TrainConfig) -> TrainConfig:
    training = config.training
    if training.learning_rate is None:
        scale = config.preference.LEARNING_RATE_SCALE if config.preference else 1.0
        training = msgspec.structs.replace(training, learning_rate=config.method.default_learning_rate * scale)
    if training.early_stopping:  # the last checkpoint is then one that was no better
        training = msgspec.structs.replace(training, best_checkpoint=True)
    data = complete_data(config.data)
    base = absolute(config.base) if exists(config.base) and os.path.isdir(absolute(config.base)) else config.base
    return msgspec.structs.replace(
        config,
        base=base,
        output=absolute(config.output),
        data=data,
        training=training,
        preference=complete_preference(config.preference),
        added_tokens=_added_tokens(config),
        start_from=absolute(config.start_from) if config.start_from else None,
    )


def _added_tokens(config: TrainConfig) -> list[str]:
    """Those that are asked for, otherwise those that the rows of a recipe are written with.

    A preference run has those of what it starts from: its reference must know them.
    """
    if config.added_tokens is not None or config.preference or config.data.recipe not in RECIPES:
        return config.added_tokens or []
    return list(RECIPES[config.data.recipe].added_tokens)
