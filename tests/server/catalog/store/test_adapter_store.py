"""Packages between quarantine and their place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters.errors import PackageError
from adapters.package.archive import pack
from adapters.package.files import PACKAGE_FILES, sync
from server.catalog.store import AdapterStore, disk_errors
from server.errors import BudgetError, EngineStartError, StoreError, StoreFullError


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")  # its lock goes with the process, its folder with the test


def leftovers(tmp_path: Path) -> list[Path]:
    ours = ("quarantine", "packages", "0", "0.lock")
    return [path for path in (tmp_path / "store").rglob("*") if path.name not in ours]


def test_a_directory_is_copied_and_adopted(
    store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_adapters["lora-r4"], tmp_path / "source")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    package = store.stage_copy(source)
    place = store.adopt(package)
    store.discard(package)
    assert (place / "1_Pooling.config.json").read_text() == "{}"
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
    package = store.stage_copy(archive)
    assert (package / "adapter_config.json").is_file()
    store.discard(package)
    assert leftovers(tmp_path) == []


def test_equal_content_never_shares_a_place(store: AdapterStore, tiny_adapters: Mapping[str, Path]) -> None:
    first, second = (store.adopt(store.stage_copy(tiny_adapters["lora-r4"])) for _ in range(2))
    assert first != second


def test_what_cannot_be_brought_in_leaves_nothing(store: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("no archive")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"")
    for source, reason in (("missing", "neither"), ("junk", "not an archive"), ("pickled", "pickle")):
        with pytest.raises(PackageError, match=reason):
            store.stage_copy(tmp_path / source)
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


def test_a_new_server_keeps_what_the_last_one_left(
    store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "store"
    place = store.adopt(store.stage_copy(tiny_adapters["lora-r4"]))
    mine = [
        root / "mine.txt",
        root / "packages" / "mine" / "adapter_config.json",
        root / "quarantine" / "0" / ("a" * 32) / "looks like ours",
        root / "quarantine" / "0" / "upload-mine" / "notes",
    ]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("an operator's")
    store.close()
    again = AdapterStore(root)
    assert again.packages() == {place.name: sum(file.stat().st_size for file in place.iterdir())}
    assert place.is_dir()
    assert all(file.is_file() for file in mine)


def test_a_crash_in_an_upload_or_a_deletion_leaves_nothing(
    store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "store"
    upload = store.new_quarantine()
    (upload / "half").write_text("an upload")
    shutil.move(
        store.adopt(store.stage_copy(tiny_adapters["lora-r4"])), root / "quarantine" / "0" / f"deleted-{'0' * 32}"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "quarantine" / "0" / f"upload-{'1' * 32}").symlink_to(elsewhere)
    store.close()
    AdapterStore(root).close()
    assert [path.name for path in (root / "quarantine" / "0").iterdir()] == [f"upload-{'1' * 32}"]
    assert elsewhere.is_dir()
    assert list((root / "packages").iterdir()) == []


# ---- a disk that does not take it ----


def test_a_budget_of_bytes(tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    small = AdapterStore(tmp_path / "small", max_bytes=100)
    package = small.stage_copy(tiny_adapters["lora-r4"])
    with pytest.raises(BudgetError, match=r"--max-stored-gb") as caught:
        small.adopt(package)
    assert caught.value.code == "storage_budget_exceeded"
    assert list((tmp_path / "small" / "packages").iterdir()) == []
    source = tiny_adapters["lora-r4"]
    weight = sum((source / name).stat().st_size for name in PACKAGE_FILES if (source / name).exists())
    store = AdapterStore(tmp_path / "store", max_bytes=2 * weight)
    first = store.adopt(store.stage_copy(source))
    store.adopt(store.stage_copy(source))
    with pytest.raises(BudgetError):
        store.adopt(store.stage_copy(source))
    store.delete(first)
    second = store.adopt(store.stage_copy(source))
    store.close()
    counted = AdapterStore(tmp_path / "store", max_bytes=2 * weight)
    with pytest.raises(BudgetError, match=r"--max-stored-gb"):
        counted.adopt(counted.stage_copy(tiny_adapters["lora-r8"]))
    assert second.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_full_disk(tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "mounted"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(root)], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        store = AdapterStore(root)
        kept = store.adopt(store.stage_copy(tiny_adapters["lora-r4"]))
        filling = root / "filling"
        with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        with pytest.raises(StoreFullError, match="No space left"):
            store.stage_copy(tiny_adapters["lora-r8"])
        store.delete(kept)  # a full disk still lets go
        filling.unlink()
        package = store.stage_copy(tiny_adapters["lora-r8"])
        store.close()  # an open lock keeps the disk from becoming read-only by a command
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        with pytest.raises(StoreError, match="Read-only file system"):
            store.adopt(package)
        with pytest.raises(StoreError, match="Read-only file system"):
            store.new_quarantine()
        with pytest.raises(EngineStartError, match="Read-only file system"):
            AdapterStore(root)
        subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)
        assert list((root / "packages").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def test_a_file_in_the_place_of_a_folder(
    store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "store"
    package = store.stage_copy(tiny_adapters["lora-r4"])
    (root / "packages").rmdir()
    (root / "packages").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        store.adopt(package)
    assert package.is_dir(), "nothing was moved"
    (root / "packages").unlink()
    (root / "packages").mkdir()
    place = store.adopt(package)
    shutil.rmtree(place)
    place.write_text("no package")
    store.delete(place)
    assert not place.exists()


def test_a_disk_that_fails_at_any_step_of_an_adoption(
    store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))
    failing = 0

    def sync_or_fail(path: Path) -> None:
        if next(steps) == failing:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr("server.catalog.store.adapter_store.sync", sync_or_fail)
    for failing in range(4):  # noqa: B007 - two files, their folder, the folder of packages
        steps = iter(range(100))
        package = store.stage_copy(tiny_adapters["lora-r4"])
        with pytest.raises(StoreError, match="Input/output error"):
            store.adopt(package)
        store.discard(package)
        assert leftovers(tmp_path) == []
        assert not store.packages()
    steps = iter(range(4, 100))
    store.adopt(store.stage_copy(tiny_adapters["lora-r4"]))


def test_a_file_that_cannot_be_read_is_the_disks_fault() -> None:
    broken = OSError(errno.EIO, "Input/output error")
    refusal = PackageError.unreadable("adapter_config.json", broken)
    refusal.__cause__ = broken
    with pytest.raises(StoreError, match="Input/output error"), disk_errors():
        raise refusal


def test_what_has_no_errno_is_no_fault_of_the_disk() -> None:
    for error in (ConnectionResetError(104, "reset"), TimeoutError(), OSError("odd")):
        with pytest.raises(type(error)), disk_errors():
            raise error


def test_a_folder_that_cannot_be_made_is_a_start_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineStartError, match="cannot keep adapters in"):
        AdapterStore(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_to_write(
    store: AdapterStore, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "store"
    package = store.stage_copy(tiny_adapters["lora-r4"])
    (root / "packages").chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        store.adopt(package)
    store.close()
    with pytest.raises(EngineStartError, match="Permission denied"):
        AdapterStore(root)
    (root / "packages").chmod(0o700)
    assert list((root / "packages").iterdir()) == []
