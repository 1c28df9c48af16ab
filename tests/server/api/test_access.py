from __future__ import annotations

from typing import Any

import pytest

from server.api.access import Access
from server.catalog.keys import KeyRecord, KeyRing, Scope, new_key, revoked
from server.errors import OpenServerError
from server.settings import ServerConfig

NOW = 1_900_000_000.0


def key(scope: Scope) -> KeyRecord:
    return new_key("n", [scope], now=NOW)[0]


def access(*records: KeyRecord, **config: Any) -> Access:
    ring = KeyRing()
    ring.adopt(records)
    return Access(ServerConfig.model_validate(config), ring)


INFERENCE, ADMIN, READER = map(key, (Scope.INFERENCE, Scope.ADMIN, Scope.READ_ONLY))
FLAGS: dict[str, Any] = {"api": {"api_key": "sk"}, "admin": {"admin_key": "root"}}


@pytest.mark.parametrize(
    ("records", "flags", "inference_is_open", "admin_is_open", "has_admin_keys"),
    [
        ([], {}, True, True, False),
        ([], FLAGS["api"], False, False, False),
        ([], FLAGS["admin"], True, False, True),
        ([INFERENCE], {}, False, False, False),
        ([ADMIN], {}, True, False, True),
        ([READER], {}, True, False, False),
        ([INFERENCE, ADMIN], {}, False, False, True),
        ([INFERENCE], FLAGS["admin"], False, False, True),
        ([revoked(INFERENCE, now=NOW)], {}, False, False, False),
        ([revoked(ADMIN, now=NOW)], {}, True, False, True),
    ],
)
def test_what_is_open_on_this_machine(
    records: list[KeyRecord], flags: dict[str, Any], inference_is_open: bool, admin_is_open: bool, has_admin_keys: bool
) -> None:
    found = access(*records, **flags)
    assert found.inference_is_open == inference_is_open
    assert found.admin_is_open == admin_is_open
    assert found.has_admin_keys == has_admin_keys
    found.check()


def test_keys_of_the_catalog_let_a_server_listen_to_others() -> None:
    with pytest.raises(OpenServerError, match=r"--admin-key .*hotswap keys create"):
        access(host="0.0.0.0").check()
    for found in (access(ADMIN, host="0.0.0.0"), access(host="0.0.0.0", admin_key="k"), access(INFERENCE, host="::")):
        found.check()
        assert not found.admin_is_open


def test_where_others_connect_nothing_is_open_without_any_key() -> None:
    """The last key was forgotten while the server ran."""
    found = access(host="0.0.0.0")
    assert not found.inference_is_open
    assert not found.admin_is_open


def test_as_long_as_the_catalog_is_not_known_nothing_is_open() -> None:
    found = Access(ServerConfig(), KeyRing())
    assert not found.inference_is_open
    assert not found.admin_is_open
