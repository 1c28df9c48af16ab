"""A database by its URL: SQLite in a file, or PostgreSQL. Every call blocks: run it off the event loop."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from server.catalog.database.tables import HEAD, catalog
from server.errors import CatalogUnavailableError, EngineStartError, StoreFullError

logger = logging.getLogger(__name__)
WAIT_SECONDS = 10  # for a connection, and for another's transaction
_MIGRATING = 0x686F7473776170  # of PostgreSQL's advisory locks, ours: one server at a time changes tables


def sqlite_url(directory: Path) -> str:
    """The URL of the catalog that is a file in ``directory``."""
    return f"sqlite:///{directory / 'catalog.db'}"


class Database:
    """One database. ``migrate`` once, then ``reading`` and ``writing``; may be used in any thread.

    Raises EngineStartError for a URL that is none, or of a database that is not known.
    """

    def __init__(self, url: str) -> None:
        self._closed = False
        try:
            parsed = make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.shown = parsed.render_as_string(hide_password=True)
            if parsed.get_backend_name() not in ("sqlite", "postgresql"):
                raise EngineStartError(f"--catalog {self.shown}: use sqlite:///FILE or postgresql://USER@HOST/NAME")
            self._engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise EngineStartError(
                f"--catalog: {type(error).__name__}; use sqlite:///FILE or postgresql://USER@HOST/NAME (which needs "
                "the package psycopg)"
            ) from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the database. Raises CatalogUnavailableError."""
        with self._connection() as connection:
            yield connection
            connection.rollback()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, one at a time: all of the block is kept, durably, or, when it raises, nothing.

        Raises CatalogUnavailableError, or StoreFullError.
        """
        with self._connection() as connection:
            if connection.dialect.name == "sqlite":
                connection.connection.execute("BEGIN IMMEDIATE")  # now, not at the first write: it might be too late
            yield connection
            connection.commit()

    def migrate(self) -> None:
        """Bring the tables to what this version of hotswap needs. Raises EngineStartError, CatalogUnavailableError."""
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATING})
            before = _revision(connection)
            if before != HEAD:
                _upgrade(connection, before, self.shown)

    def close(self) -> None:
        """Let go of all connections, of those that are in use once they are not."""
        self._closed = True
        self._engine.dispose()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with _errors(), self._engine.connect() as connection:
            try:
                yield connection
            finally:
                if self._closed:  # the pool that it goes back to is none that anybody closes
                    connection.invalidate()


def count_up(connection: Connection) -> int:
    """A next revision. Its row is held to the end of the transaction: changes come one after another."""
    counted = update(catalog).values(revision=catalog.c.revision + 1)
    return int(connection.execute(counted.returning(catalog.c.revision)).scalar_one())


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _upgrade(connection: Connection, before: str | None, shown: str) -> None:
    from alembic import command  # here: a catalog that is up to date needs none of it
    from alembic.config import Config
    from alembic.util.exc import CommandError

    logger.info("catalog %s: tables %s -> %s", shown, before or "none", HEAD)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise EngineStartError(
            f"the catalog {shown} has tables of a newer hotswap (migration {before}); use that, or another --catalog"
        ) from error


@contextmanager
def _errors() -> Iterator[None]:
    """Let what the database refuses be an error of the server's. What drivers say may hold addresses: it is logged."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        logger.error("the catalog's database: %s: %s", type(cause).__name__, str(cause).strip())
        if "full" in str(cause) and isinstance(cause, sqlite3.Error):
            raise StoreFullError("there is no room for the catalog's database; make some, then try again") from error
        raise CatalogUnavailableError(
            "the catalog's database does not answer; nothing was changed that it did not confirm, and what is loaded "
            "is served on. Try again"
        ) from error


def _sqlite(url: Any) -> Engine:
    engine = create_engine(url, connect_args={"timeout": WAIT_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if not connection.connection.in_transaction:
            connection.connection.execute("BEGIN")

    return engine


def _postgresql(url: Any) -> Engine:
    options = f"-c statement_timeout={WAIT_SECONDS}s -c lock_timeout={WAIT_SECONDS}s"
    return create_engine(
        url,
        pool_pre_ping=True,  # a connection that was lost meanwhile is replaced
        pool_timeout=WAIT_SECONDS,
        connect_args={"connect_timeout": WAIT_SECONDS, "options": options},
    )
