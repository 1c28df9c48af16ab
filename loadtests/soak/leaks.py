"""What must be as before once everybody has left: sequences, leases, admission, KV blocks, memory, files, ..."""

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
from loadtests.soak.site import Site

SETTLE_SECONDS = 60.0
MOST_WORK_SECONDS = 600.0  # for the engine to compute what the deaf asked for
SPARE_DESCRIPTORS = 8  # a thread pool and a library may keep some that they open late
T = TypeVar("T")


@dataclass(frozen=True)
class Holdings:
    """What a server holds while it is idle."""

    sequences: float
    adapters: float
    kv_usage: float
    files: int
    descriptors: int
    megabytes: float
    engine_megabytes: float

    @classmethod
    async def of(cls, site: Site, data_dir: Path) -> Holdings:
        """Read everything; a request goes before, so that the engine's figures are of now."""
        await settle(site, site.base, site.references.answers[0])
        async with site.session.get("/metrics") as response:
            text = await response.text()
        return cls(
            sequences=_value(text, "hotswap_requests_running") + _value(text, "hotswap_requests_waiting"),
            adapters=_value(text, "hotswap_adapters_resident"),
            kv_usage=_value(text, "hotswap_kv_cache_usage_ratio"),
            files=sum(path.is_file() for path in data_dir.rglob("*")),
            descriptors=site.server.descriptors,
            megabytes=site.server.megabytes,
            engine_megabytes=site.server.engine_megabytes,
        )


async def _sequences(site: Site) -> float:
    async with site.session.get("/metrics") as response:
        text = await response.text()
    return _value(text, "hotswap_requests_running") + _value(text, "hotswap_requests_waiting")


def _value(text: str, name: str) -> float:
    found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else float("nan")


async def versions_held(site: Site) -> list[str]:
    """Versions that requests still run on."""
    async with site.session.get("/v1/adapters") as response:
        names = (await response.json())["data"]
    return [version["id"] for name in names for version in name["versions"] if version["running"]]


async def find_leaks(site: Site, before: Holdings, data_dir: Path, *, sequences: int, growth_mb: float) -> Holdings:
    """Write into the ledger what did not come back; ``sequences`` is how many the server admits at once."""
    leaked = site.ledger.leaked
    if held := await until(lambda: versions_held(site), lambda held: not held):
        leaked.append(f"leases: {', '.join(held)} still have running requests though nobody asks")
    after = await until(
        lambda: Holdings.of(site, data_dir),
        lambda now: (
            (now.sequences, now.adapters, now.kv_usage, now.files)
            == (0, before.adapters, before.kv_usage, before.files)
            and now.descriptors <= before.descriptors + SPARE_DESCRIPTORS
        ),
    )
    for name, allowed in (("sequences", 0.0), ("adapters", 0.0), ("kv_usage", 0.0), ("files", 0.0),
                          ("descriptors", SPARE_DESCRIPTORS), ("megabytes", growth_mb)):  # fmt: skip
        was, now = getattr(before, name), getattr(after, name)
        if not now <= was + allowed:
            leaked.append(f"{name}: {was:g} before, {now:g} after")
    if problem := await refusal(site, sequences):
        leaked.append(f"admission: {sequences} sequences are not admitted though nothing runs: {problem}")
    return after


async def find_held_by_the_deaf(site: Site, deaf: DeafReaders, seconds: float, *, sequences: int) -> None:
    """Write into the ledger what those who never read hold for longer than so many seconds after the engine's work."""
    deaf.hang_up()
    await deaf.call()
    await until(lambda: _sequences(site), lambda count: count > 0)
    await until(lambda: _sequences(site), lambda count: count == 0, MOST_WORK_SECONDS)
    held = await until(lambda: versions_held(site), lambda held: not held, seconds)
    problem = await until(lambda: refusal(site, sequences), lambda problem: not problem, seconds)
    if held or problem:
        site.ledger.leaked.append(f"readers that never read hold {', '.join(held) or 'no lease'}; admission: {problem}")


async def refusal(site: Site, sequences: int) -> str:
    """Why the server does not take as many sequences as it can when it is idle; empty when it does."""
    return (await ask(site.session, {"model": site.base, "prompt": "x", "max_tokens": 1, "n": sequences})).problem


async def until(look: Callable[[], Awaitable[T]], good: Callable[[T], bool], seconds: float = SETTLE_SECONDS) -> T:
    """What ``look`` gives once it is good, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = await look()
        if good(found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)
