"""What is durable of names: the same over SQLite and PostgreSQL, for one server or several."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select

from adapters.package.added_tokens import AddedToken
from adapters.package.chat_template import PackageChat
from adapters.package.dense import Dense
from adapters.package.manifest import BaseRef, Manifest, PooledRef
from adapters.package.sentence_model import SentenceModel
from server.adapter_key import AdapterKey
from server.catalog.catalog import Catalog
from server.catalog.database import tables
from server.catalog.database.database import Database
from server.catalog.events import ACTOR, Actor, Event
from server.catalog.versions import AdapterVersion, NameSettings, VersionHistory
from server.errors import CatalogUnavailableError
from server.limits import Limits
from tests.server.catalog.databases import PostgreSQL, known_packages

PLACES = Path("/packages")
UPLOAD = Event("upload")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database, lambda: "base", PLACES.joinpath)


def other(catalog: Catalog, base: str = "base") -> Catalog:
    """Another server's view of the same catalog."""
    return Catalog(catalog.database, lambda: base, PLACES.joinpath)


def new_version(key: AdapterKey, package: str) -> AdapterVersion:
    return AdapterVersion(key=key, path=PLACES / package, kind="lora", nbytes=7, num_virtual_tokens=0, created=1.5)


def add(catalog: Catalog, name: str, *, candidate: bool = False) -> AdapterVersion:
    key, package = catalog.reserve(name, "d" * 64)
    version = new_version(key, package)
    catalog.change(name, lambda history: history.add(version, candidate=candidate), UPLOAD)
    return version


def rows(catalog: Catalog) -> dict[str, int]:
    with catalog.database.reading() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (tables.names, tables.versions, tables.packages)
        }


def test_all_that_is_known_of_a_name_comes_back(catalog: Catalog) -> None:
    key, package = catalog.reserve("json", "a" * 64)
    manifest = Manifest(
        kind="lora", base=BaseRef("b", "f"), created=datetime(2026, 1, 2, tzinfo=UTC), metrics={"loss": 0.5}
    )
    version = dataclasses.replace(
        new_version(key, package),
        vocab_size=300,
        tokens=(AddedToken(257, "<x>", special=True),),
        chat=PackageChat("{{ messages }}", (("eos_token", "</s>"),), (3,), ("careful",)),
        sentence_model=SentenceModel(
            PooledRef(pooling="max"), {"a": "A: "}, "", "a", layers=(Dense("2_Dense", 8, 4, "Tanh", "d" * 64),)
        ),
        manifest=manifest,
        warnings=("a warning",),
    )
    settings = NameSettings(pinned=True, weight=2.5, retention=3, limits=Limits(requests_per_minute=6))

    def mutate(history: VersionHistory) -> None:
        history.add(version)
        history.record.settings = settings

    catalog.change("json", mutate, UPLOAD)
    waiting = add(catalog, "json", candidate=True)
    (found,) = other(catalog).load().histories.values()
    assert found.all() == [version, waiting]
    assert (found.live, found.candidates, found.record.settings) == (1, {2}, settings)
    assert other(catalog).read("json").all() == found.all()
    assert catalog.read("nobody").is_blank


def test_only_what_is_newer_is_loaded(catalog: Catalog) -> None:
    add(catalog, "a")
    seen = catalog.load()
    assert set(seen.histories) == {"a"}
    assert catalog.load(seen.revision).histories == {}
    add(catalog, "b")
    newer = other(catalog).load(seen.revision)
    assert set(newer.histories) == {"b"}
    assert newer.histories["b"].revision == newer.revision > seen.revision


def test_a_refused_version_leaves_no_trace(catalog: Catalog) -> None:
    key, package = catalog.reserve("json", "d")
    assert rows(catalog) == {"names": 1, "versions": 0, "packages": 1}
    catalog.release(key, package)
    assert rows(catalog) == {"names": 0, "versions": 0, "packages": 0}
    assert catalog.reserve("json", "d")[0].version == 1


def test_numbers_are_never_given_twice(catalog: Catalog) -> None:
    taken: list[int] = []

    def take(view: Catalog) -> None:
        for _ in range(10):
            taken.append(add(view, "json").key.version)

    threads = [threading.Thread(target=take, args=(other(catalog),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 31))
    history = catalog.read("json")
    assert [version.key.version for version in history.all()] == sorted(taken)
    assert history.live in taken
    with catalog.database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(tables.events)).scalar_one() == 30


def test_a_change_that_raises_changes_nothing(catalog: Catalog) -> None:
    version = add(catalog, "json")

    def mutate(history: VersionHistory) -> None:
        history.remove()
        raise ValueError("no")

    before, revision = rows(catalog), catalog.load().revision
    with pytest.raises(ValueError, match="no"):
        catalog.change("json", mutate, UPLOAD)
    assert (rows(catalog), catalog.load().revision) == (before, revision)
    assert catalog.read("json").all() == [version]


def test_files_of_what_is_dropped_are_kept_until_they_are_deleted(catalog: Catalog) -> None:
    first, second = add(catalog, "json"), add(catalog, "json")
    catalog.change("json", lambda history: history.forget(1), Event("remove_version", 1))
    assert [version.key for version in catalog.read("json").all()] == [second.key]
    assert known_packages(catalog.database) == {first.path.name, second.path.name}
    assert catalog.leftovers() == []  # it is ours, and we are here
    catalog.deleted(first.path.name)
    assert known_packages(catalog.database) == {second.path.name}


def test_what_a_server_that_is_gone_left_is_a_leftover(catalog: Catalog) -> None:
    gone = other(catalog)
    gone.beat()
    removed = add(gone, "json")
    gone.change("json", lambda history: history.remove(), Event("remove"))
    key, arriving = gone.reserve("new", "d")
    assert catalog.leftovers() == []
    gone.leave()
    found = {leftover.package: leftover for leftover in catalog.leftovers()}
    assert set(found) == {removed.path.name, arriving}
    assert (found[arriving].key.name, found[arriving].key.version) == (key.name, key.version)
    for leftover in found.values():
        catalog.swept(leftover)
    assert rows(catalog) == {"names": 1, "versions": 0, "packages": 0}  # the tombstone of json
    assert catalog.read("json").record.last == 1


def test_what_this_server_gives_up_is_a_leftover(catalog: Catalog) -> None:
    _, package = catalog.reserve("json", "d")
    catalog.abandon(package)
    assert [leftover.package for leftover in catalog.leftovers()] == [package]


def test_other_files_take_the_place_of_a_versions(catalog: Catalog) -> None:
    version = add(catalog, "json")
    moved = dataclasses.replace(version, path=PLACES / catalog.reserve_package(version.key))
    catalog.change("json", lambda history: history.move(moved), Event("restore", 1))
    assert catalog.read("json").all() == [moved]
    assert known_packages(catalog.database) == {version.path.name, moved.path.name}
    catalog.deleted(version.path.name)
    given_up = catalog.reserve_package(version.key)
    catalog.release(version.key, given_up)
    assert (catalog.read("json").all(), catalog.read("json").record.last) == ([moved], 1)


def test_bases_know_nothing_of_each_other(catalog: Catalog) -> None:
    add(catalog, "json")
    stranger = other(catalog, "another base")
    assert stranger.load().histories == {}
    assert add(stranger, "json").key.version == 1
    stranger.change("json", lambda history: history.remove(), Event("remove"))
    assert len(catalog.read("json").all()) == 1


def test_events_say_who_did_what(catalog: Catalog) -> None:
    token = ACTOR.set(Actor("key-1", "10.0.0.9", "req-7"))
    try:
        add(catalog, "json")
        catalog.record("json", Event("activate", 9, {"reason": "there is none"}), refused=True)
    finally:
        ACTOR.reset(token)
    with catalog.database.reading() as connection:
        done, refused = connection.execute(select(tables.events).order_by(tables.events.c.id)).all()
    assert (done.actor, done.address, done.request_id, done.action, done.outcome) == (
        *("key-1", "10.0.0.9", "req-7"),
        *("upload", "done"),
    )
    assert (refused.version, refused.outcome, json.loads(refused.detail)) == (9, "refused", {"reason": "there is none"})


def test_beats_tell_who_lives(catalog: Catalog) -> None:
    second = other(catalog)
    catalog.beat()
    assert catalog.beat() == {catalog.server: 2}
    assert second.beat() == {catalog.server: 2, second.server: 1}
    catalog.leave()
    assert second.beat() == {second.server: 2}


def test_ten_thousand_names_are_loaded_at_once(catalog: Catalog) -> None:
    """By as few questions as two: nothing grows with the square."""
    for name in ("a", "b", "c"):
        add(catalog, name)
    with catalog.database.writing() as connection:
        record, info = (
            connection.execute(select(tables.names.c.record).limit(1)).scalar_one(),
            connection.execute(select(tables.versions.c.info).limit(1)).scalar_one(),
        )
        revision = catalog.load().revision + 1
        connection.execute(
            tables.names.insert(),
            [{"base": "base", "name": f"n{i}", "revision": revision, "record": record} for i in range(10_000)],
        )
        versions = [
            {"base": "base", "name": f"n{i}", "number": 1, "digest": "d", "package": f"p{i}", "info": info}
            for i in range(10_000)
        ]
        connection.execute(tables.versions.insert(), versions)
        connection.execute(tables.catalog.update().values(revision=revision))
    names = catalog.load()
    assert len(names.histories) == 10_003
    assert all(len(history.all()) == 1 and history.live == 1 for history in names.histories.values())
    assert len(catalog.load(names.revision - 1).histories) == 10_000


def test_a_database_that_went_away_is_an_error_of_ours_and_comes_back(cluster: PostgreSQL) -> None:
    database = Database(cluster.new_url())
    database.migrate()
    catalog = Catalog(database, lambda: "base", PLACES.joinpath)
    version = add(catalog, "json")
    cluster.stop()
    try:
        for call in (catalog.load, catalog.beat, lambda: add(catalog, "json"), lambda: catalog.read("json")):
            with pytest.raises(CatalogUnavailableError, match="does not answer") as caught:
                call()
            assert "127.0.0.1" not in str(caught.value)
    finally:
        cluster.start()
    assert catalog.read("json").all() == [version]
    assert add(catalog, "json").key.version == 2
    database.close()
