"""Packages that are kept in an object store, the copies of them here, and servers that share both."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters.errors import PackageChangedError, PackageError
from server.catalog.store import AdapterStore, ObjectStore
from server.errors import BudgetError, StoreError
from tests.server.catalog.spoil import flip_a_bit

WEIGHTS = "adapter_model.safetensors"


class Shared:
    """An object store, and servers with data directories of their own or one together."""

    def __init__(self, root: Path) -> None:
        self.url = f"memory://{secrets.token_hex(8)}"
        self.root = root
        self.artifacts = ObjectStore(self.url)

    def server(self, folder: str = "a", **settings: object) -> AdapterStore:
        return AdapterStore(self.root / folder, artifacts=ObjectStore(self.url), **settings)  # type: ignore[arg-type]


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


def adopt(store: AdapterStore, source: Path) -> Path:
    return store.adopt(store.stage_copy(source))


def test_what_one_server_adopts_another_one_reads(shared: Shared, tiny_adapters: Mapping[str, Path]) -> None:
    source = tiny_adapters["lora-r4"]
    first, second, beside = shared.server(), shared.server("b"), shared.server()
    place = adopt(first, source)
    assert first.packages() == second.packages() == {place.name: sum(f.stat().st_size for f in place.iterdir())}
    for other in (second, beside):
        copy = other.place(place.name)
        assert not copy.exists()
        other.fetch(copy)
        assert (copy / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    second.delete(second.place(place.name))
    assert first.packages() == {}
    assert place.is_dir(), "who serves it goes on"
    shutil.rmtree(place)
    with pytest.raises(PackageError, match="gone from the store"):
        first.fetch(place)


def test_copies_that_are_not_needed_make_room(shared: Shared, tiny_adapters: Mapping[str, Path]) -> None:
    weight = sum(f.stat().st_size for f in adopt(shared.server("other"), tiny_adapters["lora-r4"]).iterdir())
    resident: list[Path] = []
    store = shared.server(max_cached_bytes=int(3.5 * weight), in_use=lambda: resident)
    places = [adopt(store, tiny_adapters["lora-r4"]) for _ in range(3)]
    for age, place in enumerate(places):
        os.utime(place, (1000 + age, 1000 + age))
    resident.append(places[0])
    store.fetch(places[1])  # used again, so the third is the oldest but for the one in use
    places.append(adopt(store, tiny_adapters["lora-r4"]))
    assert [place.is_dir() for place in places] == [True, True, False, True]
    with store.held(places[3]), store.held(places[1]):
        store.fetch(places[2])
        assert [place.is_dir() for place in places] == [True] * 4, "more than there is room for, but all in use"
    store.close()
    again = shared.server(max_cached_bytes=int(1.5 * weight))
    for place in places:
        again.fetch(place)
        assert place.is_dir()
    assert len(again.packages()) == 5
    assert [place.is_dir() for place in places] == [False, False, False, True]


def test_a_copy_that_is_damaged_is_fetched_again(shared: Shared, tiny_adapters: Mapping[str, Path]) -> None:
    store = shared.server()
    place = adopt(store, tiny_adapters["lora-r4"])
    assert not store.mend(place)
    for spoil in (flip_a_bit, shutil.rmtree, lambda path: (path / WEIGHTS).unlink()):
        spoil(place)
        assert store.mend(place)
        assert (place / WEIGHTS).read_bytes() == (tiny_adapters["lora-r4"] / WEIGHTS).read_bytes()
    weights = f"{shared.artifacts._root}/packages/{place.name}/{WEIGHTS}"
    shared.artifacts._files._fs.pipe_file(weights, b"something else")
    shutil.rmtree(place)
    for call in (store.fetch, store.mend):
        with pytest.raises(PackageChangedError):
            call(place)
        assert not place.exists()


def test_all_packages_count_whoever_brought_them(shared: Shared, tiny_adapters: Mapping[str, Path]) -> None:
    first = shared.server()
    weight = sum(f.stat().st_size for f in adopt(first, tiny_adapters["lora-r4"]).iterdir())
    second = shared.server("b", max_bytes=2 * weight)
    third = adopt(second, tiny_adapters["lora-r4"])
    with pytest.raises(BudgetError):
        adopt(second, tiny_adapters["lora-r4"])
    first.delete(first.place(third.name))
    adopt(second, tiny_adapters["lora-r4"])


@pytest.mark.parametrize("step", ["put", "put of the mark", "cache", "remove"])
def test_what_a_killed_server_left_half_done_is_deleted_as_a_whole(
    shared: Shared, tiny_adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    def kill(*args: object, **options: object) -> None:
        monkeypatch.setattr(ObjectStore, "remove", kill)  # nothing more is done
        raise Killed

    store, name = shared.server(), "c" * 32
    kept = adopt(store, tiny_adapters["lora-r4"])
    method = {"put": "put_file", "put of the mark": "pipe_file", "remove": "rm"}.get(step)
    package = store.stage_copy(tiny_adapters["lora-r8"])
    if step == "remove":
        store.adopt(package, name)
    place: object = store._cache if method is None else store._artifacts._files._fs  # type: ignore[union-attr]
    monkeypatch.setattr(place, method or "put", kill)
    with pytest.raises(Killed):
        store.delete(store.place(name)) if step == "remove" else store.adopt(package, name)
    monkeypatch.undo()
    store.close()
    again = shared.server()
    assert set(again.packages()) == ({kept.name, name} if step == "cache" else {kept.name})
    again.delete(again.place(name))
    assert list(again.packages()) == [kept.name]
    assert all(kept.name in file for file in shared.artifacts._files._fs.find(shared.artifacts._root))
    assert list((shared.root / "a" / "quarantine" / "0").iterdir()) == []


def test_a_disk_that_takes_nothing_keeps_nothing_there_either(
    shared: Shared, tiny_adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shared.server()

    def fail(package: Path, place: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._cache, "put", fail)
    with pytest.raises(StoreError, match="--data-dir more room"):
        adopt(store, tiny_adapters["lora-r4"])
    assert store.packages() == {}


def test_packages_of_before_the_object_store_stay_where_they_are(
    shared: Shared, tiny_adapters: Mapping[str, Path]
) -> None:
    before = AdapterStore(shared.root / "a")
    old = adopt(before, tiny_adapters["lora-r4"])
    before.close()
    store = shared.server()
    new = adopt(store, tiny_adapters["lora-r4"])
    assert store.place(old.name) == old
    assert set(store.packages()) == {old.name, new.name}
    store.fetch(old)
    assert not store.mend(old)
    for place in (old, new):
        store.delete(place)
        assert not place.exists()
    assert store.packages() == {}


def test_servers_that_share_a_disk(tmp_path: Path, tiny_adapters: Mapping[str, Path]) -> None:
    first, second = AdapterStore(tmp_path), AdapterStore(tmp_path)
    mine, other = adopt(first, tiny_adapters["lora-r4"]), adopt(second, tiny_adapters["lora-r4"])
    assert set(first.packages()) == set(second.packages()) == {mine.name, other.name}
    upload = first.new_quarantine()
    second.close()
    third = AdapterStore(tmp_path)
    assert upload.is_dir()
    third.delete(mine)
    first.delete(mine)
    assert list(first.packages()) == [other.name]
    limited = AdapterStore(tmp_path, max_bytes=1 + sum(f.stat().st_size for f in other.iterdir()))
    with pytest.raises(BudgetError):
        adopt(limited, tiny_adapters["lora-r4"])
    first.delete(other)
    adopt(limited, tiny_adapters["lora-r4"])


def test_the_id_may_be_chosen_before(tmp_path: Path, tiny_adapters: Mapping[str, Path]) -> None:
    store = AdapterStore(tmp_path)
    place = store.adopt(store.stage_copy(tiny_adapters["lora-r4"]), "c" * 32)
    assert place == store.place("c" * 32)
    assert list(store.packages()) == ["c" * 32]
