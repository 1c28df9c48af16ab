"""Names of settings in other trainers, what they are here, and how their values become ours.

Reads the tables beside it, ``aliases.toml`` and ``no_counterpart.toml``, which explain themselves; reads no other files
and no flags. A conversion raises ValueError, saying what to do instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, TypeVar

import msgspec

from trainer.config.nested import NOT_GIVEN
from trainer.config.scalars import SWITCHES

ELSEWHERE = "elsewhere"  # the section of values that trainer.config.elsewhere reads together


class Several(dict[str, Any]):
    """A value that means several of our keys."""


class PerProcess(int):
    """Rows in a batch of each of the processes that train together."""


@dataclass(frozen=True)
class Conversion:
    """``apply`` makes our value of a given one; ``words`` tell it in the documentation."""

    apply: Callable[[Any], Any]
    words: str = ""


@dataclass(frozen=True)
class Alias:
    """One name of ``tools`` for our key ``ours`` (empty where there is no counterpart).

    ``methods`` are the training methods that the name belongs to, the first chosen by it where none is named.
    ``with_it`` are values of other keys that hold unless they are given. A switch needs no value as a flag.
    """

    name: str
    tools: str
    ours: str
    conversion: Conversion
    methods: tuple[str, ...] = ()
    with_it: Mapping[str, Any] = field(default_factory=dict)
    is_switch: bool = False


def _choice(values: Mapping[str, Any], words: str | None = None) -> Conversion:
    """One of the spellings in ``values``; numbers and booleans are compared as they are written in YAML."""

    def apply(value: Any) -> Any:
        text = _spelled(value, values)
        if text not in values:
            raise ValueError(f"{text!r} has no counterpart here; known are {', '.join(values)}")
        return values[text]

    given = [(theirs, ours) for theirs, ours in values.items() if ours is not NOT_GIVEN]
    said = (
        theirs if ours == theirs or isinstance(ours, Several) else f"{theirs}: {_text(ours)}" for theirs, ours in given
    )
    return Conversion(apply, ", ".join(said) if words is None else words)


def _only(accepted: Sequence[str], instead: str) -> Conversion:
    """Values in ``accepted`` are what happens anyway; all others are refused with ``instead``."""

    def apply(value: Any) -> Any:
        if _spelled(value, accepted) not in accepted:
            raise ValueError(instead)
        return NOT_GIVEN

    return Conversion(apply, f"{' or '.join(accepted)}; else refused: {instead}" if accepted else f"refused: {instead}")


def _names(value: Any) -> Any:
    if value in ("all", "all-linear"):
        return "all-linear"
    return _list(value) if isinstance(value, str) and re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)*", value) else value


def _list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _module_paths(value: Any) -> Any:
    return [name.strip(".") for name in _list(value)]


def _file(value: Any) -> Any:
    is_switch = str(value).lower() in SWITCHES  # beside another name, which has the file
    return Several() if is_switch else value


def _per_process(value: Any) -> Any:
    return PerProcess(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _per_epoch(value: Any) -> Any:
    if value == 0:
        return "no"
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return "epoch" if value == 1 else f"epoch/{value}"


def _trackers(value: Any) -> Any:
    names = _list(value)
    if names in (["none"], []):
        return NOT_GIVEN
    if not isinstance(names, list) or "all" in names:
        raise ValueError("name the trackers: none, tensorboard, or those that transformers knows, such as wandb")
    ours: dict[str, Any] = {"training.tensorboard": True} if "tensorboard" in names else {}
    others = [name for name in names if name != "tensorboard"]
    return Several({**ours, **({"training.trackers": others} if others else {})})


def _count(value: Any) -> Any:
    return NOT_GIVEN if value in (0, -1) else value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _spelled(value: Any, known: Container[str]) -> str:
    """``value`` as one of the ``known`` texts where it is one: no, off and 0 are false, unless they are known."""
    text = _text(value)
    return text if text in known else _text(SWITCHES.get(text.lower(), text))


AS_IS = Conversion(lambda value: value)
TEMPLATE = Conversion(
    lambda value: "chat" if str(value).startswith("tokenizer_default") else value, "tokenizer_default: chat"
)
_CONVERSIONS = {
    "names": Conversion(_names, "names with commas become a list; all: all-linear"),
    "list": Conversion(_list, "names with commas become a list"),
    "module_paths": Conversion(_module_paths, "layers.27.,layers.26.: [layers.27, layers.26]"),
    "file": Conversion(_file),
    "per_process": Conversion(_per_process, "times the number of processes"),
    "per_epoch": Conversion(_per_epoch, "4: epoch/4; 0: no"),
    "count": Conversion(_count, "0 and -1: not given"),
    "template": TEMPLATE,
    "trackers": Conversion(_trackers, "none; tensorboard: training.tensorboard; others as they are"),
    "adapter": _choice(
        {"lora": "lora", "qlora": Several({"method": "lora", "training.quantize": "nf4"})},
        "qlora: lora on an nf4 base",
    ),
}
_Choice = dict[str, str | bool | int | dict[str, str]]


class _Name(msgspec.Struct, forbid_unknown_fields=True, rename={"with_it": "with"}):
    tools: list[str]
    ours: str
    how: str | None = None
    choice: list[str | _Choice] = []
    when_true: str | None = None
    says: str = ""
    method: str | list[str] = []
    with_it: dict[str, Any] = {}
    switch: bool = False


class _Unsupported(msgspec.Struct, forbid_unknown_fields=True):
    tools: list[str]
    instead: str
    accepted: list[str] = []
    switch: bool = False


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    same_names: tuple[str, ...]
    groups: dict[str, list[str]]
    choices: dict[str, _Choice]
    names: dict[str, _Name]

    def aliases(self) -> Iterator[Alias]:
        """Every name of the table."""
        for name, one in self.names.items():
            conversion = self._conversion(one)
            if one.says:
                conversion = replace(conversion, words=one.says)
            methods = (one.method,) if isinstance(one.method, str) else tuple(one.method)
            yield Alias(name, _tools(one.tools, self.groups), one.ours, conversion, methods, one.with_it, one.switch)

    def _conversion(self, name: _Name) -> Conversion:
        if name.how:
            return _CONVERSIONS[name.how]
        if name.when_true:
            return _choice({"true": name.when_true, "false": NOT_GIVEN}, f"true: {name.when_true}")
        if not name.choice:
            return AS_IS
        parts = (self.choices[part] if isinstance(part, str) else part for part in name.choice)
        return _choice({theirs: _meant(ours) for part in parts for theirs, ours in part.items()})


class _NoCounterpart(msgspec.Struct, forbid_unknown_fields=True):
    no_effect_switches: list[str]
    groups: dict[str, list[str]]
    no_effect: dict[str, list[str]]
    unsupported: dict[str, _Unsupported]

    def aliases(self) -> Iterator[Alias]:
        """Every name of the table."""
        for why, names in self.no_effect.items():
            conversion = Conversion(lambda _: NOT_GIVEN, f"no effect: {why}")
            for name in names:
                yield Alias(name, "several", "", conversion, is_switch=name in self.no_effect_switches)
        for name, option in self.unsupported.items():
            conversion = _only(option.accepted, option.instead)
            yield Alias(name, _tools(option.tools, self.groups), "", conversion, is_switch=option.switch)


def _tools(tools: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(tool for name in tools for tool in groups.get(name, [name]))


def _meant(ours: str | bool | int | dict[str, str]) -> Any:
    return NOT_GIVEN if ours == "" else Several(ours) if isinstance(ours, dict) else ours


def _read(name: str, table: type[_AnyTable]) -> _AnyTable:
    return msgspec.toml.decode((files(__package__) / name).read_bytes(), type=table)


_AnyTable = TypeVar("_AnyTable", _Table, _NoCounterpart)
_NAMES = _read("aliases.toml", _Table)
SAME_NAMES = _NAMES.same_names  # names of other tools that are ours too, and mean the same
ALIASES: dict[str, Alias] = {
    alias.name: alias for alias in (*_NAMES.aliases(), *_read("no_counterpart.toml", _NoCounterpart).aliases())
}
