"""One way in for packages from anywhere: told by what a source looks like. Fetching blocks, in threads of its own."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.limits import PackageLimits
from adapters.package.archive import unpack
from adapters.package.inspection import inspect_package
from server.catalog.sources import folders, hub, objects, web
from server.catalog.sources.errors import SourceError, mismatch, not_allowed, not_found
from server.catalog.store import AdapterStore, disk_errors
from server.errors import EngineStartError
from server.traces import part

_DIGEST = re.compile("(?:sha256:)?([0-9a-fA-F]{64})")
_URL = re.compile("([a-zA-Z][a-zA-Z0-9+.-]*)://.*", re.DOTALL)
_WORKERS = 4


@dataclass(frozen=True)
class SourceRules:
    """Where packages may come from: folders, hosts of the web, addresses in object stores; and how large they may be.

    Without ``hosts`` any host with public addresses alone will do; those that are named may have any address.
    ``options`` are fsspec's, for object stores. ``max_bytes`` bounds what is fetched.
    """

    roots: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    url_prefixes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    max_bytes: int = 2 << 30


def folders_of(setting: str, paths: Iterable[str]) -> tuple[Path, ...]:
    """The folders that ``setting`` names. Raises EngineStartError for one that is not there."""
    folders = tuple(dict.fromkeys(Path(path).expanduser() for path in paths))
    for folder in folders:
        if not folder.is_dir():
            raise EngineStartError(f"{setting} {folder}: there is no such directory")
    return folders


def shown(source: str) -> str:
    """``source`` as a log may have it: without the query of a signed address, and without a password."""
    address = source.partition("?")[0].partition("#")[0]
    return re.sub("://[^/]*@", "://...@", address)[:500]


class Sources:
    """Fetches packages into the quarantine of ``store``, a few at a time, until it is closed."""

    def __init__(self, store: AdapterStore, rules: SourceRules) -> None:
        self._store = store
        self._rules = rules
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="source")
        self._closing = threading.Event()

    def close(self) -> None:
        """Let what is being fetched go."""
        self._closing.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def fetch(
        self, source: str, *, digest: str | None = None, revision: str | None = None, path_only: bool = False
    ) -> AsyncIterator[Path]:
        """The directory of the package at ``source``, in quarantine; nothing of it stays.

        ``source`` is a path, an address, or a hub id, of which ``revision`` is a branch, tag or commit. ``digest`` is
        the SHA-256 of an archive, or the content digest of a package in a folder; addresses need one. Raises
        SourceError, PackageError or StoreError.
        """
        wanted = _read_digest(digest)
        place = await asyncio.to_thread(self._store.new_quarantine)
        loop = asyncio.get_running_loop()
        fetch = self._from_path if path_only else self._from_anywhere
        running = loop.run_in_executor(self._threads, fetch, source, wanted, revision, place)
        try:
            with disk_errors(), part("fetch") as told:
                told["hotswap.source"] = shown(source)
                package = await asyncio.shield(running)
            yield package
        finally:
            if not running.done():
                await asyncio.wait([running])
            await asyncio.to_thread(self._store.discard, place)

    # ---- in a thread ----

    def _from_anywhere(self, source: str, digest: str | None, revision: str | None, place: Path) -> Path:
        protocol = found[1].lower() if (found := _URL.fullmatch(source)) else ""
        name = hub.hub_id(source)
        if protocol == "hf" or (name is not None and folders.find(source, self._rules.roots) is None):
            if name is None:
                raise SourceError("a hub id is ORG/NAME, or hf://ORG/NAME", code="invalid_source")
            package = hub.download(name, revision, place / "hub", self._rules.max_bytes, self._closing)
            return _checked(package, digest)
        match protocol:
            case "" | "file":
                return self._from_path(source, digest, revision, place)
            case "http" | "https":
                _only_hub_has(revision)
                return self._from_web(source, digest, place)
        _only_hub_has(revision)
        return self._from_store(source, digest, place)

    def _from_path(self, source: str, digest: str | None, revision: str | None, place: Path) -> Path:
        _only_hub_has(revision)
        rules = self._rules
        if not rules.roots:
            raise not_allowed("this server reads no paths: start it with --adapter-root DIR")
        path = folders.find(source.removeprefix("file://"), rules.roots)
        if path is None:
            raise not_found("there is no such path below a --adapter-root of this server")
        if path.is_dir():
            folders.copy_folder(path, place / "package", rules.roots, rules.max_bytes)
            return _checked(place / "package", digest)
        found, _ = folders.copy_file(path, place / "archive", rules.roots, rules.max_bytes)
        package = self._unpack(place)
        return package if found == digest else _checked(package, digest)

    def _from_web(self, source: str, digest: str | None, place: Path) -> Path:
        wanted = _needed(digest)
        with (place / "archive").open("xb") as file:
            rules = web.WebRules(self._rules.hosts, self._rules.max_bytes)
            found = web.fetch_archive(source, file, rules, self._closing)
        if found != wanted:
            raise mismatch(found, wanted)
        return self._unpack(place)

    def _from_store(self, source: str, digest: str | None, place: Path) -> Path:
        objects.check_prefix(source, self._rules.url_prefixes)
        wanted = _needed(digest)
        found = objects.get(source, self._rules.options, place, self._rules.max_bytes, self._closing)
        if found is None:
            return _checked(place / "package", wanted)
        if found != wanted:
            raise mismatch(found, wanted)
        return self._unpack(place)

    def _unpack(self, place: Path) -> Path:
        limits = PackageLimits(max_bytes=max(2 * self._rules.max_bytes, 1))
        return unpack(place / "archive", place / "unpacked", limits)


def _only_hub_has(revision: str | None) -> None:
    if revision is not None:
        raise SourceError("a revision is of a hub id; paths and addresses have none", param="revision",
                          code="invalid_source")  # fmt: skip


def _read_digest(digest: str | None) -> str | None:
    if digest is None:
        return None
    if (found := _DIGEST.fullmatch(digest.strip())) is None:
        raise SourceError("digest: must be a SHA-256 in 64 hex digits", code="invalid_digest", param="digest")
    return found[1].lower()


def _needed(digest: str | None) -> str:
    if digest is None:
        raise SourceError(
            "digest: say the SHA-256 of what is at that address (sha256sum prints it)",
            code="digest_required",
            param="digest",
        )
    return digest


def _checked(package: Path, digest: str | None) -> Path:
    """``package``, if its content has that digest. Raises PackageError as well."""
    if digest is not None and (found := inspect_package(package).digest) != digest:
        raise mismatch(found, digest)
    return package
