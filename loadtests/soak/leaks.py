"""What must be as before once everybody has left: sequences, leases, admission, KV blocks, memory, files, rows, ..."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loadtests.soak.asking import ask
from loadtests.soak.clients import DeafReaders, settle
from loadtests.soak.database import Database
from loadtests.soak.server import Server
from loadtests.soak.site import Site

SETTLE_SECONDS = 60.0  # twice as long as servers wait before they end what one that is gone has begun
MOST_WORK_SECONDS = 600.0  # for the engine to compute what the deaf asked for
SPARE_DESCRIPTORS = 8  # a thread pool and a library may keep some that they open late
T = TypeVar("T")


@dataclass(frozen=True)
class Holdings:
    """What a server holds while it is idle."""

    sequences: float
    adapters: float
    kv_usage: float
    descriptors: int
    megabytes: float
    engine_megabytes: float

    @classmethod
    async def of(cls, site: Site, server: Server) -> Holdings:
        """Read everything, once the adapters that stay are the last that were asked, and the engine's figures of now.

        Those that are in memory then are the same ones each time; a prefix among them holds KV blocks.
        """
        for name, package in site.fixed.items():
            await settle(site, server, name, package.answers[0])
        await settle(site, server, site.base, site.references.answers[0])
        async with server.session.get("/metrics") as response:
            text = await response.text()
        return cls(
            sequences=_value(text, "hotswap_requests_running") + _value(text, "hotswap_requests_waiting"),
            adapters=_value(text, "hotswap_adapters_resident"),
            kv_usage=_value(text, "hotswap_kv_cache_usage_ratio"),
            descriptors=server.descriptors,
            megabytes=server.megabytes,
            engine_megabytes=server.engine_megabytes,
        )


@dataclass(frozen=True)
class Kept:
    """What all servers keep together: folders of packages, files of half done uploads, rows of the catalog."""

    packages: int
    half_done: int
    rows: dict[str, int]

    @classmethod
    async def of(cls, data_dir: Path, database: Database) -> Kept:
        """Count everything."""
        half_done = list((data_dir / "quarantine").glob("*/*"))
        rows = await database.rows()
        return cls(sum(1 for _ in (data_dir / "packages").iterdir()), len(half_done), rows._asdict())


@dataclass(frozen=True)
class Limits:
    """What a server may hold: ``sequences`` admitted at once, and more memory than before."""

    sequences: int
    growth_mb: float


async def _sequences(site: Site) -> float:
    texts = []
    for server in site.servers:
        async with server.session.get("/metrics") as response:
            texts.append(await response.text())
    names = ("hotswap_requests_running", "hotswap_requests_waiting")
    return sum(_value(text, name) for text in texts for name in names)


def _value(text: str, name: str) -> float:
    found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else float("nan")


async def versions_held(site: Site) -> list[str]:
    """Versions that requests still run on."""
    held = []
    for server in site.servers:
        async with server.session.get("/v1/adapters") as response:
            names = (await response.json())["data"]
        held += [f"{v['id']} at {server.name}" for name in names for v in name["versions"] if v["running"]]
    return held


async def find_leaks(site: Site, server: Server, before: Holdings, *, most: Limits) -> Holdings:
    """Write into the ledger what did not come back to a server."""
    leaked = site.ledger.leaked
    after = await until(
        lambda: Holdings.of(site, server),
        lambda now: (
            (now.sequences, now.adapters, now.kv_usage) == (0, before.adapters, before.kv_usage)
            and now.descriptors <= before.descriptors + SPARE_DESCRIPTORS
        ),
    )
    allowed = {"sequences": 0.0, "adapters": 0.0, "kv_usage": 0.0,
               "descriptors": SPARE_DESCRIPTORS, "megabytes": most.growth_mb}  # fmt: skip
    for name, more in allowed.items():
        was, now = getattr(before, name), getattr(after, name)
        if not now <= was + more:
            leaked.append(f"{name} of {server.name}: {was:g} before, {now:g} after")
    if problem := await refusal(site, server, most.sequences):
        leaked.append(f"{server.name}: {most.sequences} sequences are not admitted though nothing runs: {problem}")
    return after


async def find_kept(site: Site, before: Kept, data_dir: Path, database: Database) -> Kept:
    """Write into the ledger which leases, files and rows did not go."""
    if held := await until(lambda: versions_held(site), lambda held: not held):
        site.ledger.leaked.append(f"leases: {', '.join(held)} still have running requests though nobody asks")
    after = await until(lambda: Kept.of(data_dir, database), lambda now: now == before)
    if after != before:
        site.ledger.leaked.append(f"{before} before, {after} after")
    return after


async def find_held_by_the_deaf(site: Site, deaf: DeafReaders, seconds: float, *, sequences: int) -> None:
    """Write into the ledger what those who never read hold for longer than so many seconds after the engine's work."""
    deaf.hang_up()
    await deaf.call()
    await until(lambda: _sequences(site), lambda count: count > 0)
    await until(lambda: _sequences(site), lambda count: count == 0, MOST_WORK_SECONDS)
    held = await until(lambda: versions_held(site), lambda held: not held, seconds)

    async def refused() -> str:
        return "".join([await refusal(site, server, sequences) for server in site.servers])

    problem = await until(refused, lambda problem: not problem, seconds)
    if held or problem:
        site.ledger.leaked.append(f"readers that never read hold {', '.join(held) or 'no lease'}; admission: {problem}")


async def refusal(site: Site, server: Server, sequences: int) -> str:
    """Why a server does not take as many sequences as it can when it is idle; empty when it does."""
    return (await ask(server.session, {"model": site.base, "prompt": "x", "max_tokens": 1, "n": sequences})).problem


async def until(look: Callable[[], Awaitable[T]], good: Callable[[T], bool], seconds: float = SETTLE_SECONDS) -> T:
    """What ``look`` gives once it is good, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = await look()
        if good(found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.1)
