"""Where ``hotswap keys`` finds keys: at a running server over HTTP, or in a catalog's database, without any server.

Both answer as the server's API does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hotswap.errors import HotswapError

if TYPE_CHECKING:
    from server.catalog.database.database import Database
    from trainer.serving.client import AdminClient

Answer = dict[str, Any]


class KeyPlace(Protocol):
    """Keys and events somewhere. All calls raise one of our errors, in one line."""

    def keys(self) -> Answer:
        """All keys."""

    def create(self, fields: Mapping[str, Any]) -> Answer:
        """Make a key; its secret is the answer's ``key``."""

    def update(self, id: str, fields: Mapping[str, Any]) -> Answer:
        """Change what a key may do."""

    def rotate(self, id: str, grace: float) -> Answer:
        """Give a key a new secret."""

    def revoke(self, id: str, *, forget: bool) -> Answer:
        """End a key; with ``forget`` delete the record of one that was revoked."""

    def events(self, query: Mapping[str, Any]) -> Answer:
        """What was done and refused."""


class ServerKeys:
    """Those of a running server."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    def keys(self) -> Answer:
        """GET /v1/keys."""
        return self._client.call("GET", "/v1/keys", "to list its keys")

    def create(self, fields: Mapping[str, Any]) -> Answer:
        """POST /v1/keys."""
        return self._client.call("POST", "/v1/keys", "to create the key", json=dict(fields))

    def update(self, id: str, fields: Mapping[str, Any]) -> Answer:
        """PATCH /v1/keys/{id}."""
        return self._client.call("PATCH", f"/v1/keys/{id}", "to change the key", json=dict(fields))

    def rotate(self, id: str, grace: float) -> Answer:
        """POST /v1/keys/{id}/rotate."""
        body = {"grace_seconds": grace}
        return self._client.call("POST", f"/v1/keys/{id}/rotate", "to rotate the key", json=body)

    def revoke(self, id: str, *, forget: bool) -> Answer:
        """DELETE /v1/keys/{id}."""
        params = {"forget": "true"} if forget else {}
        return self._client.call("DELETE", f"/v1/keys/{id}", "to end the key", params=params)

    def events(self, query: Mapping[str, Any]) -> Answer:
        """GET /v1/events."""
        return self._client.events(**query)


class CatalogKeys:
    """Those in ``database``. Whoever can write to it may do anything, so that nothing here asks for a key."""

    def __init__(self, database: Database) -> None:
        from server.catalog.database.events import EventTable
        from server.catalog.database.keys import KeyTable
        from server.catalog.key_changes import KeyChanges

        self._keys = KeyTable(database)
        self._changes = KeyChanges(self._keys)
        self._events = EventTable(database)

    def keys(self) -> Answer:
        """As GET /v1/keys."""
        stored = self._keys.read()
        records = sorted(stored.records.values(), key=lambda record: (record.created, record.id))
        return {"object": "list", "data": [self._told(stored, record.id) for record in records]}

    def create(self, fields: Mapping[str, Any]) -> Answer:
        """As POST /v1/keys."""
        from server.catalog.keys import Scope, new_key
        from server.limits import Limits

        given = dict(fields)
        limits = Limits(**(given.pop("limits", None) or {}))
        scopes = [Scope(scope) for scope in given.pop("scopes")]
        record, secret = new_key(given.pop("name"), scopes, now=time.time(), limits=limits, **given)
        return self._told(self._changes.add(record), record.id, secret)

    def update(self, id: str, fields: Mapping[str, Any]) -> Answer:
        """As PATCH /v1/keys/{id}."""
        return self._told(self._changes.update(id, fields), id)

    def rotate(self, id: str, grace: float) -> Answer:
        """As POST /v1/keys/{id}/rotate."""
        stored, secret = self._changes.rotate(id, grace)
        return self._told(stored, id, secret)

    def revoke(self, id: str, *, forget: bool) -> Answer:
        """As DELETE /v1/keys/{id}."""
        if forget:
            self._changes.forget(id)
            return {"object": "key.deleted", "id": id, "deleted": True}
        return self._told(self._changes.revoke(id), id)

    def events(self, query: Mapping[str, Any]) -> Answer:
        """As GET /v1/events."""
        from server.catalog.events import EventQuery, entry_data

        found = self._events.find(EventQuery(**query))
        return {"object": "list", "data": [entry_data(entry) for entry in found], "next": None}

    def _told(self, stored: Any, id: str, secret: str | None = None) -> Answer:
        from server.catalog.keys import key_data

        return key_data(stored.records[id], stored.last_used.get(id), time.time(), secret)


@contextmanager
def catalog_keys(data_dir: str | None, catalog: str | None) -> Iterator[CatalogKeys]:
    """The keys of the catalog that a server with these settings has. Raises HotswapError, or the server's errors."""
    from server.catalog.database.database import Database, sqlite_url
    from server.catalog.events import ACTOR, LOCAL, Actor

    database = Database(catalog or sqlite_url(_made(data_dir)))
    acting = ACTOR.set(Actor(LOCAL))
    try:
        database.migrate()
        yield CatalogKeys(database)
    finally:
        ACTOR.reset(acting)
        database.close()


def _made(data_dir: str | None) -> Path:
    from platformdirs import user_data_path

    path = Path(data_dir or os.environ.get("HOTSWAP_DATA_DIR") or user_data_path("hotswap"))
    try:
        path = path.expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise HotswapError(f"{path} cannot hold a catalog: {getattr(error, 'strerror', None) or error}") from error
    return path
