"""How a name is changed: one change after another, on what the catalog has of it now, durable first and then in effect.

Asyncio-confined. Knows no files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from server.adapter_key import AdapterKey
from server.catalog.catalog import Catalog
from server.catalog.database.asking import ask
from server.catalog.events import Event
from server.catalog.following import Following
from server.catalog.guard import Guard, state_of
from server.catalog.observer import Action
from server.catalog.registry import Registry
from server.catalog.residency import Residency
from server.catalog.versions import NameSettings, VersionHistory
from server.errors import UnknownModelError
from server.traces import part

T = TypeVar("T")


class Changes:
    """Changes of names, each of which a ``Guard`` lets through or refuses: PreconditionFailedError, ConflictError."""

    def __init__(self, registry: Registry, catalog: Catalog, residency: Residency, following: Following) -> None:
        self._registry = registry
        self._catalog = catalog
        self._residency = residency
        self._following = following
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, name: str, guard: Guard) -> AsyncIterator[None]:
        """One change of a name at a time, on what the catalog has of it now: another server may have changed it.

        ``guard`` is told what the name was when the change had been made.
        """
        async with AsyncExitStack() as stack:
            with part("wait"):
                await stack.enter_async_context(self._lock(name))
                history = await ask(self._catalog.read, name)
            await self._following.catch_up(name, history)
            yield
            guard.after = state_of(name, self._registry.history(name))

    def check(self, name: str, guard: Guard, *, target: int | None = None) -> None:
        """Raise what ``guard`` does about the name as it is; what it would serve then is ``target``."""
        guard.check(state_of(name, self._registry.history(name)), target=target)

    async def make(
        self,
        name: str,
        mutate: Callable[[VersionHistory], T],
        event: Event,
        guard: Guard,
        *,
        needs: Collection[int] = (),
    ) -> T:
        """One whole change of what is durable of a name, which takes effect here; versions it ``needs`` are loaded."""
        async with self.of(name, guard):
            self.check(name, guard)
            needed = [self._registry.version(name, number) for number in sorted(needs)]
            try:
                for version in needed:
                    await self._following.make_resident(version)
                result, history = await self.write(name, mutate, event, guard)
            except BaseException:
                self._following.let_go(needed)
                raise
            action: Action = "abort" if event.action == "abort" else "canary"
            await self._following.follow(name, history, action=action)
            return result

    async def write(
        self,
        name: str,
        mutate: Callable[[VersionHistory], T],
        event: Event,
        guard: Guard,
        *,
        arriving: tuple[AdapterKey, str] | None = None,
    ) -> tuple[T, VersionHistory]:
        """Change what is durable of a name, if ``guard`` holds by then; ``follow`` it afterwards.

        An ``arriving`` version and its package are given up if that fails.
        """

        def guarded(history: VersionHistory) -> T:
            guard.check(state_of(name, history))
            return mutate(history)

        try:
            with part("commit"):
                return await ask(self._catalog.change, name, guarded, event)
        except BaseException:
            if arriving is not None:
                key, package = arriving
                self._catalog.abandon(package)
                if not self._registry.knows(key):
                    await self._residency.unload(key, force=True)
            raise

    async def follow(self, name: str, history: VersionHistory) -> None:
        """Let what the catalog says of ``name`` take effect here, unless that has been done."""
        async with self._lock(name):
            await self._following.catch_up(name, history)

    async def configure(self, name: str, settle: Callable[[NameSettings], NameSettings], guard: Guard) -> bool:
        """Let the settings of ``name`` be what ``settle`` makes of them; False when they were that already."""

        def change(history: VersionHistory) -> None:
            if not history.all():
                raise UnknownModelError(f"The adapter {name!r} was removed meanwhile. Upload it again to use it.")
            history.record.settings = settle(history.record.settings)

        async with self.of(name, guard):
            self._registry.versions(name)  # or there is nothing to set
            before = self._registry.settings(name)
            self.check(name, guard)
            after = settle(before)
            if after == before:
                return False
            event = Event("set", None, {"settings": msgspec.to_builtins(after)})
            _, history = await self.write(name, change, event, guard)
            await self._following.follow(name, history)
            return True

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())
