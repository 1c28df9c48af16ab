"""Changes of API keys, each in one transaction with the event that tells of it. Calls block."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from server.catalog.database.keys import KeyChange, KeyTable, StoredKeys
from server.catalog.events import KEY_ACTIONS, Entry, Event, told
from server.catalog.keys import KeyRecord, check_admin_left, revoked, rotated, updated
from server.errors import ConflictError, UnknownKeyError

_SAID = ("name", "scopes", "adapters", "base", "limits", "expires")
Keys = Mapping[str, KeyRecord]


@dataclass(frozen=True)
class KeyChanges:
    """Changes of the keys in ``table``. Who makes them, the context knows.

    ``guarded``: none that would leave nobody to administer a server that takes the keys of its catalog alone. All raise
    UnknownKeyError, ConflictError, InvalidRequestError or CatalogUnavailableError, and nothing has changed then.
    """

    table: KeyTable
    guarded: bool = False

    def add(self, record: KeyRecord) -> StoredKeys:
        """Keep a new key."""

        def work(records: Keys) -> KeyChange:
            self._guard({**records, record.id: record})
            return KeyChange(_entry("create", record, _described(record)), save=(record,))

        return self.table.change(work)

    def update(self, id: str, fields: Mapping[str, Any]) -> StoredKeys:
        """Set ``fields`` of a key. One that was revoked stays as it is."""
        return self._alter("update", id, lambda record: updated(record, fields, now=time.time()))

    def rotate(self, id: str, grace: float = 0.0) -> tuple[StoredKeys, str]:
        """Give a key a new secret, which is returned; the old one is good for ``grace`` seconds more."""
        secrets: list[str] = []

        def make(record: KeyRecord) -> KeyRecord:
            changed, secret = rotated(record, now=time.time(), grace=grace)
            secrets.append(secret)
            return changed

        return self._alter("rotate", id, make), secrets[-1]

    def revoke(self, id: str) -> StoredKeys:
        """End a key. Again: nothing."""
        return self._alter("revoke", id, lambda record: revoked(record, now=time.time()))

    def forget(self, id: str) -> StoredKeys:
        """Delete the record of a key that was revoked."""

        def work(records: Keys) -> KeyChange:
            record = _known(records, id)
            if record.revoked is None:
                raise ConflictError(f"the key {id} is {record.state(time.time())}; revoke it first", code="key_active")
            return KeyChange(_entry("forget", record, {"label": record.name}), delete=(id,))

        return self.table.change(work)

    def _alter(self, action: str, id: str, make: Callable[[KeyRecord], KeyRecord]) -> StoredKeys:
        def work(records: Keys) -> KeyChange:
            before = _known(records, id)
            after = make(before)
            if after == before:
                return KeyChange(None)
            if before.administers(time.time()):
                self._guard({**records, id: after})
            return KeyChange(_entry(action, after, _difference(before, after)), save=(after,))

        return self.table.change(work)

    def _guard(self, records: Keys) -> None:
        if self.guarded:
            check_admin_left(records.values(), time.time())


def _entry(action: str, record: KeyRecord, detail: dict[str, Any]) -> Entry:
    return told(Event(KEY_ACTIONS + action, None, detail), record.id)


def _known(records: Keys, id: str) -> KeyRecord:
    if (record := records.get(id)) is None:
        raise UnknownKeyError(f"there is no key {id[:40]!a}; GET /v1/keys lists them")
    return record


def _described(record: KeyRecord) -> dict[str, Any]:
    """What an event says of a key, of its secret nothing. Its name is called ``label``: the event's is the id."""
    said = msgspec.to_builtins({field: getattr(record, field) for field in _SAID})
    return {"label": said.pop("name"), **said}


def _difference(before: KeyRecord, after: KeyRecord) -> dict[str, Any]:
    old, new = _described(before), _described(after)
    changed = {name: {"from": old[name], "to": value} for name, value in new.items() if value != old[name]}
    until = {"old_secret_until": after.old_until} if after.old_until != before.old_until else {}
    return {"label": after.name, **changed, **until}
