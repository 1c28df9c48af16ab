"""The catalog's database: a PostgreSQL of our own that is stopped and started, else the SQLite file in the data folder.

Its rows are counted from outside: by psql, or in the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

USER = "soak"
_ROWS = (
    "SELECT (SELECT count(*) FROM packages), (SELECT count(*) FROM versions), "
    """(SELECT count(*) FROM names WHERE record NOT LIKE '%"removed":true%')"""
)


class Rows(NamedTuple):
    """Of the catalog; names that were removed are not counted: their tombstones stay."""

    packages: int
    versions: int
    names: int


class SQLite:
    """The file that a server makes by itself."""

    flags: tuple[str, ...] = ()

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "catalog.db"

    async def rows(self) -> Rows:
        """What is in it."""
        with contextlib.closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as connection:
            return Rows(*connection.execute(_ROWS).fetchone())


class PostgreSQL:
    """A cluster in a folder of its own, gone when it is ``close``d. Raises OSError or CalledProcessError."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="soak-pg-"))
        self._user: str | None = None
        if os.geteuid() == 0:  # it refuses to be root
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            self._user = "nobody"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = int(sock.getsockname()[1])
        self.flags = ("--catalog", f"postgresql://{USER}@127.0.0.1:{self._port}/postgres")
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self._start()

    @classmethod
    def find(cls) -> Path | None:
        """Where its programs are, of the newest version that Debian's packages have installed."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: float(path.parts[-3]))
        return found[-1].parent if found else None

    async def rows(self) -> Rows:
        """What is in it."""
        address = ("-h", "127.0.0.1", "-p", str(self._port), "-U", USER, "-d", "postgres")
        found = await asyncio.to_thread(self._run, "psql", *address, "-At", "-F", " ", "-c", _ROWS)
        return Rows(*map(int, found.split()))

    async def stop(self) -> None:
        """Stop it as a crash would."""
        await asyncio.to_thread(self._run, "pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    async def start(self) -> None:
        """Start it again; returns once it takes connections."""
        await asyncio.to_thread(self._start)

    def close(self) -> None:
        """Stop it and delete it."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _start(self) -> None:
        # With fsync, as it is run: a crash must not lose what it confirmed.
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -k {self._folder} -c shared_buffers=16MB"
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", str(self._folder / "log"), "-w", "start")

    def _run(self, program: str, *arguments: str) -> str:
        command = [str(self._programs / program), *arguments]
        output = self._folder / "output"
        with output.open("wb") as file:  # no pipe: the server that pg_ctl leaves behind would keep it open
            subprocess.run(
                command, check=True, user=self._user, cwd=self._folder, stdout=file, stderr=subprocess.STDOUT
            )
        return output.read_text(encoding="utf-8")


Database = SQLite | PostgreSQL


def open_database(wanted: str, data_dir: Path) -> Database:
    """``wanted`` is sqlite, postgresql, or auto: postgresql where its programs are. Raises RuntimeError."""
    programs = PostgreSQL.find()
    if wanted == "postgresql" and programs is None:
        raise RuntimeError("PostgreSQL is not installed (Debian's package: postgresql)")
    return SQLite(data_dir) if wanted == "sqlite" or programs is None else PostgreSQL(programs)
