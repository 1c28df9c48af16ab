"""Lets a name serve another of its versions: loaded, then durable, then in effect. Asyncio-confined."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from server.catalog.changes import Changes
from server.catalog.events import Event
from server.catalog.following import Following
from server.catalog.guard import Guard
from server.catalog.observer import Action
from server.catalog.registry import Registry
from server.catalog.versions import AdapterVersion, VersionHistory, VersionState
from server.errors import UnknownModelError

logger = logging.getLogger(__name__)
Check = Callable[[VersionHistory], None]


@dataclass(frozen=True)
class Activation:
    """``version`` is live now. ``replaced`` was before it (None: nothing was).

    Not ``changed``: ``version`` was live already.
    """

    version: AdapterVersion
    replaced: AdapterVersion | None = None
    changed: bool = True


class Activating:
    """Makes versions live that are kept. Whoever calls has begun a change of their name."""

    def __init__(self, registry: Registry, following: Following, changes: Changes) -> None:
        self._registry = registry
        self._following = following
        self._changes = changes

    async def make_live(
        self, version: AdapterVersion, action: Action, guard: Guard, check: Check | None = None
    ) -> Activation:
        """Let its name serve a version that is kept; with the action ``rollback``, undo what came after it."""
        key = version.key
        if self._registry.state(key) is VersionState.LIVE:
            return Activation(version, changed=False)
        await self._following.make_resident(version)
        if self._registry.live_number(key.name) == key.version:  # it had failed
            logger.info("adapter %s is served again", key)
            return Activation(version)

        def switch(history: VersionHistory) -> AdapterVersion | None:
            if check is not None:
                check(history)
            if history.get(key.version) is None:
                raise UnknownModelError(f"{key} was deleted meanwhile")
            return history.roll_back(key.version) if action == "rollback" else history.activate(key.version)

        try:
            replaced, history = await self._changes.write(key.name, switch, Event(action, key.version), guard)
        except BaseException:
            self._following.let_go([version])
            raise
        await self._following.follow(key.name, history, action=action, resident=key)
        return Activation(version, replaced)
