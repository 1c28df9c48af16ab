"""Packages from folders, web servers and object stores: each only where the operator lets it come from."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest

from adapters.errors import PackageError
from adapters.package.archive import pack
from adapters.package.inspection import inspect_package
from server.catalog.sources import SourceError, SourceRules, Sources, folders_of, objects, shown
from server.catalog.store import AdapterStore
from server.errors import EngineStartError
from tests.server.catalog.sources.web_server import Web

WEIGHTS = "adapter_model.safetensors"


class Place:
    """A root with a package in it, and what is fetched from anywhere."""

    def __init__(self, tmp_path: Path, package: Path) -> None:
        self.root, self.package = tmp_path / "root", shutil.copytree(package, tmp_path / "package")
        (self.package / "1_Pooling").mkdir()
        (self.package / "1_Pooling" / "config.json").write_text("{}")
        shutil.copytree(self.package, self.root / "team" / "json")
        pack(self.package, self.root / "json.tar")
        self.archive = (self.root / "json.tar").read_bytes()
        self.sha256 = hashlib.sha256(self.archive).hexdigest()
        self.content = inspect_package(package).digest
        self.store = AdapterStore(tmp_path / "store")
        self.prefix = f"memory://{secrets.token_hex(6)}/team"
        self.sources = self.with_rules(roots=(self.root,), hosts=("127.0.0.1",), url_prefixes=(self.prefix,))

    def with_rules(self, **rules: object) -> Sources:
        return Sources(self.store, SourceRules(**{"max_bytes": 1 << 20, **rules}))  # type: ignore[arg-type]

    async def fetch(self, source: str, sources: Sources | None = None, **options: str) -> bool:
        async with (sources or self.sources).fetch(source, **options) as package:  # type: ignore[arg-type]
            assert (package / "1_Pooling.config.json").read_text() == "{}"
            return (package / WEIGHTS).read_bytes() == (self.package / WEIGHTS).read_bytes()

    async def refused(self, source: str, sources: Sources | None = None, **options: str) -> SourceError:
        with pytest.raises(SourceError) as caught:
            await self.fetch(source, sources, **options)
        assert not list(self.store._quarantine.folder.iterdir())
        assert str(self.root) not in str(caught.value).replace(source, "")
        return caught.value


@pytest.fixture
async def place(tmp_path: Path, tiny_adapters: Mapping[str, Path]) -> AsyncIterator[Place]:
    made = Place(tmp_path, tiny_adapters["lora-r4"])
    yield made
    made.sources.close()
    assert not list(made.store._quarantine.folder.iterdir())


# ---- paths ----


async def test_folders_and_archives_below_a_root(place: Place) -> None:
    for source in ("team/json", str(place.root / "team" / "json"), "json.tar", f"file://{place.root}/json.tar"):
        assert await place.fetch(source)
        assert await place.fetch(source, digest=place.content)
        wrong = await place.refused(source, digest="0" * 64)
        assert (wrong.code, wrong.param) == ("digest_mismatch", "digest")
    assert await place.fetch("json.tar", digest=f"sha256:{place.sha256.upper()}")
    (place.root / "current").symlink_to("team/json")
    assert await place.fetch("current"), "a link to another place below it"


async def test_nothing_outside_of_the_roots(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.package, tmp_path / "outside")
    (place.root / "link").symlink_to(tmp_path / "outside")
    shutil.copytree(place.package, place.root / "linked")
    (place.root / "linked" / WEIGHTS).unlink()
    (place.root / "linked" / WEIGHTS).symlink_to(tmp_path / "outside" / WEIGHTS)
    outside = [str(tmp_path / "outside"), "../outside", "team/../../outside", "link", "linked", "/etc/passwd", "/"]
    for source in (*outside, f"file://{tmp_path}/outside", "team/json\0", "no such", "~", "."):
        refusal = await place.refused(source) if source != "." else None
        assert refusal is None or refusal.code in ("source_not_allowed", "source_not_found", "source_unavailable"), (
            source
        )
    missing, there = [str(await place.refused(source)) for source in ("/no/such/thing", "/etc/passwd")]
    assert missing == there, "nothing is told of what is there"
    assert "start it with --adapter-root" in str(await place.refused(str(place.root / "json.tar"), place.with_rules()))


async def test_what_is_no_file(place: Place) -> None:
    os.mkfifo(place.root / "team" / "json" / "chat_template.jinja")
    assert "not a file" in str(await place.refused("team/json"))
    os.mkfifo(place.root / "pipe.tar")
    await place.refused("pipe.tar")


async def test_sizes_and_contents_are_checked_as_of_an_upload(place: Place) -> None:
    small = place.with_rules(roots=(place.root,), max_bytes=1000)
    for source in ("team/json", "json.tar"):
        assert (await place.refused(source, small)).code == "source_too_large"
    (place.root / "json.tar").write_bytes(b"no archive")
    (place.root / "team" / "json" / "adapter_model.bin").write_bytes(b"")
    (place.root / "team" / "json" / WEIGHTS).unlink()
    for source, reason in (("json.tar", "not an archive"), ("team/json", "pickle")):
        with pytest.raises(PackageError, match=reason):
            await place.fetch(source)


# ---- addresses ----


async def test_an_archive_of_a_web_server(place: Place, web: Web) -> None:
    web.pages["/json.tar"] = place.archive
    url = f"{web.url}/json.tar"
    assert await place.fetch(url, digest=place.sha256)
    assert (await place.refused(url)).code == "digest_required"
    assert (await place.refused(url, digest="abc")).code == "invalid_digest"
    assert (await place.refused(url, digest=place.content)).code == "digest_mismatch"
    assert (await place.refused(url, digest=place.sha256, revision="main")).param == "revision"
    public = place.with_rules(roots=(place.root,))
    assert "--source-host 127.0.0.1" in str(await place.refused(url, public, digest=place.sha256))


@pytest.mark.parametrize("kind", ["memory", "s3"])
async def test_an_object_store(place: Place, kind: str, request: pytest.FixtureRequest) -> None:
    prefix = request.getfixturevalue("s3") if kind == "s3" else place.prefix
    sources = place.with_rules(url_prefixes=(f"{prefix}/",))
    files, path = fsspec.core.url_to_fs(prefix)
    await asyncio.to_thread(files.pipe_file, f"{path}/json.tar", place.archive)
    for name in ("adapter_config.json", WEIGHTS, "1_Pooling/config.json"):
        await asyncio.to_thread(files.pipe_file, f"{path}/json/{name}", (place.package / name).read_bytes())
    assert await place.fetch(f"{prefix}/json.tar", sources, digest=place.sha256)
    assert await place.fetch(f"{prefix}/json", sources, digest=place.content)
    assert (await place.refused(f"{prefix}/json", sources)).code == "digest_required"
    for source in ("json.tar", "json"):
        assert (await place.refused(f"{prefix}/{source}", sources, digest="0" * 64)).code == "digest_mismatch"
    assert (await place.refused(f"{prefix}/none", sources, digest="0" * 64)).code == "source_unavailable"
    small = place.with_rules(url_prefixes=(prefix,), max_bytes=100)
    for source in ("json.tar", "json"):
        assert (await place.refused(f"{prefix}/{source}", small, digest="0" * 64)).code == "source_too_large"


@pytest.mark.parametrize("kind", ["memory", "s3"])
@pytest.mark.parametrize("source", ["json.tar", "json"])
async def test_a_server_that_ends_fetches_no_further(
    place: Place, kind: str, source: str, request: pytest.FixtureRequest
) -> None:
    prefix = request.getfixturevalue("s3") if kind == "s3" else place.prefix
    files, path = fsspec.core.url_to_fs(prefix)
    await asyncio.to_thread(files.pipe_file, f"{path}/json.tar", place.archive)
    for name in ("adapter_config.json", WEIGHTS):
        await asyncio.to_thread(files.pipe_file, f"{path}/json/{name}", (place.package / name).read_bytes())
    stop = threading.Event()
    stop.set()
    folder = place.store.new_quarantine()
    with pytest.raises(SourceError, match="shutting down"):
        await asyncio.to_thread(objects.get, f"{prefix}/{source}", {}, folder, 1 << 20, stop)
    place.store.discard(folder)


async def test_only_below_the_prefixes(place: Place) -> None:
    for source in (
        f"{place.prefix}-evil/x",
        f"{place.prefix}/../x",
        f"{place.prefix}::http://127.0.0.1/x",
        f"simplecache::{place.prefix}/x",
        "s3://other/x",
        "ftp://127.0.0.1/x",
        "github://org:repo@/x",
    ):
        assert (await place.refused(source, digest="0" * 64)).code in ("source_not_allowed", "source_not_found"), source


# ---- the rest ----


async def test_many_at_once_and_one_that_is_left(place: Place, web: Web) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    web.pages["/slow"] = slow
    waiting = [asyncio.create_task(place.fetch(f"{web.url}/slow", digest="0" * 64)) for _ in range(6)]
    while len(web.asked) < 4:
        await asyncio.sleep(0.01)
    assert await asyncio.to_thread(place.store.packages) == {}, "others' threads are free"
    waiting[0].cancel()
    place.sources.close()
    ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert all(isinstance(end, (SourceError, asyncio.CancelledError)) for end in ends)


def test_logs_hold_no_secrets() -> None:
    assert shown("https://me:secret@host/a.tar?X-Amz-Signature=secret#x") == "https://...@host/a.tar"


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="there is no such directory"):
        folders_of("--adapter-root", [str(tmp_path / "none")])
