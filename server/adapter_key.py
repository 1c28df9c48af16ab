"""Which exact version of which adapter: what requests, engine and model call it by."""

from __future__ import annotations

import re

import msgspec

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")  # one way to write each: 01, +1 and the digits of other scripts are none


def version_number(text: str) -> int | None:
    """The version that ``text`` is the number of, if it is one."""
    return int(text) if _NUMBER.fullmatch(text) else None


class AdapterKey(msgspec.Struct, frozen=True, array_like=True):
    """One immutable version of one adapter. ``digest`` is the hex SHA-256 of its content."""

    name: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"
