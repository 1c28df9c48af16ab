"""Changes of one name by several servers: each on what stands there when it is written, and guarded there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from server.catalog.catalog import Catalog
from server.catalog.database.database import Database, sqlite_url
from server.catalog.events import Event
from server.catalog.guard import Guard, state_of
from server.catalog.versions import NameSettings, VersionHistory
from server.errors import ConflictError, PreconditionFailedError, UnknownModelError
from tests.server.catalog.support import Backend

Adapters = Mapping[str, Path]


class Overtaken:
    """Sets a weight; just before it is written another server makes a change of its own, once."""

    def __init__(self, backend: Backend) -> None:
        self.other = Catalog(Database(sqlite_url(backend.root)), lambda: "base", backend.store.place)
        self.calls = 0

    def __call__(self, settings: NameSettings) -> NameSettings:
        self.calls += 1
        if self.calls == 1:
            self.other.change("json", self._meanwhile, Event("set"))
        return msgspec.structs.replace(settings, weight=2.0)

    def _meanwhile(self, history: VersionHistory) -> None:
        history.record.settings = msgspec.structs.replace(history.record.settings, priority=1)


def tag(backend: Backend) -> str:
    return state_of("json", backend.registry.history("json")).etag


async def test_settings_are_merged_into_what_another_server_has_set(backend: Backend, tiny_adapters: Adapters) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    overtaken = Overtaken(backend)
    guard = Guard()
    assert await backend.lifecycle.configure("json", overtaken, guard=guard)
    assert backend.registry.settings("json") == NameSettings(weight=2.0, priority=1)
    assert guard.after is not None
    durable = overtaken.other.load().histories["json"]
    assert guard.after.etag == tag(backend) == state_of("json", durable).etag, "the same on every server"
    assert not await backend.lifecycle.configure("json", overtaken)


async def test_a_guard_holds_when_the_change_is_written(backend: Backend, tiny_adapters: Adapters) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    guard = Guard(if_match=frozenset({tag(backend)}))
    with pytest.raises(PreconditionFailedError, match="'json' was changed meanwhile: it serves version 1 now"):
        await backend.lifecycle.configure("json", Overtaken(backend), guard=guard)
    assert guard.after is None
    assert not await backend.lifecycle.configure("json", lambda settings: settings), "which looks again"
    assert backend.registry.settings("json") == NameSettings(priority=1)
    with pytest.raises(ConflictError, match="serves version 1, not 2"):
        await backend.lifecycle.configure("json", Overtaken(backend), guard=Guard(expected_live=2))
    with pytest.raises(UnknownModelError):
        await backend.lifecycle.configure("nobody", lambda settings: settings)


async def test_a_name_that_is_removed_meanwhile_is_not_set(backend: Backend, tiny_adapters: Adapters) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    overtaken = Overtaken(backend)

    def removed(settings: NameSettings) -> NameSettings:
        if overtaken.other.read("json").all():
            (gone,), _ = overtaken.other.change("json", lambda history: history.remove(), Event("remove"))
            overtaken.other.deleted(gone.path.name)
        return msgspec.structs.replace(settings, weight=2.0)

    with pytest.raises(UnknownModelError, match="was removed meanwhile"):
        await backend.lifecycle.configure("json", removed)
    await backend.lifecycle.follow("json", backend.catalog.read("json"))
    await backend.lifecycle.settle()
    assert backend.catalog.read("json").record.settings == NameSettings()
    for path in (backend.root / "packages").iterdir():  # as the other server would have done
        backend.store.delete(path)
