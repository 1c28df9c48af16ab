"""How values of other trainers' settings become ours. A conversion raises ValueError, saying what to do instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

NOT_GIVEN = UNSET  # the value says nothing, as if the setting were absent


class Several(dict[str, Any]):
    """A value that means several of our keys."""


@dataclass(frozen=True)
class Conversion:
    """``apply`` makes our value of a given one; ``words`` tell it in the documentation."""

    apply: Callable[[Any], Any]
    words: str = ""


def choice(values: Mapping[str, Any], words: str | None = None) -> Conversion:
    """One of the spellings in ``values``; numbers and booleans are compared as they are written in YAML."""

    def apply(value: Any) -> Any:
        text = _text(value)
        if text not in values:
            raise ValueError(f"{text!r} has no counterpart here; known are {', '.join(values)}")
        return values[text]

    given = [(theirs, ours) for theirs, ours in values.items() if ours is not NOT_GIVEN]
    said = (theirs if theirs == ours else f"{theirs}: {_text(ours)}" for theirs, ours in given)
    return Conversion(apply, ", ".join(said) if words is None else words)


def when_true(ours: Any) -> Conversion:
    """True means ``ours``, false nothing."""
    words = f"true: {ours}"
    return choice({"true": ours, "false": NOT_GIVEN}, words)


def only(accepted: Sequence[str], instead: str) -> Conversion:
    """Values in ``accepted`` are what happens anyway; all others are refused with ``instead``."""

    def apply(value: Any) -> Any:
        if _text(value) not in accepted:
            raise ValueError(instead)
        return NOT_GIVEN

    return Conversion(apply, f"{' or '.join(accepted)}; else refused: {instead}" if accepted else f"refused: {instead}")


def without_effect(why: str) -> Conversion:
    """Accepted, and nothing changes."""
    return Conversion(lambda _: NOT_GIVEN, f"no effect: {why}")


def _names(value: Any) -> Any:
    if value in ("all", "all-linear"):
        return "all-linear"
    return _list(value) if isinstance(value, str) and re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)*", value) else value


def _list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _layer_paths(value: Any) -> Any:
    return [f"model.{name.strip('.').removeprefix('model.')}" for name in _list(value)]


def _count(value: Any) -> Any:
    return NOT_GIVEN if value in (0, -1) else value


AS_IS = Conversion(lambda value: value)
NAMES = Conversion(_names, "names with commas become a list; all: all-linear")
LIST = Conversion(_list, "names with commas become a list")
LAYER_PATHS = Conversion(_layer_paths, "layers.27.,layers.26.: [model.layers.27, model.layers.26]")
COUNT = Conversion(_count, "0 and -1: not given")
TEMPLATE = Conversion(lambda value: "chat" if value == "tokenizer_default" else value, "tokenizer_default: chat")
ADAPTER = choice(
    {"lora": "lora", "qlora": Several({"method": "lora", "training.quantize": "nf4"})}, "qlora: lora on an nf4 base"
)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
