"""The tables of a catalog, as the newest migration leaves them. Names are of a ``base``, by its fingerprint."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

HEAD = "0001"  # the migration that these tables need
metadata = MetaData()
Id = BigInteger().with_variant(Integer, "sqlite")  # which numbers rows itself only where they are an INTEGER

# One row. Counted up in every change: who has seen revision n need only ask for what is newer.
catalog = Table(
    "catalog",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

names = Table(
    "names",
    metadata,
    Column("base", String(128), nullable=False),
    Column("name", String(128), nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    Column("record", Text, nullable=False),  # a NameRecord, in JSON
    PrimaryKeyConstraint("base", "name"),
)

versions = Table(
    "versions",
    metadata,
    Column("base", String(128), nullable=False),
    Column("name", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("package", String(32), nullable=False, unique=True),
    Column("info", Text, nullable=False),  # what else is known of it, in JSON
    PrimaryKeyConstraint("base", "name", "number"),
)

# Files in the store. What is not kept belongs to a change that its server will end, or, if that is gone, another.
packages = Table(
    "packages",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("base", String(128), nullable=False),
    Column("name", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),  # arriving, kept, leaving
    Column("server", String(32), nullable=False),
)

# Servers that run. ``beats`` grows while one does; no clock is compared with another's.
servers = Table(
    "servers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("beats", BigInteger, nullable=False),
)

# Who did what, or was refused it. ``time`` in Unix seconds, ``detail`` an object in JSON.
events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("time", Float, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    Column("address", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("base", String(128), nullable=False),
    Column("name", String(256), nullable=False, index=True),
    Column("version", Integer, nullable=True),
    Column("outcome", String(16), nullable=False),  # done, refused
    Column("request_id", String(128), nullable=False),
    Column("detail", Text, nullable=False),
)
