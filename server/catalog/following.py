"""Lets what the catalog says of a name take effect here: versions become resident, requests switch, others leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from adapters.errors import AdapterError
from server.adapter_key import AdapterKey
from server.catalog.draining import Draining
from server.catalog.observer import Action, LifecycleObserver
from server.catalog.places import Stage
from server.catalog.registry import Registry
from server.catalog.removal import Removal
from server.catalog.residency import Residency
from server.catalog.versions import AdapterVersion, VersionHistory, VersionState
from server.errors import AdapterFailedError, ServerError
from server.traces import part

logger = logging.getLogger(__name__)
LOAD_FIRST_SECONDS = 1.0  # requests switch then, and wait: servers of one catalog agree within two


class Following:
    """Brings registry and engine to where the catalog is. Whoever calls holds the name's lock."""

    def __init__(
        self,
        registry: Registry,
        residency: Residency,
        draining: Draining,
        removal: Removal,
        observer: LifecycleObserver,
    ) -> None:
        self._registry = registry
        self._residency = residency
        self._draining = draining
        self._removal = removal
        self._observer = observer

    def is_known(self, name: str, history: VersionHistory) -> bool:
        """Whether ``history`` has been followed, or is older than what has been."""
        known = self._registry.history(name)
        return history.revision <= (0 if known is None else known.revision)

    async def catch_up(self, name: str, history: VersionHistory) -> None:
        """``follow`` what other servers have made of a name, unless that has been done."""
        if not self.is_known(name, history):
            await self.follow(name, history)

    async def follow(
        self,
        name: str,
        history: VersionHistory,
        *,
        action: Action = "activate",
        resident: AdapterKey | None = None,
        ours: Collection[AdapterVersion] = (),
        force: bool = False,
    ) -> list[asyncio.Task[None]]:
        """Let requests of ``name`` see ``history``, and let go what it no longer serves.

        What takes the place of a version that is in memory is loaded first, so that its requests wait for nothing;
        unless that takes longer than servers of one catalog may differ.
        ``action`` is what changed the live version; ``resident`` is known to be there. Files of versions that are gone
        are deleted if they are ``ours``; whoever removed the others sees to theirs. Returns what ends the versions that
        are gone, ``force`` or not.
        """
        failures = await self._load(name, history, resident)
        with part("swap"):
            return self._adopt(name, history, failures, action=action, ours=ours, force=force)

    def _adopt(
        self,
        name: str,
        history: VersionHistory,
        failures: Mapping[AdapterKey, str],
        *,
        action: Action,
        ours: Collection[AdapterVersion],
        force: bool,
    ) -> list[asyncio.Task[None]]:
        before = self._registry.history(name)
        gone = self._registry.adopt(name, history)
        for key, reason in failures.items():
            self._registry.failed(key, reason)
        self._tell(before or VersionHistory(), history, action)
        self._observer.shared_out(name, [share.key for share in self._registry.shares(name)])
        paths = {version.path for version in ours}
        ends = [self.end(version, force=force, delete=version.path in paths) for version in gone]
        stay = {version.key for version in (*gone, *history.to_be_resident())}
        for version in () if before is None else before.to_be_resident():
            if version.key not in stay:
                self._observer.retire(version.key)
                self._draining.begin(version.key)
        self._residency.warm(version.key for version in history.to_be_resident())
        self._residency.rule_changed(name)
        return ends

    async def make_resident(self, version: AdapterVersion) -> None:
        """Load a version, unless it is draining and can be kept. Raises AdapterFailedError, also by then."""
        key = version.key
        known = self._registry.knows(key)
        state = self._registry.state(key) if known else VersionState.STORED
        if await self._draining.cancel(key):
            if state is not VersionState.FAILED:
                return
            self._registry.drained(key)  # it is not there: the engine has been another since
        try:
            loaded = await self._residency.load(key, version.path, allow_noop=True, nbytes=version.nbytes)
        except AdapterError as error:
            self._registry.failed(key, str(error))
            raise AdapterFailedError(
                f"{key} cannot be loaded: {error}. Upload it again, or activate it once its files are mended"
            ) from error
        self._registry.healed(key)
        if state is not VersionState.CANDIDATE:  # which was only asked whether it is resident still
            self._observer.adapter_loaded(loaded)

    def let_go(self, versions: Collection[AdapterVersion]) -> None:
        """Unload those of ``versions``, loaded for a change that failed, that nobody asks for."""
        for version in versions:
            if not self._registry.serves(version.key):
                self._draining.begin(version.key)

    def end(self, version: AdapterVersion, *, force: bool, delete: bool = True) -> asyncio.Task[None]:
        """Unload a version that the registry has let go, and ``delete`` its files."""
        self._observer.retire(version.key)
        return self._removal.begin(version, force=force, delete=delete)

    async def _load(self, name: str, history: VersionHistory, resident: AdapterKey | None) -> dict[AdapterKey, str]:
        """Have what ``history`` newly serves drain no more, and be resident where it is needed at once.

        Returns why that could not be done.
        """
        failures: dict[AdapterKey, str] = {}
        before = self._registry.history(name)
        replaced = None if before is None else before.get(before.live)
        is_hot = replaced is not None and self._residency.stage(replaced.key) is Stage.RESIDENT
        for version in history.to_be_resident():
            if version.key == resident or self._is_served(version.key):
                continue
            await self._draining.cancel(
                version.key
            )  # before the time limit: to break that off would leave it half done
            if not is_hot or version.key.version in history.candidates:
                continue
            try:
                async with asyncio.timeout(LOAD_FIRST_SECONDS):
                    await self.make_resident(version)
            except TimeoutError:
                logger.info("adapter %s is still being loaded: its requests wait for that", version.key)
            except AdapterError as error:
                cause = error.__cause__ if isinstance(error, AdapterFailedError) else error
                failures[version.key] = str(cause)
                logger.warning("adapter %s cannot be loaded: %s", version.key, cause)
            except ServerError as error:  # no fault of its own: its first request tries again
                logger.warning("adapter %s is not loaded yet: %s", version.key, error)
        return failures

    def _is_served(self, key: AdapterKey) -> bool:
        """Whether it is served here already, or known to fail."""
        if not self._registry.knows(key):
            return False
        return self._registry.state(key) not in (VersionState.DRAINING, VersionState.STORED)

    def _tell(self, before: VersionHistory, history: VersionHistory, action: Action) -> None:
        replaced, live = before.get(before.live), history.get(history.live)
        old, new = None if replaced is None else replaced.key, None if live is None else live.key
        if old == new:
            if (key := _other_share(before, history)) is not None:
                self._observer.name_changed(key, "abort" if action == "abort" else "canary")
            return
        if new is None:
            assert old is not None
            self._observer.name_changed(old, "remove")
            return
        logger.info("adapter %s in service, before it: %s", new, old)
        self._observer.name_changed(new, "load" if old is None else action)


def _other_share(before: VersionHistory, history: VersionHistory) -> AdapterKey | None:
    """The canary or shadow that begins, ends or gets another share with ``history``; None where nothing does."""
    old, new = before.traffic.shares, history.traffic.shares
    changed = [number for number in {**old, **new} if old.get(number) != new.get(number)]
    known = (history.get(number) or before.get(number) for number in changed)
    return next((version.key for version in known if version is not None), None)
