"""Packages between quarantine and their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.archive import pack
from adapters.errors import PackageError
from server.store import AdapterStore


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store").rglob("*") if path.name not in ("quarantine", "adapters")]


def test_a_directory_is_copied_and_adopted(store: AdapterStore, tiny_adapters: dict[str, Path], tmp_path: Path) -> None:
    source = tiny_adapters["lora-r4"]
    package = store.bring_in(source)
    place = store.adopt(package, "ab" * 32)
    store.discard(package)
    assert place.parent == tmp_path / "store" / "adapters"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (place / name).read_bytes() == (source / name).read_bytes()
    assert not (place / "README.md").exists()
    store.delete(place)
    store.delete(place)
    assert leftovers(tmp_path) == []


def test_an_archive_is_unpacked(store: AdapterStore, tiny_adapters: dict[str, Path], tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    pack(tiny_adapters["lora-r4"], archive)
    package = store.bring_in(archive)
    assert (package / "adapter_config.json").is_file()
    store.discard(package)
    assert leftovers(tmp_path) == []


def test_equal_content_never_shares_a_place(store: AdapterStore, tiny_adapters: dict[str, Path]) -> None:
    first, second = (store.adopt(store.bring_in(tiny_adapters["lora-r4"]), "ab" * 32) for _ in range(2))
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
        store.adopt(outside, "ab" * 32)
    assert outside.is_dir()


def test_a_new_server_clears_the_quarantine_of_the_last(store: AdapterStore, tmp_path: Path) -> None:
    upload = store.new_quarantine()
    (upload / "half").write_text("an upload")
    AdapterStore(tmp_path / "store")
    assert leftovers(tmp_path) == []
