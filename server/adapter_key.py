"""Which exact version of which adapter: what requests, engine and model call it by."""

from __future__ import annotations

import msgspec


class AdapterKey(msgspec.Struct, frozen=True, array_like=True):
    """One immutable version of one adapter. ``digest`` is the hex SHA-256 of its content."""

    name: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"
