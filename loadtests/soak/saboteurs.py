"""Those who break things at random moments: engines, whole servers, the database, the folder of packages."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import psutil

from loadtests.soak.clients import PATIENCE
from loadtests.soak.database import PostgreSQL
from loadtests.soak.leaks import until
from loadtests.soak.ledger import AWAY, DATABASE, HANGS, KILLS, READ_ONLY, SERVER_KILLS
from loadtests.soak.server import Server
from loadtests.soak.site import Site
from loadtests.soak.state import send

ENGINE_SECONDS = 20.0  # in which an engine ends whose server was killed
SHORTEST, LONGEST = 0.5, 4.0  # seconds for which a database or a folder is gone
Strike = Callable[[], Awaitable[None]]


async def at_moments(site: Site, random: Random, every: float, *strikes: Strike) -> None:
    """Make one of ``strikes`` after the other, about so many seconds apart."""
    number = 0
    while not site.over.is_set():
        await site.pause(every * random.uniform(0.7, 1.3))
        if site.over.is_set():
            return
        await strikes[number % len(strikes)]()
        number += 1


# ---- engines and servers ----


async def hit_engine(site: Site, random: Random, number: signal.Signals) -> None:
    """Kill an engine, or let it hang; done when its server is ready again."""
    server = _to_hit(site, random)
    async with server.hitting:
        fault = site.ledger.fault_begins(HANGS if number is signal.SIGSTOP else KILLS, server.name)
        if server.hit(number):
            if not await _ready(server, False):
                site.ledger.lost.append(f"{server.name} did not notice {number.name} to its engine")
            if not await _ready(server, True):
                site.ledger.lost.append(f"{server.name} was not ready again after {number.name} to its engine")
        site.ledger.fault_ends(fault)


def _to_hit(site: Site, random: Random) -> Server:
    """Any server, of those that nobody hits just now if there are."""
    return random.choice([server for server in site.servers if not server.hitting.locked()] or site.servers)


async def kill_server(site: Site, random: Random) -> None:
    """Kill a server and start it again over the same data; the names that nobody changes must be what they were."""
    server = _to_hit(site, random)
    async with server.hitting:
        fault = site.ledger.fault_begins(SERVER_KILLS, server.name)
        before = await _fixed(site, server)
        engine = await server.kill()
        if not await server.start_again(PATIENCE) or not await _ready(server, True):
            site.ledger.lost.append(f"{server.name} did not serve {PATIENCE:g} s after it was killed")
        site.ledger.fault_ends(fault)
        after = await _fixed(site, server)
        if before != after:
            site.ledger.wrong.append(f"{server.name} served {before} before it was killed, and {after} afterwards")
        if engine is not None and not await _ended(engine):
            site.ledger.leaked.append(f"the engine of {server.name} lived {ENGINE_SECONDS:g} s longer than its server")


async def _fixed(site: Site, server: Server) -> dict[str, Any]:
    """Version and content of each name that nobody changes, and whether anything failed."""
    found: dict[str, Any] = {}
    for name in site.fixed:
        status, body = await send(server, "GET", f"/v1/adapters/{name}")
        found[name] = [body[field] for field in ("id", "digest", "state")] if status == 200 else body
    return found


async def _ended(process: psutil.Process) -> bool:
    try:
        await asyncio.to_thread(process.wait, ENGINE_SECONDS)
    except psutil.TimeoutExpired:
        return False
    return True


async def _ready(server: Server, wanted: bool) -> bool:
    """Wait until a server says that it is ready, or that it is not."""

    async def look() -> bool:
        try:
            async with server.session.get("/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    return await until(look, lambda ready: ready is wanted, PATIENCE) is wanted


# ---- what servers share ----


async def stop_database(site: Site, random: Random, database: PostgreSQL) -> None:
    """Let the database crash, and be away for a while; done when every server takes changes again."""
    fault = site.ledger.fault_begins(DATABASE)
    await database.stop()
    await asyncio.sleep(random.uniform(SHORTEST, LONGEST))
    await database.start()
    await _recovered(site, fault.whole_again)
    site.ledger.fault_ends(fault)


async def write_protect(site: Site, random: Random, packages: Path) -> None:
    """Let the folder of packages be read-only for a while."""
    fault = site.ledger.fault_begins(READ_ONLY)
    async with _read_only(packages):
        await asyncio.sleep(random.uniform(SHORTEST, LONGEST))
    await _recovered(site, fault.whole_again)
    site.ledger.fault_ends(fault)


async def take_away(site: Site, random: Random, packages: Path) -> None:
    """Let a file be where the folder of packages is, for a while."""
    fault = site.ledger.fault_begins(AWAY)
    packages.rename(aside := packages.with_name("packages-aside"))
    packages.touch()
    await asyncio.sleep(random.uniform(SHORTEST, LONGEST))
    packages.unlink()
    aside.rename(packages)
    await _recovered(site, fault.whole_again)
    site.ledger.fault_ends(fault)


def can_write_protect(folder: Path) -> bool:
    """Whether this process may: root has to mount for it."""
    if os.geteuid() != 0:
        return True
    mounted = subprocess.run(["mount", "--bind", str(folder), str(folder)], check=False, capture_output=True)
    return mounted.returncode == 0 and not subprocess.run(["umount", str(folder)], check=False).returncode


@asynccontextmanager
async def _read_only(folder: Path) -> AsyncIterator[None]:
    if os.geteuid() != 0:
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def _recovered(site: Site, whole: Callable[[], None]) -> None:
    """What was broken is whole; wait until every server takes a change again."""
    whole()
    name = next(iter(site.fixed))
    for server in site.servers:

        async def change(server: Server = server) -> int:
            return (await send(server, "PATCH", f"/v1/adapters/{name}", json={"priority": 0}))[0]

        if await until(change, lambda status: status == 200, PATIENCE) != 200:
            site.ledger.lost.append(f"{server.name} took no changes {PATIENCE:g} s after all was whole again")
