"""Keys and events in SQLite and PostgreSQL alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import func, select, update

from server.catalog.database import tables
from server.catalog.database.database import Database
from server.catalog.database.events import EventTable
from server.catalog.database.keys import KeyTable
from server.catalog.events import ACTOR, Actor, Event, EventQuery, told
from server.catalog.key_changes import KeyChanges
from server.catalog.keys import KeyRecord, Scope, new_key
from server.errors import ConflictError, InvalidRequestError, UnknownKeyError

NOW = 1_900_000_000.0


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def table(database: Database) -> KeyTable:
    return KeyTable(database)


@pytest.fixture
def trail(database: Database) -> EventTable:
    return EventTable(database)


def key(*scopes: Scope, **fields: object) -> KeyRecord:
    return new_key("n", scopes or (Scope.INFERENCE,), now=NOW, **fields)[0]  # type: ignore[arg-type]


def revision(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.execute(select(tables.catalog.c.revision)).scalar_one())


# ---- keys ----


def test_what_is_kept_is_found_again(table: KeyTable, database: Database) -> None:
    before = revision(database)
    record = key(Scope.ADMIN, adapters=["a-*"], base=False)
    stored = KeyChanges(table).add(record)
    assert stored == table.read()
    assert stored.records == {record.id: record}
    assert revision(database) == before + 1, "other servers see by it that something changed"


def test_a_mark_differs_after_each_change_and_not_by_use(table: KeyTable) -> None:
    changes, record = KeyChanges(table), key()
    marks = [table.mark()]
    changes.add(record)
    marks.append(table.mark())
    changes.update(record.id, {"base": False})
    marks.append(table.mark())
    changes.rotate(record.id)
    marks.append(table.mark())
    table.note_used({record.id: NOW})
    assert table.mark() == marks[-1]
    changes.revoke(record.id)
    marks.append(table.mark())
    changes.forget(record.id)
    marks.append(table.mark())
    assert len(set(marks)) == len(marks) - 1
    assert marks[0] == marks[-1], "nothing is there, as before"


def test_the_last_use_is_the_latest_of_all_servers(table: KeyTable) -> None:
    record = key()
    KeyChanges(table).add(record)
    for seen in (NOW, NOW + 60, NOW + 30):
        table.note_used({record.id: seen, "key_gone": seen})
    assert table.read().last_used == {record.id: NOW + 60}
    KeyChanges(table).update(record.id, {"name": "other"})
    assert table.read().last_used == {record.id: NOW + 60}, "a change does not touch it"


def test_what_is_refused_changes_nothing_and_tells_nothing(table: KeyTable, trail: EventTable) -> None:
    record = key(Scope.ADMIN)
    changes = KeyChanges(table, guarded=True)
    changes.add(record)
    before, events = table.read(), trail.find(EventQuery())
    with pytest.raises(ConflictError):
        changes.revoke(record.id)
    with pytest.raises(ConflictError):
        changes.update(record.id, {"scopes": ["inference"]})
    with pytest.raises(InvalidRequestError):
        changes.update(record.id, {"adapters": ["a b"]})
    with pytest.raises(UnknownKeyError):
        changes.rotate("key_none")
    assert table.read() == before
    assert trail.find(EventQuery()) == events


def test_of_two_admins_who_revoke_each_other_one_is_left(table: KeyTable) -> None:
    """Checked in the transaction that changes: otherwise both would see the other's key."""
    admins = [key(Scope.ADMIN) for _ in range(2)]
    for record in admins:
        KeyChanges(table).add(record)
    refused: list[ConflictError] = []
    ready = threading.Barrier(2)

    def revoke(id: str) -> None:
        ready.wait()
        try:
            KeyChanges(table, guarded=True).revoke(id)
        except ConflictError as error:
            refused.append(error)

    threads = [threading.Thread(target=revoke, args=[record.id]) for record in admins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert sum(record.revoked is None for record in table.read().records.values()) == 1


def test_changes_at_once_are_all_kept(table: KeyTable) -> None:
    record = key(Scope.ADMIN)
    KeyChanges(table).add(record)
    fields = [{"base": False}, {"name": "m"}, {"limits": {"max_queue": 3}}, {"limits": {"requests_per_minute": 9}}]
    threads = [threading.Thread(target=KeyChanges(table).update, args=[record.id, change]) for change in fields]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = table.read().records[record.id]
    assert (kept.base, kept.name, kept.limits.max_queue, kept.limits.requests_per_minute) == (False, "m", 3, 9)


# ---- events ----


def test_events_keep_who_and_what(table: KeyTable, trail: EventTable) -> None:
    acting = ACTOR.set(Actor("key_1", "10.0.0.1", "request-1"))
    try:
        record = key()
        KeyChanges(table).add(record)
        trail.append([told(Event("upload", 3, {"code": "too_large"}), "dates", "base", outcome="refused")])
    finally:
        ACTOR.reset(acting)
    refused, created = trail.find(EventQuery())
    assert (refused.event.action, refused.event.version, refused.name, refused.base) == ("upload", 3, "dates", "base")
    assert (refused.outcome, dict(refused.event.detail)) == ("refused", {"code": "too_large"})
    assert created.event.action == "key.create"
    assert {created.actor, refused.actor} == {Actor("key_1", "10.0.0.1", "request-1")}


def test_pages_by_time_then_id(trail: EventTable, database: Database) -> None:
    trail.append([told(Event(f"a{i}")) for i in range(6)])
    with database.writing() as connection:  # a coarse clock, and one that was set back
        connection.execute(update(tables.events).values(time=NOW))
        connection.execute(update(tables.events).where(tables.events.c.action == "a5").values(time=NOW - 9.25))
    seen: list[str] = []
    before = None
    while page := trail.find(EventQuery(limit=2, before=before)):
        seen += [entry.event.action for entry in page]
        assert page[-1].id is not None
        before = (page[-1].time, page[-1].id)
    assert seen == ["a4", "a3", "a2", "a1", "a0", "a5"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("team-a-*",), ["team-a-x"]),
        (("team_a*",), ["team_ab"]),
        (("*",), ["Team-a-x", "team-a-x", "team_ab", "teamxab", "a.b", "axb"]),
        (("a.b", "teamx*"), ["teamxab", "a.b"]),
        ((), []),
    ],
)
def test_patterns_choose_what_a_reader_is_told(trail: EventTable, patterns: tuple[str, ...], names: list[str]) -> None:
    everything = ["Team-a-x", "team-a-x", "team_ab", "teamxab", "a.b", "axb"]
    trail.append([told(Event("upload"), name) for name in everything])
    trail.append([told(Event("key.create"), "team-a-x"), told(Event("access")), told(Event("access"), "a/b")])
    found = trail.find(EventQuery(adapters=patterns))
    assert [entry.name for entry in found[::-1]] == names


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 5000, "ünï", "hs-" + "k" * 43, "'; DROP TABLE events; --"])
def test_what_clients_send_is_stored(trail: EventTable, text: str) -> None:
    acting = ACTOR.set(Actor("anonymous", text, text))
    try:
        trail.append([told(Event("access", None, {"reason": text}), text, outcome="refused")])
    finally:
        ACTOR.reset(acting)
    (entry,) = trail.find(EventQuery())
    assert len(entry.name) <= tables.MAX_NAME
    assert "hs-" + "k" * 43 not in str(entry)


def test_old_events_go(trail: EventTable, database: Database) -> None:
    trail.append([told(Event("old")), told(Event("new"))])
    with database.writing() as connection:
        connection.execute(update(tables.events).where(tables.events.c.action == "old").values(time=NOW))
        connection.execute(update(tables.events).where(tables.events.c.action == "new").values(time=NOW + 1))
    trail.delete_before(NOW + 1)
    assert [entry.event.action for entry in trail.find(EventQuery())] == ["new"]
    with database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(tables.events)).scalar_one() == 1
