"""Packages in object stores: a file system, one in memory, and a real server of S3."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from adapters.errors import PackageChangedError, PackageError
from server.catalog.store import ObjectStore
from server.catalog.store.faults import UnreachableStoreError
from server.catalog.store.object_store import mark_of
from server.errors import EngineStartError, StoreError
from tests.server.catalog.store.proxy import proxy_to

NAME, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 1024)
    (folder / "empty.json").write_bytes(b"")
    return folder


def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def everything(url: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    found: list[str] = filesystem.find(path)
    return [name.removeprefix(path.lstrip("/")).removeprefix(path) for name in found]


def test_what_was_put_is_there_for_others_too(objects: ObjectStore, url: str, package: Path, tmp_path: Path) -> None:
    objects.check()
    assert objects.sizes() == {}
    objects.put(NAME, package, mark_of(package))
    other = ObjectStore(url)
    assert other.sizes() == {NAME: 256 * 1024 + 2}
    other.get(NAME, place := into(tmp_path))
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        path.name: path.read_bytes() for path in package.iterdir()
    }
    other.remove(NAME)
    other.remove(NAME)
    assert other.sizes() == objects.sizes() == {}
    assert everything(url) == []
    with pytest.raises(PackageError, match="gone from the store"):
        objects.get(NAME, place)


def test_a_package_is_there_when_all_of_it_is(
    objects: ObjectStore, url: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))
    for method in ("put_file", "pipe_file"):
        made = getattr(objects._files._fs, method)

        def write(*args: Any, made: Any = made, **options: Any) -> None:
            if next(steps) == last:
                raise OSError("the power went")
            made(*args, **options)

        monkeypatch.setattr(objects._files._fs, method, write)
    for last in range(4):  # noqa: B007 - three files, and the mark
        steps = iter(range(100))
        with pytest.raises(StoreError):
            objects.put(NAME, package, mark_of(package))
        assert objects.sizes() == {}
        objects.remove(NAME)
    assert everything(url) == []


def test_deleting_begins_with_what_says_that_it_is_there(
    objects: ObjectStore, url: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (NAME, OTHER):
        objects.put(name, package, mark_of(package))

    def fail(path: str, **options: Any) -> None:
        raise OSError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(objects._files._fs, "rm", fail)
        with pytest.raises(StoreError):
            objects.remove(NAME)
    assert list(objects.sizes()) == [OTHER]
    objects.remove(NAME)
    assert not [path for path in everything(url) if NAME in path]
    assert len([path for path in everything(url) if OTHER in path]) == 4


@pytest.mark.parametrize("change", ["other bytes", "shorter", "gone", "mark", "path"])
def test_what_is_not_as_it_was_put_is_refused(
    objects: ObjectStore, url: str, package: Path, tmp_path: Path, change: str
) -> None:
    objects.put(NAME, package, mark_of(package))
    files, root = objects._files._fs, objects._root
    weights = f"{root}/packages/{NAME}/adapter_model.safetensors"
    mark = files.ls(f"{root}/complete", detail=False)[0]
    expected: type[Exception] = PackageChangedError
    match change:
        case "other bytes":
            files.pipe_file(weights, bytes(256 * 1024))
        case "shorter":
            files.pipe_file(weights, b"x")
        case "gone":
            files.rm_file(weights)
            expected = PackageError
        case "mark":
            files.pipe_file(mark, b'{"files": {"adapter_config')
        case _:
            files.pipe_file(mark, files.cat_file(mark).replace(b"adapter_config.json", b"../../outside.json"))
    with pytest.raises(expected) as refused:
        objects.get(NAME, into(tmp_path))
    assert "--artifacts" in str(refused.value)
    assert url not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"artifacts", "into", "package"} & {
        path.name for path in tmp_path.iterdir()
    })  # fmt: skip


def test_names_that_are_not_ours_are_no_packages(objects: ObjectStore, package: Path) -> None:
    objects.put(NAME, package, mark_of(package))
    for name in ("notes.txt", f"{OTHER}.json", f"{OTHER}-x.json", f"{OTHER}-1.json.part"):
        objects._files._fs.pipe_file(f"{objects._root}/complete/{name}", b"{}")
    assert list(objects.sizes()) == [NAME]


# ---- what is wrong with it ----


@pytest.mark.parametrize("url", ["nowhere://x/y", "gs://bucket/x"])
def test_a_store_that_nobody_here_can_talk_to(url: str) -> None:
    with pytest.raises(EngineStartError) as refused:
        ObjectStore(url)
    assert len(str(refused.value).splitlines()) == 1


def test_an_option_that_is_none(s3: str) -> None:
    with pytest.raises(EngineStartError, match="option is wrong"):
        ObjectStore(s3, {"no_such_option": 1}).check()


def test_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(EngineStartError, match="no such bucket"):
        ObjectStore("s3://hotswap-nobodys/x").check()


def test_no_credentials(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(EngineStartError, match="credentials"):
        ObjectStore(s3).check()


def test_a_store_that_stops_and_comes_back(
    s3: str, s3_server: str, package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with proxy_to(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        quick = {"connect_timeout": 0.3, "read_timeout": 0.3}
        objects = ObjectStore(s3, {"config_kwargs": quick})
        objects.put(NAME, package, mark_of(package))
        proxy.silent.set()
        monkeypatch.setattr("server.catalog.store.remote_files.PATIENCE", 1.0)
        begin = time.monotonic()
        for call in (objects.sizes, lambda: objects.get(NAME, into(tmp_path)), lambda: objects.remove(OTHER)):
            with pytest.raises(UnreachableStoreError, match="does not answer"):
                call()
        assert time.monotonic() - begin < 20
        objects.check()  # a server starts without it
    with pytest.raises(UnreachableStoreError, match="does not answer"):
        objects.put(OTHER, package, mark_of(package))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setattr("server.catalog.store.remote_files.PATIENCE", 30.0)
    assert list(ObjectStore(s3).sizes()) == [NAME]


def test_a_transfer_that_takes_for_ever(
    s3: str, s3_server: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.catalog.store.remote_files.PATIENCE", 0.5)
    monkeypatch.setattr("server.catalog.store.remote_files.SLOWEST", 1e9)
    with proxy_to(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        objects = ObjectStore(s3)
        proxy.silent.set()
        begin = time.monotonic()
        with pytest.raises(UnreachableStoreError):
            objects.put(NAME, package, mark_of(package))
        assert time.monotonic() - begin < 9
