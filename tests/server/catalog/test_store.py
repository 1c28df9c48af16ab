"""Packages between quarantine and their place."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters.errors import PackageError
from adapters.package.archive import pack
from server.catalog.store import AdapterStore
from server.errors import EngineStartError


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")  # its lock goes with the process, its folder with the test


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store").rglob("*") if path.name not in ("quarantine", "packages", "lock")]


def test_a_directory_is_copied_and_adopted(
    store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    source = tiny_adapters["lora-r4"]
    package = store.bring_in(source)
    place = store.adopt(package)
    store.discard(package)
    assert place.parent == tmp_path / "store" / "packages"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (place / name).read_bytes() == (source / name).read_bytes()
    assert not (place / "README.md").exists()
    store.delete(place)
    store.delete(place)
    assert leftovers(tmp_path) == []


def test_an_archive_is_unpacked(store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    pack(tiny_adapters["lora-r4"], archive)
    package = store.bring_in(archive)
    assert (package / "adapter_config.json").is_file()
    store.discard(package)
    assert leftovers(tmp_path) == []


def test_equal_content_never_shares_a_place(store: AdapterStore, tiny_adapters: Mapping[str, Path]) -> None:
    first, second = (store.adopt(store.bring_in(tiny_adapters["lora-r4"])) for _ in range(2))
    assert first != second


def test_what_cannot_be_brought_in_leaves_nothing(store: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("no archive")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"")
    for source, reason in (("missing", "neither"), ("junk", "not an archive"), ("pickled", "pickle")):
        with pytest.raises(PackageError, match=reason):
            store.bring_in(tmp_path / source)
    assert leftovers(tmp_path) == []


def test_files_outside_are_never_touched(store: AdapterStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(ValueError, match="outside"):
        store.discard(outside)
    with pytest.raises(AssertionError):
        store.delete(outside)
    with pytest.raises(AssertionError):
        store.adopt(outside)
    assert outside.is_dir()


def test_a_new_server_clears_what_the_last_one_left(
    store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    upload = store.new_quarantine()
    (upload / "half").write_text("an upload")
    kept, lost = (store.adopt(store.bring_in(tiny_adapters["lora-r4"])) for _ in range(2))
    strange = tmp_path / "store" / "packages" / "mine"
    strange.mkdir()
    store.close()
    AdapterStore(tmp_path / "store").sweep([kept])
    assert kept.is_dir()
    assert strange.is_dir()
    assert not lost.exists()
    assert not upload.exists()


def test_two_servers_cannot_share_a_folder(store: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="in use by another server; give this one its own --data-dir"):
        AdapterStore(tmp_path / "store")
    store.close()
    AdapterStore(tmp_path / "store").close()


def test_another_thread_may_close_the_store(store: AdapterStore, tmp_path: Path) -> None:
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join()
    AdapterStore(tmp_path / "store").close()


def test_a_folder_that_cannot_be_made_is_a_start_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineStartError, match="cannot keep adapters in"):
        AdapterStore(tmp_path / "file")
