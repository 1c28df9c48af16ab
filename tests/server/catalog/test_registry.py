"""Names, versions and tombstones."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from adapters.errors import PackageError
from server.adapter_key import AdapterKey
from server.catalog.registry import Registry
from server.catalog.versions import AdapterVersion, VersionHistory, VersionState
from server.errors import ConflictError, EngineUnavailableError, InvalidRequestError, UnknownModelError

BASE = "org/base-1"
T = TypeVar("T")


def version(key: AdapterKey) -> AdapterVersion:
    return AdapterVersion(key=key, path=Path(str(key)), kind="lora", nbytes=1, num_virtual_tokens=0, created=0.0)


def change(registry: Registry, name: str, mutate: Callable[[VersionHistory], T]) -> T:
    """As the catalog would: on a copy, which the registry then adopts."""
    known = registry.history(name) or VersionHistory()
    history = VersionHistory(copy.deepcopy(known.record), known.all(), revision=known.revision + 1)
    result = mutate(history)
    registry.adopt(name, history)
    return result


def add(registry: Registry, name: str, digest: str = "d", *, candidate: bool = False) -> AdapterKey:
    def mutate(history: VersionHistory) -> AdapterKey:
        key = AdapterKey(name, history.reserve(), digest)
        history.add(version(key), candidate=candidate)
        return key

    return change(registry, name, mutate)


def activate(registry: Registry, key: AdapterKey) -> AdapterVersion | None:
    return change(registry, key.name, lambda history: history.activate(key.version))


def forget(registry: Registry, key: AdapterKey) -> None:
    change(registry, key.name, lambda history: history.forget(key.version))


def remove(registry: Registry, name: str) -> list[AdapterVersion]:
    return change(registry, name, lambda history: history.remove())


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
    [
        *(
            "",
            "nobody",
            "json@2",
            "json@0",
            "json@-1",
            "json@one",
            "json@" + "9" * 5000,
            f"{BASE}:",
            "other:json",
            "@1",
        ),
        *("json@01", "json@+1", "json@1 ", "json@ 1", "json@1\n", "json@\uff11", "json@\u0661", "json@1.0", "json@@1"),
    ],
)
def test_what_does_not_exist_is_refused_shortly(registry: Registry, model: str) -> None:
    add(registry, "json")
    with pytest.raises(UnknownModelError) as caught:
        registry.resolve(model)
    assert len(str(caught.value)) < 300


def test_a_reserved_version_is_invisible(registry: Registry) -> None:
    change(registry, "json", lambda history: history.reserve())
    assert registry.names() == registry.known_names() == []
    with pytest.raises(UnknownModelError, match="does not exist"):
        registry.resolve("json")
    assert add(registry, "json").version == 2


def test_a_history_that_others_wrote_takes_the_place_of_the_known_one(registry: Registry) -> None:
    first = add(registry, "json", "one")
    registry.failed(first, "gone")
    history = VersionHistory(revision=9)
    key = AdapterKey("json", history.reserve(), "other")
    history.add(version(key))
    assert registry.knows(first)
    assert not registry.knows(key)
    assert registry.adopt("json", history) == []  # the number is kept, if as another content
    assert registry.resolve("json") == key
    assert (registry.knows(first), registry.knows(key)) == (False, True)


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
    replaced = activate(registry, first)
    assert replaced is not None
    assert replaced.key == second
    assert registry.resolve("json") == first
    assert registry.live("json").key == first
    assert (registry.state(first), registry.state(second)) == (VersionState.LIVE, VersionState.DRAINING)
    assert add(registry, "json", "three").version == 3


def test_a_removed_name_says_so_until_it_is_added_again(registry: Registry) -> None:
    add(registry, "json")
    add(registry, "json")
    assert [v.key.version for v in remove(registry, "json")] == [1, 2]
    assert registry.names() == []
    for call in (registry.resolve, registry.versions, registry.live):
        with pytest.raises(UnknownModelError, match="'json' was removed"):
            call("json")
    change(registry, "json", lambda history: history.release(history.reserve()))
    with pytest.raises(UnknownModelError, match="'json' was removed"):
        registry.resolve("json")
    assert add(registry, "json").version == 3


def test_before_the_catalog_is_read_no_name_is_said_not_to_exist(registry: Registry) -> None:
    add(registry, "a")
    registry.unread_because = "the server is starting"
    assert registry.versions("a")
    for ask in (registry.versions, registry.live, registry.resolve):
        with pytest.raises(EngineUnavailableError, match="is starting"):
            ask("b")


def test_forgetting_one_version(registry: Registry) -> None:
    first = add(registry, "json")
    add(registry, "json")
    forget(registry, first)
    with pytest.raises(UnknownModelError, match="no version '1'"):
        registry.version("json", 1)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a@1", "a:b", "é", "a" * 129, "../x"])
def test_bad_names(registry: Registry, name: str) -> None:
    with pytest.raises(PackageError, match="cannot name an adapter"):
        registry.check_new_name(name)


def test_the_bases_name_is_taken() -> None:
    with pytest.raises(InvalidRequestError, match="name of the base"):
        Registry("base").check_new_name("base")


async def test_a_lease_pins_what_the_name_meant(registry: Registry) -> None:
    first = add(registry, "json")
    with registry.lease("json") as held, registry.lease(BASE) as base:
        assert (held.key, base.key) == (first, None)
        add(registry, "json")
        draining = asyncio.create_task(registry.unused(first))
        await asyncio.sleep(0)
        assert not draining.done()
    await asyncio.wait_for(draining, 10)


async def test_unused_waits_for_the_last_lease(registry: Registry) -> None:
    key = add(registry, "json")
    first, second = registry.lease("json"), registry.lease("json")
    waiting = asyncio.create_task(registry.unused(key))
    first.release()
    first.release()  # counts once
    await asyncio.sleep(0)
    assert not waiting.done()
    second.release()
    await asyncio.wait_for(waiting, 10)


async def test_a_lease_taken_again_meanwhile_is_waited_for(registry: Registry) -> None:
    key = add(registry, "json")
    first = registry.lease("json")
    waiting = asyncio.create_task(registry.unused(key))
    await asyncio.sleep(0)
    first.release()
    second = registry.lease("json")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    second.release()
    await asyncio.wait_for(waiting, 10)


async def test_leases_of_others_do_not_matter(registry: Registry) -> None:
    key, other = add(registry, "json"), add(registry, "other")
    with registry.lease("json"), registry.lease(BASE):
        await asyncio.wait_for(registry.unused(other), 10)
    await asyncio.wait_for(registry.unused(key), 10)


def test_leases_count_what_runs(registry: Registry) -> None:
    key = add(registry, "json")
    with registry.lease("json") as first:
        assert registry.running(key) == 0
        first.sequences = 2
        with registry.lease("json@1") as second, registry.lease(BASE) as base:
            second.sequences, base.sequences = 3, 5
            assert registry.running(key) == 5
        assert registry.running(key) == 2
    assert registry.running(key) == 0


def test_keys_read_as_name_and_version() -> None:
    assert str(AdapterKey("json", 3, "d")) == "json@3"


def wait(registry: Registry, name: str) -> AdapterKey:
    return add(registry, name, "candidate", candidate=True)


def test_a_candidate_answers_to_its_number_only(registry: Registry) -> None:
    live = add(registry, "json")
    key = wait(registry, "json")
    assert registry.resolve("json") == live
    for model in ("json@2", f"{BASE}:json@2"):
        assert registry.resolve(model) == key
    assert registry.state(key) is VersionState.CANDIDATE
    replaced = activate(registry, key)
    assert replaced is not None
    assert replaced.key == live
    assert registry.resolve("json") == registry.resolve("json@2") == key
    with pytest.raises(UnknownModelError, match="Version 1 of 'json' is not being served, version 2 is"):
        registry.resolve("json@1")


def test_a_name_with_only_a_candidate_is_not_served(registry: Registry) -> None:
    key = wait(registry, "json")
    assert (registry.names(), registry.known_names()) == ([], ["json"])
    assert registry.resolve("json@1") == key
    for call in (registry.resolve, registry.live, registry.before):
        with pytest.raises(UnknownModelError, match=r"not served yet: version 1 is a candidate \(ask for json@1\)"):
            call("json")
    assert activate(registry, key) is None
    assert registry.resolve("json") == key


def test_a_discarded_candidate_is_gone(registry: Registry) -> None:
    forget(registry, wait(registry, "json"))
    for model in ("json", "json@1"):
        with pytest.raises(UnknownModelError, match="does not exist"):
            registry.resolve(model)
    assert wait(registry, "json").version == 2  # a number means one content for ever


def test_a_removed_name_stays_removed_beside_a_candidate(registry: Registry) -> None:
    add(registry, "json")
    remove(registry, "json")
    key = wait(registry, "json")
    with pytest.raises(UnknownModelError, match="not served yet"):
        registry.resolve("json")
    forget(registry, key)
    with pytest.raises(UnknownModelError, match="'json' was removed"):
        registry.resolve("json")


def test_candidates_are_bounded_over_all_names_and_count_while_they_load() -> None:
    registry = Registry(BASE, max_candidates=2)
    first = wait(registry, "a")
    with registry.room("b"):
        with (
            pytest.raises(ConflictError, match=r"2 candidates are resident, the limit .*: a@1, b\. Activate") as caught,
            registry.room("c"),
        ):
            raise AssertionError("there is no room")
        assert caught.value.code == "too_many_candidates"
    assert registry.known_names() == ["a"]
    add(registry, "b")  # what goes live at once is no candidate
    wait(registry, "c")
    activate(registry, first)
    wait(registry, "d")
    with pytest.raises(ConflictError), registry.room("a"):
        raise AssertionError("there is no room")


async def test_what_a_request_holds_stays_known_until_it_is_deleted(registry: Registry) -> None:
    first, second = add(registry, "json"), add(registry, "json")
    forget(registry, first)
    remove(registry, "json")
    assert [registry.leased(key).key for key in (first, second)] == [first, second]
    for key in (first, second):
        registry.deleted(key)
        with pytest.raises(UnknownModelError):
            registry.leased(key)


def test_counts(registry: Registry) -> None:
    for put in (add, add, wait):
        put(registry, "a")
    wait(registry, "b")
    assert registry.counts() == {VersionState.LIVE: 1, VersionState.DRAINING: 1, VersionState.CANDIDATE: 2}
