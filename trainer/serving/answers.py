"""Reading a server's answers, without what it takes to ask for them: commands that print help import this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def listed(body: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """The objects in the list ``field`` of an answer."""
    found = body.get(field)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
