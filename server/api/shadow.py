"""Copies of requests to shadows: which there are, when they run, and how their answers, which nobody sees, compare.

A copy begins when its request has been answered, takes no client's place, and gives way to clients: it runs only where
the engine has seats and blocks to spare, is dropped where not, and ended when clients need what it has. Knows no text
and no sequences. Asyncio-confined.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapters.errors import AdapterError
from server.adapter_key import AdapterKey
from server.api.error_responses import GenerationError
from server.catalog.canary_figures import CanaryFigures
from server.catalog.lease import Lease
from server.catalog.registry import Registry
from server.engine.messages import EngineStats
from server.errors import ServerError
from server.metrics import Metrics

logger = logging.getLogger(__name__)
SEATS = 4  # copies take up to one of so many of the engine's seats
ROOMY, TIGHT = 0.5, 0.9  # used part of the KV cache up to which copies begin, and beyond which they end
AFTER_SECONDS = 0.02  # the answer goes out first


@dataclass(frozen=True)
class Answered:
    """One sequence of an answer: its tokens, and how long the engine took."""

    ids: Sequence[int]
    seconds: float


Answer = Callable[[Lease], Awaitable[Sequence[Answered]]]


class HasStats(Protocol):
    """An engine, as far as it is looked at here."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics."""


class Shadows:
    """The copies of one server. ``seats`` is how many sequences the engine computes at once."""

    def __init__(
        self, registry: Registry, engine: HasStats, figures: CanaryFigures, metrics: Metrics, *, seats: int
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._figures = figures
        self._metrics = metrics
        self._seats = seats
        self._running: dict[asyncio.Task[None], int] = {}  # sequences of each, oldest first

    @property
    def sequences(self) -> int:
        """How many run."""
        return sum(self._running.values())

    def chosen(self, lease: Lease) -> AdapterKey | None:
        """The shadow that is to get a copy of the request that holds ``lease``, if any is.

        What is compared is the live version: nobody else's requests are copied, and none that name their version.
        """
        if lease.key is None or not lease.by_name or lease.key.version != self._registry.live_number(lease.key.name):
            return None
        shadow = self._registry.traffic(lease.key.name).shadow
        if shadow is None or random.random() >= shadow.weight:
            return None
        key = self._registry.version(lease.key.name, shadow.version).key
        return None if self._registry.failure(key) else key

    def begin(
        self, key: AdapterKey, original: Sequence[Answered], answer: Answer, *, comparable: bool, active: int
    ) -> None:
        """Let ``key`` answer the request that was answered by ``original``, by calling ``answer`` with a hold on it.

        Dropped where there is no room beside ``active`` sequences of clients. Only where ``comparable`` do the tokens
        say anything: they were chosen, or drawn with a seed.
        """
        if not all(one.ids for one in original):
            return
        if not self._has_room(len(original), active):
            self._drop(key)
            return
        task = asyncio.create_task(self._run(key, original, answer, comparable))
        self._running[task] = len(original)
        task.add_done_callback(self._running.pop)

    def give_way(self, active: int) -> None:
        """End copies, the youngest first, as far as ``active`` sequences of clients need what they have."""
        left = self.sequences if _usage(self._engine.stats) < TIGHT else self._seats
        for task, count in reversed(self._running.items()):
            if active + left <= self._seats:
                return
            task.cancel()
            left -= count

    async def close(self) -> None:
        """End all."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _has_room(self, count: int, active: int) -> bool:
        running, stats = self.sequences + count, self._engine.stats
        fits = running <= max(self._seats // SEATS, 1) and active + running <= self._seats
        return fits and not stats.num_waiting and _usage(stats) <= ROOMY

    async def _run(self, key: AdapterKey, original: Sequence[Answered], answer: Answer, comparable: bool) -> None:
        try:
            await asyncio.sleep(AFTER_SECONDS)
            with self._registry.lease(str(key)) as lease:
                copy = await answer(lease)
        except asyncio.CancelledError:
            self._drop(key)
            raise
        except (ServerError, AdapterError, GenerationError) as error:
            self._fail(key)
            logger.info("the shadow %s could not answer a copy: %s", key, error)
        except Exception:
            self._fail(key)
            logger.exception("a copy to the shadow %s failed", key)
        else:
            self._compare(key, original, copy, comparable)

    def _compare(
        self, key: AdapterKey, original: Sequence[Answered], copy: Sequence[Answered], comparable: bool
    ) -> None:
        ratio = seconds_per_token(copy) / seconds_per_token(original)
        share = agreement(original, copy) if comparable else None
        self._figures.compared(key, ratio=ratio, share=share, exact=share == 1)
        self._metrics.copied(key, "answered", ratio, share)

    def _drop(self, key: AdapterKey) -> None:
        self._figures.dropped(key)
        self._metrics.copied(key, "dropped")

    def _fail(self, key: AdapterKey) -> None:
        self._figures.copy_failed(key)
        self._metrics.copied(key, "failed")


def agreement(original: Sequence[Answered], copy: Sequence[Answered]) -> float:
    """The share of tokens that are equal up to the first difference, over all sequences; 1: all are equal."""
    pairs = list(zip(original, copy, strict=True))
    equal = sum(_common(one.ids, other.ids) for one, other in pairs)
    return equal / sum(max(len(one.ids), len(other.ids)) for one, other in pairs)


def seconds_per_token(answered: Sequence[Answered]) -> float:
    """How long a token took."""
    return max(sum(one.seconds for one in answered), 1e-9) / max(sum(len(one.ids) for one in answered), 1)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common beginning."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def _usage(stats: EngineStats) -> float:
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
