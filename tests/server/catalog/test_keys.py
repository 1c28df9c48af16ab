from __future__ import annotations

import re
import time

import msgspec
import pytest

from server.catalog.keys import (
    KEY_PATTERN,
    KeyRecord,
    KeyRing,
    KeyState,
    Scope,
    allows,
    as_expression,
    check_admin_left,
    check_label,
    check_patterns,
    digest_of,
    new_key,
    revoked,
    rotated,
    without_keys,
)
from server.errors import ConflictError, InvalidRequestError
from server.limits import Limits

NOW = 1_900_000_000.0


def key(*scopes: Scope, **fields: object) -> tuple[KeyRecord, str]:
    return new_key("a key", scopes or (Scope.INFERENCE,), now=NOW, **fields)  # type: ignore[arg-type]


def ring_of(records: list[KeyRecord]) -> KeyRing:
    ring = KeyRing()
    ring.adopt(records)
    return ring


def test_a_record_holds_nothing_of_the_secret_but_its_end() -> None:
    record, secret = key()
    kept = msgspec.json.encode(record).decode()
    assert KEY_PATTERN.fullmatch(secret)
    assert secret not in kept
    assert secret[3:20] not in kept
    assert record.hint == secret[-4:]
    assert record.digest == digest_of(f" {secret}\n"), "as a file or a header may hold it"


def test_secrets_and_ids_differ() -> None:
    made = [key() for _ in range(200)]
    assert len({secret for _, secret in made}) == len({record.id for record, _ in made}) == 200


@pytest.mark.parametrize(
    ("patterns", "names", "others"),
    [
        (None, ["a", "", "x-y"], []),
        ((), [], ["a", ""]),
        (("team-a-*",), ["team-a-x", "team-a-"], ["team-b-x", "team-a", "xteam-a-x", "Team-a-x"]),
        (("a", "b.c"), ["a", "b.c"], ["aa", "bxc", "b", "A", "a\n", "a@1"]),
        (("*-prod", "x*y*z"), ["a-prod", "-prod", "xyz", "x1y2z"], ["a-prod-", "xzy", "xy", "x" * 129 + "-prod"]),
        (("*",), ["a", "b"], []),
        (("a_b", "a%"[:1]), ["a_b", "a"], ["axb", "a%"]),
    ],
)
def test_patterns(patterns: tuple[str, ...] | None, names: list[str], others: list[str]) -> None:
    assert [allows(patterns, name) for name in names + others] == [True] * len(names) + [False] * len(others)
    if patterns is not None:
        expression = re.compile(f"^(?:{as_expression(patterns)})$")
        assert [bool(expression.search(name)) for name in names] == [True] * len(names)


@pytest.mark.parametrize("pattern", ["", "a b", "a/b", "a?", "[a]", "a@1", "x" * 129, "a\n", "*a*a*", "ä"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|stars"):
        check_patterns([pattern])


def test_patterns_are_kept_once_and_bounded() -> None:
    assert check_patterns(["b", "a", "b"]) == ("b", "a")
    with pytest.raises(ValueError, match="at most 256"):
        check_patterns([f"n{i}" for i in range(257)])


def test_matching_takes_no_time_to_speak_of() -> None:
    patterns = check_patterns([f"*a*a{i}" for i in range(256)])
    began = time.process_time()
    assert not allows(patterns, "a" * 128)
    assert not allows(patterns, "a" * 100_000)
    assert time.process_time() - began < 1.0  # 20 ms measured


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 129, "\x00", "hs-" + "k" * 43])
def test_what_cannot_name_a_key(name: str) -> None:
    with pytest.raises(ValueError, match=r"printable|is a key"):
        check_label(name)


def test_a_key_ends_when_it_expires_or_is_revoked() -> None:
    record, _ = key(expires=NOW + 10)
    assert [record.state(NOW + t) for t in (0, 9.9, 10, 99)] == [KeyState.ACTIVE] * 2 + [KeyState.EXPIRED] * 2
    ended = revoked(record, now=NOW + 1)
    assert ended.state(NOW) is KeyState.REVOKED
    assert revoked(ended, now=NOW + 5) == ended, "the time of the first revocation stays"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"expires": NOW}, "expires"), ({"adapters": ["a b"]}, "adapters"), ({"expires": 0.0}, "expires")],
)
def test_keys_that_make_no_sense(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        key(**fields)
    assert refused.value.param == param


def test_a_key_without_scopes_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least one"):
        new_key("n", (), now=NOW)


def test_admin_includes_the_other_scopes_and_they_include_nothing() -> None:
    admin, reader = key(Scope.ADMIN)[0], key(Scope.READ_ONLY)[0]
    assert all(admin.grants(scope) for scope in Scope)
    assert [reader.grants(scope) for scope in Scope] == [False, False, True, False]
    assert not key(Scope.INFERENCE)[0].grants(Scope.ADMIN, Scope.READ_ONLY)


# ---- rotation ----


def test_rotation_ends_the_old_secret_at_once_or_after_its_grace() -> None:
    record, old = key()
    at_once, new = rotated(record, now=NOW)
    ring = ring_of([at_once])
    assert ring.find(digest_of(new), NOW) == at_once
    assert ring.find(digest_of(old), NOW) is None
    graced, new = rotated(record, now=NOW, grace=60)
    ring = ring_of([graced])
    assert [ring.find(digest_of(old), NOW + t) is not None for t in (0, 59, 60)] == [True, True, False]
    assert ring.find(digest_of(new), NOW + 99) == graced
    assert graced.id == record.id


def test_a_second_rotation_ends_the_grace_of_the_first() -> None:
    record, oldest = key()
    once, middle = rotated(record, now=NOW, grace=1000)
    twice, newest = rotated(once, now=NOW + 1, grace=1000)
    ring = ring_of([twice])
    assert [ring.find(digest_of(secret), NOW + 2) is not None for secret in (oldest, middle, newest)] == [
        False,
        True,
        True,
    ]
    leaked = ring_of([rotated(twice, now=NOW + 3)[0]])
    assert all(leaked.find(digest_of(secret), NOW + 3) is None for secret in (oldest, middle, newest))


def test_revoking_ends_a_grace_too() -> None:
    record, old = key()
    graced, _ = rotated(record, now=NOW, grace=1000)
    assert ring_of([revoked(graced, now=NOW)]).find(digest_of(old), NOW) is None


@pytest.mark.parametrize("ended", [{"expires": NOW + 1}, {"revoked": NOW}])
def test_keys_that_ended_are_not_rotated(ended: dict[str, float]) -> None:
    record = msgspec.structs.replace(key()[0], **ended)
    with pytest.raises(ConflictError, match=r"expired|revoked"):
        rotated(record, now=NOW + 1)


# ---- the ring ----


def test_a_ring_finds_nothing_but_whole_secrets() -> None:
    (record, secret), (other, _) = key(), key(Scope.ADMIN)
    ring = ring_of([record, other])
    assert ring.find(digest_of(secret), NOW) == record
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), record.digest, record.id):
        assert ring.find(digest_of(wrong), NOW) is None
    assert ring.find(secret, NOW) is None


def test_a_scope_stays_closed_when_its_last_key_has_ended() -> None:
    record, _ = key(Scope.INFERENCE, expires=NOW + 1)
    for ended in (record, revoked(record, now=NOW)):
        assert ring_of([ended]).has(Scope.INFERENCE)
    assert not ring_of([record]).has(Scope.ADMIN)
    assert not ring_of([]).has(Scope.INFERENCE)


def test_as_long_as_the_catalog_is_not_known_all_is_closed() -> None:
    assert KeyRing().has(Scope.INFERENCE)
    assert not KeyRing().is_empty
    assert ring_of([]).is_empty


def test_some_admin_key_must_be_left() -> None:
    admin = key(Scope.ADMIN)[0]
    check_admin_left([key()[0], admin], NOW)
    for poor in (
        key()[0],
        key(Scope.ADMIN, adapters=["*"])[0],
        revoked(admin, now=NOW),
        key(Scope.ADMIN, expires=NOW + 1)[0],
    ):
        with pytest.raises(ConflictError, match="no admin key"):
            check_admin_left([poor], NOW + 2)


def test_texts_are_cleaned_of_keys() -> None:
    secret = key()[1]
    cleaned = without_keys(f"GET /v1/keys/{secret} 404, {secret}x")
    assert secret not in cleaned
    assert secret[:20] not in cleaned
    assert f"hs-...{secret[-4:]}" in cleaned
    assert without_keys("hs-short, this-hs-word") == "hs-short, this-hs-word"


def test_records_come_back_as_they_were() -> None:
    record = key(
        Scope.ADMIN, Scope.READ_ONLY, adapters=["a-*"], base=False, limits=Limits(max_queue=3), expires=NOW + 9
    )[0]
    record = rotated(record, now=NOW, grace=5)[0]
    assert msgspec.json.decode(msgspec.json.encode(record), type=KeyRecord) == record
