"""What all workers of a soak share."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random

from loadtests.soak.ledger import Ledger
from loadtests.soak.references import Answer, Package, References
from loadtests.soak.server import Server


@dataclass(frozen=True)
class Site:
    """Servers of one catalog, what is known of them, and when to stop.

    Names in ``churned`` change all the time, others never.
    """

    servers: tuple[Server, ...]
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

    async def end_after(self, seconds: float, faults: Collection[str]) -> None:
        """Let the soak run for so long, and until each of these faults has been made."""
        await asyncio.sleep(seconds)
        while not all(self.ledger.counts[kind] for kind in faults):
            await asyncio.sleep(0.1)
        self.over.set()
