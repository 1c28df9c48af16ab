"""Opening a database, bringing its tables up to date, and transactions."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from server.catalog.database.database import Database, sqlite_url
from server.catalog.database.tables import HEAD, metadata
from server.errors import CatalogUnavailableError, EngineStartError, ServerError


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://a@b/c", "sqlite", "oracle://x", "postgresql+nothing://x"])
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(EngineStartError, match="--catalog"):
        Database(url)


def test_passwords_are_not_shown() -> None:
    assert "secret" not in Database("postgresql://me:secret@127.0.0.1/x").shown


def test_migrations_make_the_tables_that_the_code_names(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD
    database.migrate()  # again: nothing to do
    database.close()


def test_several_servers_may_migrate_at_once(database_url: str) -> None:
    failures: list[Exception] = []

    def migrate() -> None:
        try:
            database = Database(database_url)
            database.migrate()
            database.close()
        except ServerError as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_tables_of_a_newer_version_are_refused(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(EngineStartError, match="newer hotswap"):
        database.migrate()
    database.close()


def test_a_block_that_raises_leaves_nothing(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()

    def fail() -> None:
        with database.writing() as connection:
            connection.execute(text("UPDATE catalog SET revision = 5"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.reading() as connection:
        assert connection.execute(text("SELECT revision FROM catalog")).scalar() == 0
    database.close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CatalogUnavailableError):
        Database(sqlite_url(tmp_path)).migrate()


def test_another_program_that_holds_the_file_is_waited_for(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    holder = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, lambda: holder.execute("COMMIT")).start()
    with database.writing() as connection:
        connection.execute(text("UPDATE catalog SET revision = 1"))
    holder.close()
    database.close()
