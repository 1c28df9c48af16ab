"""Those who change what is served, and those who hit the engine."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import aiohttp

from loadtests.soak.clients import PATIENCE, settle
from loadtests.soak.references import Package
from loadtests.soak.site import Site

KEPT = 5  # versions of a name, beyond which old ones are deleted
RETRYABLE = 503


class Changer:
    """The only one who changes ``name``, so that it knows what must be served after each change."""

    def __init__(self, site: Site, name: str, random: Random) -> None:
        self._site, self._name, self._random = site, name, random
        self._at = f"/v1/adapters/{name}"

    async def run(self) -> None:
        """One change after another, each looked at."""
        while not self._site.over.is_set():
            await self.step()
            await self._site.pause(self._random.uniform(0, 0.3))

    async def step(self) -> None:
        """One random change that makes sense now."""
        versions = await self.versions()
        if not versions:
            await self._upload(activate=True)
            return
        idle = [version["version"] for version in versions if version["state"] != "live"]
        if len(versions) > KEPT and idle:
            await self._change("deletes", "DELETE", f"{self._at}/versions/{idle[0]}", params=self._mode())
            return
        changes: dict[Callable[[], Awaitable[object]], int] = {  # and how often each is made
            lambda: self._upload(activate=True): 6,
            lambda: self._upload(activate=False): 2,
            lambda: self._activate(versions): 4,
            self._rollback: 3,
            lambda: self._change("removals", "DELETE", self._at, params=self._mode()): 1,
            self._upload_rubbish: 1,
        }
        (change,) = self._random.choices(list(changes), list(changes.values()))
        await change()

    async def versions(self) -> list[dict[str, Any]]:
        """What is kept of the name, none while it does not exist."""
        status, body = await self._send("GET", self._at)
        return body["versions"] if status == 200 else []

    async def remove(self) -> None:
        """Let the name go in the end."""
        if await self.versions():
            await self._change("removals", "DELETE", self._at)

    def _mode(self) -> dict[str, str]:
        return {"mode": self._random.choice(("drain", "force"))}

    async def _upload(self, *, activate: bool) -> None:
        package = self._random.choice(self._site.references.packages)
        form = aiohttp.FormData()
        form.add_field("file", package.archive(), filename="adapter.zip")
        done = "uploads" if activate else "candidates"
        body = await self._change(done, "PUT", self._at, data=form, params={"activate": str(activate).lower()})
        if body is not None:
            self._site.ledger.knows(body["id"], package)
            await self._look(body if activate else None, package)

    async def _upload_rubbish(self) -> None:
        form = aiohttp.FormData()
        form.add_field("file", self._random.randbytes(2000), filename="adapter.zip")
        if await self._change("refused uploads", "PUT", self._at, data=form) is not None:
            self._site.ledger.wrong.append("an upload of random bytes was accepted")

    async def _activate(self, versions: list[dict[str, Any]]) -> None:
        number = self._random.choice(versions)["version"]
        await self._look(await self._change("activations", "PATCH", self._at, json={"version": number}))

    async def _rollback(self) -> None:
        await self._look(await self._change("rollbacks", "POST", f"{self._at}/rollback"))

    async def _look(self, live: dict[str, Any] | None, package: Package | None = None) -> None:
        """From the answer to a change on, the name serves that version."""
        if live is None:
            return
        package = package or self._site.ledger.content(live["id"])
        if package is None:
            self._site.ledger.wrong.append(f"{live['id']} is live, but was never uploaded")
            return
        reply = await settle(self._site, self._name, self._random.choice(package.answers))
        if not reply.problem and reply.version != live["id"]:
            self._site.ledger.wrong.append(f"{reply.version} answered after {live['id']} had become live")
        if reply.code == "model_not_found":
            self._site.ledger.lost.append(f"{self._name} was not found although {live['id']} is live")

    async def _change(self, done: str, method: str, path: str, **request: Any) -> dict[str, Any] | None:
        """Make a change; None when it was refused, which some are for good reason and many while the engine is down."""
        began = time.monotonic()
        status, body = await self._send(method, path, **request)
        if status in (200, 201):
            self._site.ledger.counts[done] += 1
            changed: dict[str, Any] = body
            return changed
        self._site.ledger.counts["refused uploads" if done == "refused uploads" else "refused changes"] += 1
        excused = status == RETRYABLE and self._site.ledger.disturbed(began)
        if not (excused or 400 <= status < 500):
            self._site.ledger.wrong.append(f"{method} {path}: {status} {body}")
        return None

    async def _send(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        try:
            async with self._site.session.request(method, path, **request) as response:
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return 0, f"{type(error).__name__}: {error}"


async def saboteur(site: Site, random: Random, every: float) -> None:
    """Kill the engine or let it hang, wait until the server is ready again, and so on."""
    number = 0
    while not site.over.is_set():
        await site.pause(every * random.uniform(0.7, 1.3))
        if site.over.is_set():
            return
        await strike(site, signal.SIGSTOP if number % 2 else signal.SIGKILL)
        number += 1


async def strike(site: Site, number: signal.Signals) -> None:
    """Hit the engine once; done when the server is ready again."""
    site.ledger.fault_begins("hangs" if number is signal.SIGSTOP else "kills")
    if site.server.hit(number):
        if not await _ready(site, False):
            site.ledger.lost.append(f"the server did not notice {number.name} to its engine within {PATIENCE:g} s")
        if not await _ready(site, True):
            site.ledger.lost.append(f"the server was not ready {PATIENCE:g} s after {number.name} to its engine")
    site.ledger.fault_ends()


async def _ready(site: Site, wanted: bool) -> bool:
    """Wait until the server says that it is ready, or that it is not."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        async with site.session.get("/ready") as response:
            if (response.status == 200) == wanted:
                return True
        await asyncio.sleep(0.02)
    return False
