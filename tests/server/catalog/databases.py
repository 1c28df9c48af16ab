"""Databases for tests: a file, and a PostgreSQL of our own where Debian's packages are there."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from sqlalchemy import select

from server.catalog.database import tables
from server.catalog.database.database import Database

USER = "hotswap"


def known_packages(database: Database) -> set[str]:
    """Ids of all packages that a catalog knows, of any base."""
    with database.reading() as connection:
        return set(connection.execute(select(tables.packages.c.id)).scalars())


def postgresql_programs() -> Path | None:
    """The folder of initdb and postgres, of the newest version that is installed."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return folders[-1].parent if folders else None


class PostgreSQL:
    """A cluster in a folder of its own, without fsync: it does not outlive the tests."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="hotswap-pg-"))
        self._user = self._unprivileged()
        self.port = free_port()
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self.start()

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def start(self) -> None:
        """Start it; returns once it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -c fsync=off -c shared_buffers=16MB"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", log, "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it, as a crash would."""
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Within the block it takes connections, and answers nothing."""
        main = psutil.Process(int((self._folder / "data" / "postmaster.pid").read_text().split()[0]))
        stopped = [*main.children(), main]
        for process in stopped:
            process.suspend()
        try:
            yield
        finally:
            for process in stopped:
                process.resume()

    def new_url(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{secrets.token_hex(8)}"
        own = f"host=127.0.0.1 port={self.port} user={USER} dbname=postgres"
        with psycopg.connect(own, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        """Stop it and delete it."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _unprivileged(self) -> str | None:
        """Whom to run it as: it refuses to be root."""
        if os.geteuid() != 0:
            return None
        nobody = pwd.getpwnam("nobody")
        os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        return "nobody"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        with (self._folder / "output").open("ab") as output:
            subprocess.run(command, check=True, user=self._user, cwd=self._folder, stdout=output, stderr=output)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL | str]:
    """A running PostgreSQL, or why there is none."""
    programs = postgresql_programs()
    if programs is None:
        yield "PostgreSQL is not installed (Debian's package: postgresql)"
        return
    try:
        cluster = PostgreSQL(programs)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        yield f"PostgreSQL cannot be started here: {error}"
        return
    try:
        yield cluster
    finally:
        cluster.close()
