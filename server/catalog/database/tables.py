"""The tables of a catalog, as the newest migration leaves them. Names are of a ``base``, by its fingerprint."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

HEAD = "0007"  # the migration that these tables need
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

MAX_NAME, MAX_ADDRESS, MAX_REQUEST_ID = 256, 64, 128  # characters of an event's; clients may have chosen more

# Who did what, or was refused it. ``time`` in Unix seconds, ``detail`` an object in JSON.
events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("time", Float, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    Column("address", String(MAX_ADDRESS), nullable=False),
    Column("action", String(64), nullable=False),
    Column("base", String(128), nullable=False),
    Column("name", String(MAX_NAME), nullable=False, index=True),
    Column("version", Integer, nullable=True),
    Column("outcome", String(16), nullable=False),  # done, refused
    Column("request_id", String(MAX_REQUEST_ID), nullable=False),
    Column("detail", Text, nullable=False),
)

# API keys. What requests ask for is in ``record``; when one was used last changes often, and no server waits for it.
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("record", Text, nullable=False),  # a KeyRecord, in JSON: of the key itself its SHA-256 digest
    Column("last_used", Float, nullable=True),  # Unix seconds
)

# What clients uploaded, and what jobs wrote for them. The content is in the store, by its digest.
files = Table(
    "files",
    metadata,
    Column("number", Id, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("created", Float, nullable=False),  # Unix seconds, as all times
    Column("expires", Float, nullable=True, index=True),
)

# Files that come in parts. The content of each part is in the store, by its digest, until they are put together.
uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False, index=True),
    Column("seconds", Float, nullable=True),  # that the file is to be kept
    Column("status", String(16), nullable=False),
    Column("file", String(64), nullable=False),  # what it has become
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("upload", String(64), nullable=False, index=True),
    Column("nbytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("created", Float, nullable=False),
)

# Work that goes on behind requests: fine-tuning jobs and batches. ``place`` is the data directory whose server does it,
# empty until one has begun; ``wish`` what its owner wants of a job that runs: cancel, pause, or nothing.
jobs = Table(
    "jobs",
    metadata,
    Column("number", Id, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(32), nullable=False, index=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("status", String(32), nullable=False, index=True),
    Column("place", String(64), nullable=False),
    Column("wish", String(16), nullable=False),
    Column("created", Float, nullable=False),
    Column("record", Text, nullable=False),  # what else is known of it, in JSON
)

# What happened in jobs, for those who follow them. ``data`` is an object in JSON, or null.
job_events = Table(
    "job_events",
    metadata,
    Column("number", Id, primary_key=True, autoincrement=True),
    Column("job", String(64), nullable=False, index=True),
    Column("time", Float, nullable=False),
    Column("level", String(16), nullable=False),  # info, warn, error
    Column("type", String(16), nullable=False),  # message, metrics
    Column("message", Text, nullable=False),
    Column("data", Text, nullable=False),
)

# What was answered, for those who ask for it again or go on from it. ``input`` and ``body`` are JSON. ``turn`` is the
# server that answers in a conversation: only while that runs.
answers = Table(
    "answers",
    metadata,
    Column("number", Id, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("until", BigInteger, nullable=False, server_default="0"),  # the number of its last item that was answered
    Column("turn", String(32), nullable=False, server_default=""),
    Column("model", String(512), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=True, index=True),
    Column("metadata", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("body", Text, nullable=False),
    Index("ix_answers_owner_kind", "owner", "kind", "number"),
    Index("ix_answers_previous", "previous", "number"),
)
