"""What a name serves changes from one version to another, and nothing that runs notices. Asyncio-confined.

The caller keeps changes of one name apart. Knows no HTTP and no packages.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from server.draining import Drains
from server.engine.client import EngineClient
from server.errors import ConflictError
from server.lifecycle_observer import Action, LifecycleObserver
from server.registry import AdapterVersion, Registry, VersionState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flip:
    """``version`` is live now. ``replaced`` was before it (None: nothing was).

    Not ``changed``: ``version`` was live already.
    """

    version: AdapterVersion
    replaced: AdapterVersion | None = None
    changed: bool = True


class Flips:
    """Makes versions live, and lets those go that they replace."""

    def __init__(self, registry: Registry, engine: EngineClient, drains: Drains, observer: LifecycleObserver) -> None:
        self._registry = registry
        self._engine = engine
        self._drains = drains
        self._observer = observer

    async def flip(self, version: AdapterVersion, action: Action) -> Flip:
        """Make a version live that is kept; with the action ``rollback``, undo what came after it.

        Raises AdapterError or EngineUnavailableError; everything is as before then.
        """
        if self._registry.state(version.key) is VersionState.LIVE:
            return Flip(version, changed=False)
        await self._make_resident(version)
        replaced = self._registry.activate(version.key, back=action == "rollback")
        self.flipped(version, replaced, action)
        return Flip(version, replaced)

    def flipped(self, version: AdapterVersion, replaced: AdapterVersion | None, action: Action) -> None:
        """Tell of a flip that has happened, and let the replaced version go in the background."""
        logger.info("adapter %s in service, before it: %s", version.key, replaced.key if replaced else None)
        self._observer.name_changed("load" if replaced is None else action)
        if replaced is not None:
            self._observer.retire(replaced.key)
            self._drains.begin(replaced.key)

    def check_expected(self, name: str, expected_live: int | None, *, target: int | None = None) -> None:
        """Raise ConflictError unless ``name`` serves ``expected_live`` (0: nothing; None: whatever it is).

        A ``target`` that it serves already is fine too: the call was repeated.
        """
        live = self._registry.live(name).key.version if name in self._registry.names() else 0
        if expected_live in (None, live) or (live and live == target):
            return
        serves = f"{name!r} serves version {live}" if live else f"{name!r} serves no version"
        wanted = f"not {expected_live}" if expected_live else "and was expected to serve none"
        raise ConflictError(
            f"{serves}, {wanted}: it was changed meanwhile. Look at GET /v1/adapters/{name} before you decide again",
            param="expected_live",
            code="live_version_changed",
        )

    async def _make_resident(self, version: AdapterVersion) -> None:
        """Load a version, unless it is draining and can be kept."""
        if await self._drains.call_back(version.key):
            return
        candidate = self._registry.state(version.key) is VersionState.CANDIDATE
        loaded = await self._engine.load_adapter(version.key, version.path, allow_noop=True)  # accepted before
        if not candidate:  # a candidate was only asked whether it is resident still
            self._observer.adapter_loaded(loaded)
