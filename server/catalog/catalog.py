"""What is durable of the names a server answers to: in a database that outlives it, and that others may share.

Every change is one transaction on what stands there at that moment, and nothing else is ever written. Every call blocks
on the database: run it off the event loop. Knows no requests and no engine, and of files only what they are called.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Row, Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from adapters.package.added_tokens import AddedToken
from adapters.package.chat_template import PackageChat
from adapters.package.head import PackageHead
from adapters.package.manifest import Manifest
from adapters.package.sentence_model import SentenceModel
from server.adapter_key import AdapterKey
from server.catalog.database import tables
from server.catalog.database.database import Database, count_up
from server.catalog.database.events import append
from server.catalog.events import Event, told
from server.catalog.versions import AdapterVersion, NameRecord, VersionHistory

T = TypeVar("T")
ARRIVING, KEPT, LEAVING = "arriving", "kept", "leaving"
_MOST_NAMED = 500


class _Info(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of a version that have no column of their own."""

    kind: str
    nbytes: int
    num_virtual_tokens: int
    created: float
    vocab_size: int | None = None
    tokens: tuple[AddedToken, ...] = ()
    chat: PackageChat = PackageChat()
    head: PackageHead | None = None
    sentence_model: SentenceModel | None = None
    manifest: Manifest | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Names:
    """Names as the catalog has them at ``revision``. One that is blank is gone without a trace."""

    revision: int
    histories: dict[str, VersionHistory]


@dataclass(frozen=True)
class Leftover:
    """Files of a change that its server did not end: of an upload (``arriving``), or of a deletion."""

    package: str
    base: str
    key: AdapterKey
    arriving: bool


class Catalog:
    """The names of one base, whose fingerprint ``base`` tells once it is known.

    ``place`` says where a package's files are, by its id.
    """

    def __init__(self, database: Database, base: Callable[[], str], place: Callable[[str], Path]) -> None:
        self.database = database
        self.server = secrets.token_hex(16)
        self._base = base
        self._place = place
        self._beats = 0
        self._own: set[str] = set()  # packages that are arriving or leaving and that this process will see to

    # ---- looking ----

    def load(self, since: int = -1) -> Names:
        """All names that were changed after revision ``since``. Raises CatalogUnavailableError, as every call does."""
        with self.database.reading() as connection:
            revision = connection.execute(select(tables.catalog.c.revision)).scalar_one()
            if revision <= since:
                return Names(revision, {})
            of_base = tables.names.c.base == self._base()
            changed = connection.execute(
                select(tables.names.c.name, tables.names.c.record, tables.names.c.revision).where(
                    of_base, tables.names.c.revision > since
                )
            ).all()
            versions = self._versions(connection, [row.name for row in changed] if since >= 0 else None)
        return Names(
            revision,
            {
                row.name: VersionHistory(_record(row.record), versions[row.name], revision=row.revision)
                for row in changed
            },
        )

    def read(self, name: str) -> VersionHistory:
        """What stands there of one name."""
        with self.database.reading() as connection:
            return self._read(connection, name)

    # ---- changes of names ----

    def change(self, name: str, mutate: Callable[[VersionHistory], T], event: Event) -> tuple[T, VersionHistory]:
        """Let ``mutate`` change what stands there of ``name``, in one transaction; nothing happens when it raises.

        Versions that it adds must have been reserved; files of those that it drops are this server's to delete, and to
        be ``deleted`` then. Returns what it returned and what stands there now. ``event`` says what was done. After
        CatalogUnavailableError it may have been done all the same: ``load`` tells.
        """
        with self.database.writing() as connection:
            revision = count_up(connection)
            history = self._read(connection, name)
            before = {version.path.name: version for version in history.all()}
            result = mutate(history)
            after = {version.path.name: version for version in history.all()}
            self._save_versions(connection, before, after)
            self._save_record(connection, name, revision, history.record)
            history.revision = revision
            append(connection, [told(event, name, self._base())])
            self._own.update(before.keys() - after.keys())
        self._own.difference_update(after)
        return result, history

    def abandon(self, package: str) -> None:
        """This process will not see to an arriving or leaving package after all: it is a leftover."""
        self._own.discard(package)

    def reserve(self, name: str, digest: str) -> tuple[AdapterKey, str]:
        """The key of a next version, and the id of its package. It is this server's to add, or to ``release``."""
        with self._own_package() as package, self.database.writing() as connection:
            revision = count_up(connection)
            history = self._read(connection, name)
            key = AdapterKey(name, history.reserve(), digest)
            self._save_record(connection, name, revision, history.record)
            self._save_package(connection, package, key, ARRIVING)
        return key, package

    def reserve_package(self, key: AdapterKey) -> str:
        """The id of other files of a version that is kept: this server's to ``move`` it to, or to ``release``."""
        with self._own_package() as package, self.database.writing() as connection:
            self._save_package(connection, package, key, ARRIVING)
        return package

    def release(self, key: AdapterKey, package: str) -> None:
        """Give back a key whose version was refused, and whose files are gone: all is as if it had never been tried."""
        with self.database.writing() as connection:
            self._release(connection, key, package)
        self._own.discard(package)

    def deleted(self, package: str) -> None:
        """Files that were leaving are gone."""
        with self.database.writing() as connection:
            _forget_package(connection, package)
        self._own.discard(package)

    def record(self, name: str, event: Event, *, refused: bool = False) -> None:
        """Write down what changed nothing of a name: a refusal, say."""
        with self.database.writing() as connection:
            append(connection, [told(event, name, self._base(), outcome="refused" if refused else "done")])

    # ---- servers ----

    def beat(self) -> dict[str, int]:
        """Say that this server lives; returns how often each server has said so."""
        self._beats += 1
        with self.database.writing() as connection:
            row = {"id": self.server, "beats": self._beats}
            _upsert(connection, tables.servers, row, ["id"])
            return {row.id: row.beats for row in connection.execute(select(tables.servers))}

    def leave(self) -> None:
        """This server ends."""
        self.forget_servers([self.server])

    def forget_servers(self, ids: Sequence[str]) -> None:
        """Servers that are gone."""
        with self.database.writing() as connection:
            connection.execute(delete(tables.servers).where(tables.servers.c.id.in_(ids)))

    def leftovers(self) -> list[Leftover]:
        """What servers that are gone, or this one, began and will not end, of any base."""
        others = select(tables.servers.c.id).where(tables.servers.c.id != self.server)
        query = select(tables.packages).where(tables.packages.c.state != KEPT, tables.packages.c.server.not_in(others))
        own = set(self._own)  # before it is asked for: what is reserved meanwhile is not in the answer
        with self.database.reading() as connection:
            rows = [row for row in connection.execute(query) if row.id not in own | self._own]
        return [Leftover(row.id, row.base, AdapterKey(row.name, row.number, ""), row.state == ARRIVING) for row in rows]

    def swept(self, leftover: Leftover) -> None:
        """The files of a leftover are gone; so is what was reserved for it."""
        with self.database.writing() as connection:
            if leftover.arriving and leftover.base == self._base():
                self._release(connection, leftover.key, leftover.package)
            else:
                _forget_package(connection, leftover.package)

    # ---- inside ----

    @contextmanager
    def _own_package(self) -> Iterator[str]:
        """A new id, ours before anybody can see it."""
        package = secrets.token_hex(16)
        self._own.add(package)
        try:
            yield package
        except BaseException:
            self._own.discard(package)
            raise

    def _release(self, connection: Connection, key: AdapterKey, package: str) -> None:
        revision = count_up(connection)
        history = self._read(connection, key.name)
        if history.get(key.version) is None:  # else only files were to be exchanged
            history.release(key.version)
            if history.is_blank:  # which no other server has seen anything of
                connection.execute(delete(tables.names).where(*self._of(tables.names, key.name)))
            else:
                self._save_record(connection, key.name, revision, history.record)
        _forget_package(connection, package)

    def _of(self, table: Table, name: str) -> tuple[Any, Any]:
        return table.c.base == self._base(), table.c.name == name

    def _read(self, connection: Connection, name: str) -> VersionHistory:
        row = connection.execute(select(tables.names).where(*self._of(tables.names, name))).one_or_none()
        if row is None:
            return VersionHistory()
        return VersionHistory(_record(row.record), self._versions(connection, [name])[name], revision=row.revision)

    def _versions(self, connection: Connection, names: Sequence[str] | None) -> dict[str, list[AdapterVersion]]:
        """Versions by name; of all names where ``names`` is None."""
        found: dict[str, list[AdapterVersion]] = defaultdict(list)
        query = select(tables.versions).where(tables.versions.c.base == self._base())
        queries = [query] if names is None else [query.where(tables.versions.c.name.in_(p)) for p in _parts(names)]
        for row in (row for query in queries for row in connection.execute(query)):
            found[row.name].append(self._version(row))
        return found

    def _version(self, row: Row[Any]) -> AdapterVersion:
        info = msgspec.json.decode(row.info, type=_Info)
        fields = {field: getattr(info, field) for field in _Info.__struct_fields__}
        return AdapterVersion(key=AdapterKey(row.name, row.number, row.digest), path=self._place(row.package), **fields)

    def _save_record(self, connection: Connection, name: str, revision: int, record: NameRecord) -> None:
        raw = msgspec.json.encode(record).decode()
        row = {"base": self._base(), "name": name, "revision": revision, "record": raw}
        _upsert(connection, tables.names, row, ["base", "name"])

    def _save_package(self, connection: Connection, package: str, key: AdapterKey, state: str) -> None:
        connection.execute(
            insert(tables.packages).values(
                id=package, base=self._base(), name=key.name, number=key.version, state=state, server=self.server
            )
        )

    def _save_versions(
        self, connection: Connection, before: Mapping[str, AdapterVersion], after: Mapping[str, AdapterVersion]
    ) -> None:
        for package in before.keys() - after.keys():
            self._set_package(connection, package, LEAVING)
            connection.execute(delete(tables.versions).where(tables.versions.c.package == package))
        for package in after.keys() - before.keys():
            self._set_package(connection, package, KEPT)
            connection.execute(insert(tables.versions).values(**self._row(after[package])))

    def _row(self, version: AdapterVersion) -> dict[str, Any]:
        info = _Info(**{field: getattr(version, field) for field in _Info.__struct_fields__})
        key = version.key
        return {
            "base": self._base(),
            "name": key.name,
            "number": key.version,
            "digest": key.digest,
            "package": version.path.name,
            "info": msgspec.json.encode(info).decode(),
        }

    def _set_package(self, connection: Connection, package: str, state: str) -> None:
        row = tables.packages.c
        changed = update(tables.packages).where(row.id == package).values(state=state, server=self.server)
        assert connection.execute(changed).rowcount == 1, f"package {package} was never reserved"


def _record(raw: str) -> NameRecord:
    return msgspec.json.decode(raw, type=NameRecord)


def _forget_package(connection: Connection, package: str) -> None:
    connection.execute(delete(tables.packages).where(tables.packages.c.id == package))


def _upsert(connection: Connection, table: Table, row: Mapping[str, Any], keys: Sequence[str]) -> None:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(**row)
    others = {name: value for name, value in row.items() if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=others))


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """So many at a time as a statement may name."""
    for start in range(0, len(names), _MOST_NAMED):
        yield names[start : start + _MOST_NAMED]
