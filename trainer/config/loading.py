"""Reads a configuration from YAML, environment and command line: ``key=value`` over ``HOTSWAP_TRAIN_*`` over the file.

A key is dotted (``training.learning_rate``) or, when it means one thing only, the last part alone (``learning_rate``),
or another tool's name for it (``trainer.config.aliases``). In the environment it is upper case with ``__`` for the dot.
Unknown keys are refused with the nearest known one. Two names of one source that contradict each other are refused; a
later source overrides an earlier one. All that is refused is told at once.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trainer.config.aliases import ALIASES, AS_IS, ELSEWHERE, TEMPLATE, Alias, Several
from trainer.config.data import absolute, complete_data, exists
from trainer.config.elsewhere import Implied, fill_in
from trainer.config.keys import (
    START,
    check_somewhere_known,
    choices_of,
    full_key,
    infinite_numbers,
    is_section,
    is_switch,
    remove,
    remove_unknown_keys,
    remove_unknown_kinds,
    takes,
)
from trainer.config.methods import METHODS
from trainer.config.nested import NOT_GIVEN, get, put
from trainer.config.preference import complete_preference
from trainer.config.rules import UNPACKABLE, broken_rules
from trainer.config.scalars import SWITCHES, plain_value
from trainer.config.schema import StartConfig, TrainConfig
from trainer.config.yaml_text import ITEM, read_mapping, read_value, write
from trainer.errors import ConfigError, Refusals
from trainer.recipes import RECIPES

_KINDS = ("method", "preference", "task")  # sections whose keys depend on their type
_WITHOUT_MODULES = ("full", "freeze")  # methods that train weights as they are
_KIND_KEYS = {f"{kind}.type" for kind in _KINDS}
_SHOWN = 60  # characters of a value that is refused
_log = logging.getLogger(__name__)
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


@dataclass(frozen=True)
class _Setting:
    """``key`` is ours, dotted or flat; ``name`` is what was written."""

    key: str
    value: Any
    name: str
    alias: Alias | None = None


def apply_layer(raw: dict[str, Any], entries: Iterable[tuple[str, Any]], refusals: Refusals) -> None:
    """Put ``entries`` (name and value) into the nested ``raw``; ``refusals`` gathers what cannot be, as written."""
    settings: list[_Setting] = []
    for name, value in entries:
        with refusals.gathered():
            settings += _settings(name, value)
    given: dict[str, _Setting] = {}
    for setting in settings:
        if setting.key in _KIND_KEYS:
            with refusals.gathered():
                _note(given, setting.key, setting)
                _choose(raw, setting.key.partition(".")[0], setting.value)
    settings = _for_method(raw, settings, refusals)
    for setting in settings:
        if setting.key not in _KIND_KEYS:
            with refusals.gathered():
                _set(raw, setting, given)
    for setting in settings:
        for key, value in (setting.alias.with_it if setting.alias else {}).items():
            if get(raw, key) is NOT_GIVEN and _has(raw, key):
                put(raw, key, Implied(value) if isinstance(value, str) else value)


def _has(raw: Mapping[str, Any], key: str) -> bool:
    """Whether the method in ``raw`` has ``key``, where it is one of a method's."""
    try:
        return not key.startswith("method.") or full_key(key, raw) == key
    except ConfigError:
        return False


def _set(raw: dict[str, Any], setting: _Setting, given: dict[str, _Setting]) -> None:
    try:
        key = setting.key if setting.key.startswith(f"{ELSEWHERE}.") else full_key(setting.key, raw)
    except ConfigError:
        if get(raw, "method.type") in (NOT_GIVEN, *METHODS):
            raise
        check_somewhere_known(setting.key)  # of the method that was meant, whose name is refused
        return
    _note(given, key, setting)
    put(raw, key, setting.value)


def meaning_of(name: str) -> str:
    """Our key for ``name`` where another tool's, or a section's, means it word for word; otherwise ``name``."""
    if name == "data":
        return "data.path"
    if name == "template":
        return "data.template"
    alias = _alias_of(name)
    return alias.ours if alias and alias.conversion in (AS_IS, TEMPLATE) else name


def is_switch_name(name: str) -> bool:
    """Whether ``name``, ours or another tool's, needs no value as a flag."""
    alias = _alias_of(name)
    return alias.is_switch if alias else is_switch(name)


def is_text_name(name: str) -> bool:
    """Whether ``name``, ours or another tool's, takes one text and no list."""
    ours = meaning_of(name)
    return takes(ours, str) and not takes(ours, list)


def unknown_name(name: str) -> str:
    """What is wrong with ``name`` as a key, if no method and no other trainer knows it."""
    try:
        if _alias_of(name) is None:
            check_somewhere_known(name)
    except ConfigError as error:
        return str(error)
    return ""


def _alias_of(name: str) -> Alias | None:
    return ALIASES.get(name if _is_known(name) else name.rsplit(".", 1)[-1])


def _settings(name: str, value: Any) -> Iterator[_Setting]:
    """What ``name: value`` sets: the keys of a whole section, those that an alias means, or one."""
    if name in ("task", "task.type") and isinstance(value, str):
        value = value.replace("_", "-")  # token_classification, as methods are spelled
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
        ours = key.removeprefix(f"{ELSEWHERE}.")
        raise ConfigError(
            f"{other.name} says {ours}: {other.value}, but {setting.name} says {setting.value}; give one of them"
        )
    given[key] = setting


def _choose(raw: dict[str, Any], section: str, kind: Any) -> None:
    """Set the type of ``section``; settings that were for another type are left behind."""
    current = raw.get(section)
    if not isinstance(current, dict) or current.get("type", kind) != kind:
        current = {}
    raw[section] = {"type": kind, **current}


def _for_method(raw: dict[str, Any], settings: Sequence[_Setting], refusals: Refusals) -> list[_Setting]:
    """``settings`` but for those of another method than the one chosen; a name's own where none is.

    Other trainers have the settings of every method side by side, and look at those of one. Where the method is chosen
    by a name of theirs, or has no such settings at all, the others are left out and said; else they contradict it.
    """
    theirs = any(setting.key == "method.type" and setting.alias for setting in settings)
    kept = []
    for setting in settings:
        methods = setting.alias.methods if setting.alias else ()
        kind = get(raw, "method.type")
        if methods and kind is NOT_GIVEN:
            put(raw, "method.type", methods[0])
        if not methods or kind is NOT_GIVEN or kind in methods:
            kept.append(setting)
        elif theirs or kind in _WITHOUT_MODULES:
            _log.warning("%s has no effect: it is for the method %s, not for %s", setting.name, methods[0], kind)
        else:
            refusals.found.append(f"{setting.name} belongs to the method {methods[0]}, but the method is {kind}")
    return kept


ENV_PREFIX = "HOTSWAP_TRAIN_"


def load_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> TrainConfig:
    """The configuration in the YAML file ``path``, overridden by ``environ`` and then ``overrides``.

    ``defaults`` are values by section and key that stand where none of them says anything. ``processes`` train
    together.

    The learning rate is filled in and paths are made absolute, so that the result stands for itself.
    Raises ConfigError naming every key that is refused.
    """
    return load_run(path, overrides, environ, defaults=defaults, processes=processes)[0]


def load_run(
    path: Path | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> tuple[TrainConfig, StartConfig]:
    """As ``load_config``, and how this start of the run treats what its output holds."""
    raw: dict[str, Any] = copy.deepcopy(dict(defaults or {}))
    refusals = Refusals()
    apply_layer(raw, _read_yaml(path).items() if path else (), refusals)
    given = raw.pop(ELSEWHERE, {})
    refusals.found += remove_unknown_keys(raw)
    raw[ELSEWHERE] = given
    apply_layer(raw, _environment(os.environ if environ is None else environ), refusals)
    apply_layer(raw, _overrides(overrides, refusals), refusals)
    fill_in(raw, refusals, processes=processes, folder=path.parent if path else Path())
    refusals.found += [*remove_unknown_kinds(raw), *remove_unknown_keys(raw)]
    start = raw.pop(START, {})
    with refusals.gathered():
        begin = _converted(start, StartConfig, f"{START}.")
    with refusals.gathered():
        config = _complete(convert(raw))
    refusals.tell()
    return config, begin


def given_values(overrides: Sequence[str], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What ``environ`` and ``overrides`` say by themselves, by section and key. Raises ConfigError."""
    raw: dict[str, Any] = {}
    refusals = Refusals()
    apply_layer(raw, _environment(os.environ if environ is None else environ), refusals)
    apply_layer(raw, _overrides(overrides, refusals), refusals)
    refusals.tell()
    return raw


def convert(raw: Mapping[str, Any]) -> TrainConfig:
    """The configuration in ``raw``; every key must be known. Raises ConfigError."""
    refusals = Refusals()
    refusals.found += infinite_numbers(raw)
    with refusals.gathered():
        config = _converted(raw, TrainConfig)
        refusals.found += [] if refusals.found else broken_rules(config)
    refusals.tell()
    return config


def _converted(raw: Mapping[str, Any], kind: type[_Struct], prefix: str = "") -> _Struct:
    """``raw`` as a ``kind``. Raises ConfigError for all that does not fit: what was refused is set aside, to go on."""
    rest = copy.deepcopy(dict(raw))
    refused: list[str] = []
    aside: set[str] = set()
    while True:
        try:
            config = msgspec.convert(rest, kind)
        except msgspec.ValidationError as error:
            what, missing, key = _taken_apart(str(error))
            if not any(key == one or key.startswith(f"{one}.") for one in aside):
                refused.append(_plain_words(what, missing, prefix + key, raw))
            aside.add(key)
            if missing:
                put(rest, key, {} if is_section(prefix + key) else "-")
            elif not remove(rest, key):
                break
        else:
            break
    if refused:
        raise ConfigError(*refused)
    return config


def dump_config(config: TrainConfig) -> str:
    """``config`` as YAML that ``load_config`` reads back to the same."""
    return write(msgspec.to_builtins(config))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return read_mapping(path.read_text(encoding="utf-8"), _unquoted)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            yield key, _value(key, environ[name])


def _overrides(items: Iterable[str], refusals: Refusals) -> Iterator[tuple[str, Any]]:
    for item in items:
        key, equals, text = item.partition("=")
        if equals and key:
            key = key.removeprefix("--").replace("-", "_")
            yield key, _value(key, text)
        else:
            refusals.found.append(f"{item!r} is not key=value")


def _value(key: str, text: str) -> Any:
    """What ``text`` would be in a YAML file; for a ``key`` that takes text, itself, unless it is quoted or null."""
    try:
        value, quoted = read_value(key, text, _unquoted)
    except ConfigError:
        return text
    ours = meaning_of(key)
    is_list = isinstance(value, list) and takes(ours, list)
    is_other = is_list or isinstance(value, int | float) or (isinstance(value, dict) and is_section(key))
    free = takes(ours, str) and not (value is None and plain_value(text) is None)
    return text if free and not quoted and not is_other else value


def _unquoted(name: str, text: str) -> Any:
    """What the unquoted ``text`` is for ``name``: text where that takes text and no number."""
    bare = name.removesuffix(ITEM)
    ours = meaning_of(bare) + name[len(bare) :]
    alias = _alias_of(bare)
    if text.lower() in SWITCHES and is_switch_name(bare):
        return SWITCHES[text.lower()]
    value = plain_value(text)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):  # which an alias may know as a word: save_strategy: no
        return text if alias or takes(ours, str) or choices_of(ours) else value
    return text if (takes(ours, str) or choices_of(ours)) and not takes(ours, type(value)) else value


_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `\$\.?(.*)`)?")


def _taken_apart(message: str) -> tuple[str, bool, str]:
    """What msgspec's ``message`` says, whether it is that a key is missing, and the dotted key."""
    if found := _MISSING.fullmatch(message):
        return message, True, ".".join(filter(None, (found[2], found[1])))
    what, _, where = message.partition(" - at `$")
    return what.replace("`", ""), False, where.rstrip("`").partition("[")[0].removeprefix(".")


def _plain_words(what: str, missing: bool, key: str, raw: Mapping[str, Any]) -> str:
    """The key first: ``training.epochs: Expected float > 0.0``."""
    if missing:
        return f"the configuration lacks {key!r}"
    if what == "Expected array, got str":
        return f"{key}: write a list, such as [a, b]"
    choices = choices_of(key, raw)
    given = get(raw, key)
    shown = f" {given!r}" if isinstance(given, str) and what.endswith("got str") and len(given) < _SHOWN else ""
    return f"{key}: {what.replace(' | null', '')}{shown}" + (f"; choose from {', '.join(choices)}" if choices else "")


def _complete(config: TrainConfig) -> TrainConfig:
    training = config.training
    if training.learning_rate is None:
        scale = config.preference.LEARNING_RATE_SCALE if config.preference else 1.0
        training = msgspec.structs.replace(training, learning_rate=config.method.default_learning_rate * scale)
    if training.packing == "auto" and (config.preference or config.reading or config.method.KIND in UNPACKABLE):
        training = msgspec.structs.replace(training, packing=False)
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
        task=config.reading,
        added_tokens=_added_tokens(config),
        start_from=absolute(config.start_from) if config.start_from else None,
    )


def _added_tokens(config: TrainConfig) -> list[str]:
    """Those that are asked for, otherwise those that the rows of a recipe are written with.

    A preference run has those of what it starts from: its reference must know them. A task that reads has none.
    """
    if config.added_tokens is not None or config.preference or config.reading or config.data.recipe not in RECIPES:
        return config.added_tokens or []
    return list(RECIPES[config.data.recipe].added_tokens)
