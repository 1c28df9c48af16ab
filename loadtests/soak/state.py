"""What a server says of one name: which versions there are, which is live, which share its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import aiohttp

from loadtests.soak.server import Server


@dataclass(frozen=True)
class State:
    """What operators have decided of a name; ``live`` None: it is not served."""

    live: int | None = None
    versions: frozenset[int] = frozenset()
    canaries: frozenset[int] = frozenset()

    @classmethod
    def of(cls, body: dict[str, Any]) -> State:
        """What an answer about the name says."""
        versions = frozenset(version["version"] for version in body["versions"])
        canaries = frozenset(canary["version"] for canary in (body["traffic"] or {}).get("canaries", ()))
        return cls(body["version"], versions, canaries)

    @property
    def answering(self) -> frozenset[int]:
        """The versions that may answer a request to the name."""
        return self.canaries if self.live is None else self.canaries | {self.live}

    @property
    def idle(self) -> list[int]:
        """Versions that are kept and do not answer."""
        return sorted(self.versions - self.answering)

    def __str__(self) -> str:
        canaries = f", canaries {sorted(self.canaries)}" if self.canaries else ""
        return f"live {self.live} of {sorted(self.versions)}{canaries}" if self.versions else "no versions"


ABSENT = State()


async def send(server: Server, method: str, path: str, **request: Any) -> tuple[int, Any]:
    """Status and body of an answer; 0 and what went wrong where there is none."""
    try:
        async with server.session.request(method, path, **request) as response:
            return response.status, await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return 0, f"{type(error).__name__}: {error}"


def code_of(status: int, body: Any) -> str | None:
    """The code of an error, else the status; None where nothing was answered."""
    if not status:
        return None
    return (body.get("error") or {}).get("code") or str(status)


async def look(server: Server, name: str) -> State | None:
    """What a server holds for true of ``name``; None where it does not answer."""
    return _state(*await send(server, "GET", f"/v1/adapters/{name}"))


async def look_into_catalog(server: Server, name: str) -> State | None:
    """What the catalog says of ``name``, by way of a server that is asked to change what is so already."""
    return _state(*await send(server, "PATCH", f"/v1/adapters/{name}", json={"priority": 0}))


def _state(status: int, body: Any) -> State | None:
    if status == 404:
        return ABSENT
    return State.of(body) if status == 200 else None
