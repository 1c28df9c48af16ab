"""Values of a configuration as plain data, nested by the dots of their keys, and what files of others say of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from trainer.errors import ConfigError

NOT_GIVEN = UNSET  # the value says nothing, as if the setting were absent


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted ``key``; NOT_GIVEN takes it away."""
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


def get(raw: Mapping[str, Any], key: str) -> Any:
    """The value of the dotted ``key``, NOT_GIVEN where there is none."""
    place: Any = raw
    for part in key.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return NOT_GIVEN
        place = place[part]
    return place


@dataclass(frozen=True)
class Proposal:
    """``value`` for our dotted ``key``, which holds unless the run says otherwise; ``said_by`` is whose it is.

    What is only ``derived`` from other values contradicts nothing.
    """

    key: str
    value: Any
    said_by: str
    derived: bool = False


def read_object(said: str, file: Path, wanted: str) -> dict[str, Any]:
    """The JSON object in ``file``, which is one ``wanted``. Raises ConfigError that begins with ``said``."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{said}: {file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{said}: {file} must be one {wanted}")
    return values
