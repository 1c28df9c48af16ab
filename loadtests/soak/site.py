"""What all workers of a soak share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

import aiohttp

from loadtests.soak.ledger import Ledger
from loadtests.soak.references import Answer, Package, References
from loadtests.soak.server import Server


@dataclass(frozen=True)
class Site:
    """A server, what is known of it, and when to stop. Names in ``churned`` change all the time, others never."""

    server: Server
    session: aiohttp.ClientSession
    references: References
    base: str
    fixed: dict[str, Package]
    churned: tuple[str, ...]
    ledger: Ledger = field(default_factory=Ledger)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def draw(self, random: Random) -> tuple[str, Answer]:
        """A model to ask and what to ask it; every adapter and the base have answers to the same prompts."""
        model = random.choice((self.base, *self.fixed, *self.churned))
        package = self.fixed.get(model)
        return model, random.choice(package.answers if package else self.references.answers)

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the soak."""
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except TimeoutError:
            return

    async def end_after(self, seconds: float, *, faults: bool) -> None:
        """Let the soak run for so long, and until the engine has been killed and has hung."""
        await asyncio.sleep(seconds)
        while faults and not (self.ledger.counts["kills"] and self.ledger.counts["hangs"]):
            await asyncio.sleep(0.1)
        self.over.set()
