"""API keys as records: what each may do, and whether it may still. The key itself is shown once and kept nowhere.

A key is 256 random bits, of which the SHA-256 digest is kept: there is nothing to guess, so the digest needs no salt.
Plain data and its changes; knows no database and no requests.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec

from server.errors import ConflictError, InvalidRequestError
from server.limits import Limits

PREFIX = "hs-"
SECRET_BYTES = 32
SHOWN_CHARS = 4  # of a key's end, by which a person tells keys apart
KEY_PATTERN = re.compile(r"hs-[A-Za-z0-9_-]{43}")
MAX_PATTERNS = 256
MAX_STARS = 2  # of one pattern: the time to match grows with the length of a name to their power
MAX_ADAPTER = 128  # characters of an adapter's name
MAX_NAME = 128
_PATTERN = re.compile(r"[A-Za-z0-9._:*-]{1,128}")


class Scope(StrEnum):
    """What a key is for. ``admin`` includes the others; ``read-only`` looks, and infers nothing.

    ``fine-tuning`` trains models, by jobs and the files for them.
    """

    INFERENCE = "inference"
    ADMIN = "admin"
    READ_ONLY = "read-only"
    FINE_TUNING = "fine-tuning"


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of one key. Times are Unix seconds.

    ``adapters`` are the names, or patterns such as ``team-a-*``, that exist for its holder; None: all do. ``base``: so
    does the base. ``digest`` is that of the secret in hexadecimal, ``hint`` the secret's last characters. The secret
    before the last rotation, ``old_digest``, is good until ``old_until``.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    digest: str
    hint: str
    created: float
    adapters: tuple[str, ...] | None = None
    base: bool = True
    limits: Limits = Limits()
    expires: float | None = None
    revoked: float | None = None
    rotated: float | None = None
    old_digest: str | None = None
    old_until: float | None = None

    def state(self, now: float) -> KeyState:
        """Whether the key is good at ``now``."""
        if self.revoked is not None:
            return KeyState.REVOKED
        return KeyState.EXPIRED if self.expires is not None and self.expires <= now else KeyState.ACTIVE

    def grants(self, *scopes: Scope) -> bool:
        """Whether it may do what one of ``scopes`` stands for."""
        return Scope.ADMIN in self.scopes or any(scope in self.scopes for scope in scopes)

    def administers(self, now: float) -> bool:
        """Whether it is an admin's of the whole server, and good at ``now``."""
        return Scope.ADMIN in self.scopes and self.adapters is None and self.state(now) is KeyState.ACTIVE


def allows(patterns: tuple[str, ...] | None, name: str) -> bool:
    """Whether one of ``patterns`` is ``name``, a ``*`` in it standing for any characters; None allows all."""
    return patterns is None or (len(name) <= MAX_ADAPTER and _expression(patterns).fullmatch(name) is not None)


def as_expression(patterns: tuple[str, ...]) -> str:
    """``patterns`` as one regular expression, which Python and PostgreSQL read alike."""
    return "|".join(f"(?:{'[^/]*'.join(map(re.escape, pattern.split('*')))})" for pattern in patterns) or "(?!)"


@lru_cache(maxsize=1024)
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(as_expression(patterns))


def check_patterns(patterns: Collection[str]) -> tuple[str, ...]:
    """``patterns``, each once. Raises ValueError for one that no adapter's name could match."""
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"at most {MAX_PATTERNS} names or patterns are allowed")
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(
                f"{pattern[:60]!a} is neither a name nor a pattern: use letters, digits, '.', '_', '-', ':', and '*' "
                "for any characters"
            )
        if pattern.count("*") > MAX_STARS:
            raise ValueError(f"{pattern[:60]!a} has more than {MAX_STARS} stars")
    return tuple(dict.fromkeys(patterns))


def check_label(name: str) -> str:
    """A key's name, without space around it. Raises ValueError for one that a table could not show."""
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"must be 1 to {MAX_NAME} printable characters")
    if KEY_PATTERN.search(name):
        raise ValueError("is a key; give a name that may be shown")
    return name


# ---- changes ----


def digest_of(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).hexdigest()


def new_key(
    name: str,
    scopes: Iterable[Scope],
    *,
    now: float,
    adapters: Collection[str] | None = None,
    base: bool = True,
    limits: Limits | None = None,
    expires: float | None = None,
) -> tuple[KeyRecord, str]:
    """A key and its secret, which is told to nobody again. Raises InvalidRequestError."""
    secret = _secret()
    record = KeyRecord(
        id=f"key_{secrets.token_hex(6)}",
        name=name,
        scopes=tuple(sorted(set(scopes))),
        digest=digest_of(secret),
        hint=secret[-SHOWN_CHARS:],
        created=now,
        adapters=None if adapters is None else tuple(adapters),
        base=base,
        limits=limits or Limits(),
        expires=expires,
    )
    check_record(record, now)
    return record, secret


def check_record(record: KeyRecord, now: float) -> None:
    """Raise InvalidRequestError for a record that makes no sense."""
    param = "name"
    try:
        check_label(record.name)
        param = "adapters"
        check_patterns(record.adapters or ())
    except ValueError as error:
        raise InvalidRequestError(f"{param}: {error}", param=param) from error
    if not record.scopes:
        raise InvalidRequestError(f"scopes: give at least one of {', '.join(Scope)}", param="scopes")
    for field in Limits.__struct_fields__:
        most, least = getattr(record.limits, field), int(field != "max_queue")
        if most is not None and most < least:
            raise InvalidRequestError(f"limits.{field}: must be at least {least}", param=f"limits.{field}")
    if record.expires is not None and record.expires <= now:
        raise InvalidRequestError("expires: must be in the future; to end a key now, revoke it", param="expires")


def updated(record: KeyRecord, fields: Mapping[str, Any], *, now: float) -> KeyRecord:
    """``record`` with ``fields``, of ``limits`` those that are given (None: the defaults).

    Raises InvalidRequestError, or ConflictError for a key that was revoked.
    """
    if record.revoked is not None:
        raise ConflictError(f"the key {record.id} is revoked; create another", code="key_not_active")
    changes = dict(fields)
    if "scopes" in changes:
        changes["scopes"] = tuple(sorted(set(map(Scope, changes["scopes"]))))
    if changes.get("adapters") is not None:
        changes["adapters"] = tuple(changes["adapters"])
    if "limits" in changes:
        given = changes["limits"]
        changes["limits"] = Limits() if given is None else msgspec.structs.replace(record.limits, **given)
    changed = msgspec.structs.replace(record, **changes)
    if changed != record:
        check_record(changed, now if "expires" in changes else 0.0)
    return changed


def rotated(record: KeyRecord, *, now: float, grace: float = 0.0) -> tuple[KeyRecord, str]:
    """``record`` with a new secret; the old one is good for ``grace`` seconds more, any older one no longer.

    Raises ConflictError for a key that is not good itself.
    """
    if record.state(now) is not KeyState.ACTIVE:
        raise ConflictError(f"the key {record.id} is {record.state(now)}; create another", code="key_not_active")
    secret = _secret()
    changed = msgspec.structs.replace(
        record,
        digest=digest_of(secret),
        hint=secret[-SHOWN_CHARS:],
        rotated=now,
        old_digest=record.digest if grace > 0 else None,
        old_until=now + grace if grace > 0 else None,
    )
    return changed, secret


def revoked(record: KeyRecord, *, now: float) -> KeyRecord:
    """``record``, which opens nothing any more. Of one that was revoked before the time stays."""
    if record.revoked is not None:
        return record
    return msgspec.structs.replace(record, revoked=now, old_digest=None, old_until=None)


def check_admin_left(records: Iterable[KeyRecord], now: float) -> None:
    """Raise ConflictError unless one of ``records`` opens the whole admin API: nobody could undo the change."""
    if not any(record.administers(now) for record in records):
        raise ConflictError(
            "no admin key for all adapters would be left, and from its first key on the server asks for one: create "
            "such a key first (or start the server with --admin-key)",
            code="no_admin_key_left",
        )


def _secret() -> str:
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def without_keys(text: str) -> str:
    """``text`` with whatever looks like a key cut down to what may be shown of it."""
    return KEY_PATTERN.sub(lambda found: f"{PREFIX}...{found[0][-SHOWN_CHARS:]}", text) if PREFIX in text else text


def key_data(record: KeyRecord, last_used: float | None, now: float, secret: str | None = None) -> dict[str, Any]:
    """What is told of a key, as plain data; with its ``secret`` just after that was made."""
    in_grace = record.old_until is not None and record.old_until > now
    data = {
        "object": "key",
        "id": record.id,
        "name": record.name,
        "hint": f"{PREFIX}...{record.hint}",
        "state": record.state(now).value,
        "scopes": [scope.value for scope in record.scopes],
        "adapters": None if record.adapters is None else list(record.adapters),
        "base": record.base,
        "limits": {name: getattr(record.limits, name) for name in Limits.__struct_fields__},
        "created": int(record.created),
        "expires": _whole(record.expires),
        "last_used": _whole(last_used),
        "rotated": _whole(record.rotated),
        "old_secret_until": _whole(record.old_until) if in_grace else None,
        "revoked": _whole(record.revoked),
    }
    return data if secret is None else {**data, "key": secret}


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)


# ---- what requests ask ----


class KeyRing:
    """All keys of a catalog as requests ask for them, in memory. ``adopt`` replaces them in one assignment.

    They are found by their digest: where a comparison ends tells a client something of a digest at most, and nobody can
    make a key of that, for keys are random. (Keys of flags may be words, and are all compared: see server.api.auth.)
    """

    def __init__(self) -> None:
        self._known = False
        self._by_digest: dict[str, KeyRecord] = {}
        self._by_id: dict[str, KeyRecord] = {}

    def adopt(self, records: Iterable[KeyRecord]) -> None:
        """Answer from now on by ``records``."""
        by_id = {record.id: record for record in records}
        by_digest = {record.old_digest: record for record in by_id.values() if record.old_digest is not None}
        by_digest |= {record.digest: record for record in by_id.values()}
        self._by_id, self._by_digest, self._known = by_id, by_digest, True

    @property
    def is_known(self) -> bool:
        """Whether the catalog's keys have been read."""
        return self._known

    @property
    def is_empty(self) -> bool:
        """Whether there is no key, good or not; as long as nothing is known of the catalog's, there may be some."""
        return self._known and not self._by_id

    def all(self) -> list[KeyRecord]:
        """Every record, oldest first."""
        return sorted(self._by_id.values(), key=lambda record: (record.created, record.id))

    def get(self, id: str) -> KeyRecord | None:
        """The key of that id."""
        return self._by_id.get(id)

    def has(self, scope: Scope) -> bool:
        """Whether there is a key for ``scope``, good or not: that the last one ended must open nothing."""
        return not self._known or any(scope in record.scopes for record in self._by_id.values())

    def find(self, digest: str, now: float) -> KeyRecord | None:
        """The record of a secret, good or not; None for a secret that is nobody's any more."""
        record = self._by_digest.get(digest)
        if record is None or hmac.compare_digest(record.digest, digest):
            return record
        return record if record.old_until is not None and record.old_until > now else None
