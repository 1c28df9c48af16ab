"""Which exact version of which adapter, or of which several: what requests, engine and model call it by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import msgspec

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")  # one way to write each: 01, +1 and the digits of other scripts are none
PLUS = "+"  # between the members of a combination; no name has it


def version_number(text: str) -> int | None:
    """The version that ``text`` is the number of, if it is one."""
    return int(text) if _NUMBER.fullmatch(text) else None


class AdapterKey(msgspec.Struct, frozen=True, array_like=True):
    """One immutable version of one adapter, or a combination of the versions ``members``. See ``combined``.

    ``digest`` is the hex SHA-256 of its content: of a combination, of its members' digests and weights in their order.
    """

    name: str
    version: int
    digest: str
    members: tuple[Weighted, ...] = ()

    @property
    def versions(self) -> tuple[AdapterKey, ...]:
        """Itself, or the versions that are combined, each once."""
        return tuple(dict.fromkeys(member.key for member in self.members)) if self.members else (self,)

    def __str__(self) -> str:
        return PLUS.join(map(str, self.members)) if self.members else f"{self.name}@{self.version}"


def order_of(key: AdapterKey | None) -> tuple[str, int, str]:
    """What rows are sorted by, so that those of one adapter stand together. A step asks for each of them."""
    return ("", 0, "") if key is None else (key.name, key.version, key.digest)


class Weighted(msgspec.Struct, frozen=True, array_like=True):
    """A member of a combination: what it adds counts ``weight`` times."""

    key: AdapterKey
    weight: float = 1.0

    def __str__(self) -> str:
        return str(self.key) if self.weight == 1 else f"{self.key}:{written_weight(self.weight)}"


def written_weight(weight: float) -> str:
    """A weight as short as says all of it."""
    short = f"{weight:g}"
    return (short if float(short) == weight else repr(weight)).replace("e+", "e")


def combined(members: Sequence[Weighted]) -> AdapterKey:
    """The key of ``members`` together: of a lone one of weight 1 its own."""
    if len(members) == 1 and members[0].weight == 1:
        return members[0].key
    content = "\n".join(f"{member.key.digest} {member.weight!r}" for member in members)
    digest = hashlib.sha256(f"combination\n{content}".encode()).hexdigest()
    return AdapterKey(PLUS.join(member.key.name for member in members), 0, digest, tuple(members))
