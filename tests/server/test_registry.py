"""Names, versions and tombstones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.errors import PackageError
from server.errors import InvalidRequestError, UnknownModelError
from server.registry import AdapterKey, AdapterVersion, Registry, VersionState

BASE = "org/base-1"


def version(key: AdapterKey) -> AdapterVersion:
    return AdapterVersion(key=key, path=Path(str(key)), kind="lora", nbytes=1, num_virtual_tokens=0, created=0.0)


def add(registry: Registry, name: str, digest: str = "d") -> AdapterKey:
    key = registry.reserve(name, digest)
    registry.commit(version(key))
    return key


@pytest.fixture
def registry() -> Registry:
    return Registry(BASE)


def test_every_way_to_name_a_model(registry: Registry) -> None:
    key = add(registry, "json")
    assert registry.resolve(BASE) is None
    for model in ("json", "json@1", f"{BASE}:json", f"{BASE}:json@1"):
        assert registry.resolve(model) == key


@pytest.mark.parametrize(
    "model",
    ["", "nobody", "json@2", "json@0", "json@-1", "json@one", "json@" + "9" * 5000, f"{BASE}:", "other:json", "@1"],
)
def test_what_does_not_exist_is_refused_shortly(registry: Registry, model: str) -> None:
    add(registry, "json")
    with pytest.raises(UnknownModelError) as caught:
        registry.resolve(model)
    assert len(str(caught.value)) < 300


def test_a_reserved_version_is_invisible_until_committed(registry: Registry) -> None:
    first = add(registry, "json", "one")
    second = registry.reserve("json", "two")
    assert second.version == 2
    assert registry.resolve("json") == first
    replaced = registry.commit(version(second))
    assert registry.resolve("json") == second
    assert replaced is not None
    assert replaced.key == first


def test_a_new_name_is_invisible_until_committed(registry: Registry) -> None:
    key = registry.reserve("json", "d")
    assert registry.names() == []
    with pytest.raises(UnknownModelError, match="does not exist"):
        registry.resolve("json")
    registry.release(key)
    assert registry.reserve("json", "d").version == 1


def test_a_released_version_leaves_all_as_before(registry: Registry) -> None:
    first = add(registry, "json", "one")
    registry.release(registry.reserve("json", "bad"))
    assert registry.resolve("json") == first
    assert [v.key for v in registry.versions("json")] == [first]


def test_an_older_version_is_named_but_not_served(registry: Registry) -> None:
    first, second = add(registry, "json", "one"), add(registry, "json", "two")
    with pytest.raises(UnknownModelError, match="Version 1 of 'json' is not being served, version 2 is"):
        registry.resolve("json@1")
    assert registry.resolve("json@2") == second
    assert registry.state(first) is VersionState.DRAINING
    registry.drained(first)
    assert registry.state(first) is VersionState.STORED


def test_activating_an_older_version(registry: Registry) -> None:
    first, second = add(registry, "json", "one"), add(registry, "json", "two")
    replaced = registry.activate(first)
    assert replaced is not None
    assert replaced.key == second
    assert registry.resolve("json") == first
    assert registry.live("json").key == first
    assert (registry.state(first), registry.state(second)) == (VersionState.LIVE, VersionState.DRAINING)
    assert add(registry, "json", "three").version == 3


def test_a_removed_name_says_so_until_it_is_added_again(registry: Registry) -> None:
    add(registry, "json")
    add(registry, "json")
    assert [v.key.version for v in registry.remove("json")] == [1, 2]
    assert registry.names() == []
    for call in (registry.resolve, registry.versions, registry.live, registry.remove):
        with pytest.raises(UnknownModelError, match="'json' was removed"):
            call("json")
    failed = registry.reserve("json", "bad")
    registry.release(failed)
    with pytest.raises(UnknownModelError, match="'json' was removed"):
        registry.resolve("json")
    assert add(registry, "json").version == 3


def test_forgetting_one_version(registry: Registry) -> None:
    first = add(registry, "json")
    add(registry, "json")
    registry.forget_version(first)
    with pytest.raises(UnknownModelError, match="no version '1'"):
        registry.version("json", 1)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a@1", "a:b", "é", "a" * 129, "../x"])
def test_bad_names(registry: Registry, name: str) -> None:
    with pytest.raises(PackageError, match="cannot name an adapter"):
        registry.reserve(name, "d")


def test_the_bases_name_is_taken() -> None:
    with pytest.raises(InvalidRequestError, match="name of the base"):
        Registry("base").reserve("base", "d")


async def test_a_lease_pins_what_the_name_meant(registry: Registry) -> None:
    first = add(registry, "json")
    with registry.lease("json") as held, registry.lease(BASE) as base:
        assert (held, base) == (first, None)
        add(registry, "json")
        draining = asyncio.create_task(registry.unused(first))
        await asyncio.sleep(0)
        assert not draining.done()
    await asyncio.wait_for(draining, 10)


def test_keys_read_as_name_and_version() -> None:
    assert str(AdapterKey("json", 3, "d")) == "json@3"
