"""Names of settings in other trainers, what they are here, and how their values become ours.

Reads the table beside it, ``aliases.toml``, which explains itself; reads no other files and no flags. A conversion
raises ValueError, saying what to do instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from trainer.config.scalars import SWITCHES

NOT_GIVEN = UNSET  # the value says nothing, as if the setting were absent


class Several(dict[str, Any]):
    """A value that means several of our keys."""


@dataclass(frozen=True)
class Conversion:
    """``apply`` makes our value of a given one; ``words`` tell it in the documentation."""

    apply: Callable[[Any], Any]
    words: str = ""


@dataclass(frozen=True)
class Alias:
    """One name of ``tools`` for our key ``ours`` (empty where there is no counterpart).

    ``method`` is the training method that the name belongs to, chosen by it where none is named. ``with_it`` are values
    of other keys that hold unless they are given. A switch needs no value as a flag.
    """

    name: str
    tools: str
    ours: str
    conversion: Conversion
    method: str | None = None
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
    said = (theirs if theirs == ours else f"{theirs}: {_text(ours)}" for theirs, ours in given)
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


def _layer_paths(value: Any) -> Any:
    return [f"model.{name.strip('.').removeprefix('model.')}" for name in _list(value)]


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
TEMPLATE = Conversion(lambda value: "chat" if value == "tokenizer_default" else value, "tokenizer_default: chat")
_CONVERSIONS = {
    "names": Conversion(_names, "names with commas become a list; all: all-linear"),
    "list": Conversion(_list, "names with commas become a list"),
    "layer_paths": Conversion(_layer_paths, "layers.27.,layers.26.: [model.layers.27, model.layers.26]"),
    "count": Conversion(_count, "0 and -1: not given"),
    "template": TEMPLATE,
    "trackers": Conversion(_trackers, "none; tensorboard: training.tensorboard; others as they are"),
    "adapter": _choice(
        {"lora": "lora", "qlora": Several({"method": "lora", "training.quantize": "nf4"})},
        "qlora: lora on an nf4 base",
    ),
}
_Choice = dict[str, str | bool | int]


class _Name(msgspec.Struct, forbid_unknown_fields=True, rename={"with_it": "with"}):
    tools: list[str]
    ours: str
    how: Literal["names", "list", "layer_paths", "count", "template", "trackers", "adapter"] | None = None
    choice: list[str | _Choice] = []
    when_true: str | None = None
    method: str | None = None
    with_it: dict[str, Any] = {}
    switch: bool = False


class _Unsupported(msgspec.Struct, forbid_unknown_fields=True):
    tools: list[str]
    instead: str
    accepted: list[str] = []
    switch: bool = False


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    same_names: tuple[str, ...]
    no_effect_switches: list[str]
    groups: dict[str, list[str]]
    choices: dict[str, _Choice]
    names: dict[str, _Name]
    no_effect: dict[str, str]
    unsupported: dict[str, _Unsupported]

    def aliases(self) -> Iterator[Alias]:
        """Every name of the table."""
        for name, one in self.names.items():
            conversion = self._conversion(one)
            yield Alias(name, self._tools(one.tools), one.ours, conversion, one.method, one.with_it, one.switch)
        for name, why in self.no_effect.items():
            conversion = Conversion(lambda _: NOT_GIVEN, f"no effect: {why}")
            yield Alias(name, "several", "", conversion, is_switch=name in self.no_effect_switches)
        for name, option in self.unsupported.items():
            conversion = _only(option.accepted, option.instead)
            yield Alias(name, self._tools(option.tools), "", conversion, is_switch=option.switch)

    def _tools(self, tools: Sequence[str]) -> str:
        return ", ".join(tool for name in tools for tool in self.groups.get(name, [name]))

    def _conversion(self, name: _Name) -> Conversion:
        if name.how:
            return _CONVERSIONS[name.how]
        if name.when_true:
            return _choice({"true": name.when_true, "false": NOT_GIVEN}, f"true: {name.when_true}")
        if not name.choice:
            return AS_IS
        parts = (self.choices[part] if isinstance(part, str) else part for part in name.choice)
        values = {theirs: NOT_GIVEN if ours == "" else ours for part in parts for theirs, ours in part.items()}
        return _choice(values)


_TABLE = msgspec.toml.decode((files(__package__) / "aliases.toml").read_bytes(), type=_Table)
SAME_NAMES = _TABLE.same_names  # names of other tools that are ours too, and mean the same
ALIASES: dict[str, Alias] = {alias.name: alias for alias in _TABLE.aliases()}
