"""The runs of a sweep, from settings with several values: ``learning_rate=1e-4,5e-4``. Knows nothing of training."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trainer.errors import ConfigError

_LONGEST_NAME = 100


@dataclass(frozen=True)
class Trial:
    """One run: the values that are its own, as ``key=value``, and a name made of them for its directory."""

    name: str
    values: dict[str, str]

    @property
    def overrides(self) -> list[str]:
        """The values as settings."""
        return [f"{key}={value}" for key, value in self.values.items()]


def trials_of(
    settings: Sequence[str],
    draw: int | None = None,
    seed: int = 0,
    *,
    is_prose: Callable[[str], bool] = lambda _: False,
) -> tuple[list[str], list[Trial]]:
    """The settings that all runs share, and every combination of the values of the others; ``draw`` takes so many.

    Commas inside brackets or quotes separate nothing, nor any in a key that ``is_prose`` unless its first value is
    quoted. Raises ConfigError when nothing varies.
    """
    fixed: list[str] = []
    varied: dict[str, list[str]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        values = [text] if is_prose(key) and not text.startswith(("'", '"')) else split_values(text)
        values = list(dict.fromkeys(values))
        if equals and len(values) > 1:
            varied[key] = values
        else:
            fixed.append(setting)
    if not varied:
        raise ConfigError("a sweep needs a setting with several values, such as learning_rate=1e-4,5e-4")
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    if draw is not None and draw < len(combinations):
        chosen = sorted(random.Random(seed).sample(range(len(combinations)), draw))
        combinations = [combinations[at] for at in chosen]
    return fixed, [Trial(_name(values), values) for values in combinations]


def split_values(text: str) -> list[str]:
    """``text`` at its commas, but for those in brackets or quotes: ``[q,v],[q]`` are two values."""
    return [part.strip() for part in _parts(text) if part.strip()]


def _parts(text: str) -> Iterator[str]:
    depth, quote, begin = 0, "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            yield text[begin:at]
            begin = at + 1
    yield text[begin:]


def _name(values: dict[str, str]) -> str:
    """Short keys and values, safe in a path: ``learning_rate-1e-4_r-8``."""
    full = "_".join(f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in values.items())
    name = re.sub(r"[^\w.+-]+", "-", full)
    if name == full and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
