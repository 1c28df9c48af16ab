"""Values of a configuration as plain data, nested by the dots of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

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
