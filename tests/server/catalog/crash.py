"""Changes of a catalog that end at every step there is: ``python -m tests.server.catalog.crash FOLDER A B WHERE``.

A and B are packages of different content. For each kind of change, and for each step of it that touches the disk or the
database, a process makes the change and kills itself at that step; another then looks at what is there, and a third
starts as a server would. Says what was found wrong, as JSON. The engine here takes everything: what is killed is the
catalog and the store (WHERE: data-dir, or artifacts for an object store), and no model is loaded for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from typing_extensions import override

from adapters.package.inspection import inspect_package
from server.adapter_key import AdapterKey
from server.catalog.catalog import Catalog
from server.catalog.database.database import Database, sqlite_url
from server.catalog.lifecycle import AdapterLifecycle
from server.catalog.loading import PackageLoader
from server.catalog.polling import Poller
from server.catalog.registry import Registry
from server.catalog.residency import Residency
from server.catalog.store import AdapterStore, ObjectStore
from server.engine.ipc.client import EngineClient
from server.engine.messages import AdapterLoaded, EngineInfo, EngineRequest, EngineStats, RequestOutput
from tests.server.catalog.databases import known_packages

Change = Callable[[AdapterLifecycle], Awaitable[object]]
_STEPS = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "shutil.copyfile"}


class Everything(EngineClient):
    """An engine that takes every package."""

    @property
    @override
    def ready(self) -> bool:
        return True

    @property
    @override
    def resident(self) -> frozenset[AdapterKey]:
        return frozenset()

    @property
    @override
    def info(self) -> EngineInfo:
        return EngineInfo(
            base_fingerprint="base", quantization="none", dtype="float32", device="cpu", base_bytes=0, kv_bytes=0,
            num_kv_blocks=1, block_size=1, max_model_len=1, vocab_size=1, eos_token_ids=[],
        )  # fmt: skip

    @property
    @override
    def stats(self) -> EngineStats:
        raise NotImplementedError

    @property
    @override
    def unavailable(self) -> str:
        return "it answers nobody"

    @override
    def submit(
        self, request: EngineRequest, on_end: Callable[[], None] = print, restart: Callable[[], bool] = bool
    ) -> AsyncIterator[RequestOutput]:
        raise NotImplementedError

    @override
    async def start(self) -> None:
        pass

    @override
    async def close(self) -> None:
        pass

    @override
    async def load_adapter(self, key: AdapterKey, path: Path, *others: Path, allow_noop: bool = False) -> AdapterLoaded:
        await asyncio.sleep(0)
        return AdapterLoaded(key=key, kind="lora", nbytes=1, num_virtual_tokens=0)

    @override
    async def unload_adapter(self, key: AdapterKey, *, force: bool = False) -> None:
        await asyncio.sleep(0)


class Site:
    """A server over ``root``, but for its engine and HTTP."""

    def __init__(self, root: Path) -> None:
        self.database = Database(sqlite_url(root))
        self.database.migrate()
        elsewhere = root / "artifacts"
        self.store = AdapterStore(root, artifacts=ObjectStore(f"file://{elsewhere}") if elsewhere.is_dir() else None)
        self.catalog = Catalog(self.database, lambda: "base", self.store.place)
        self.registry = Registry("base")
        engine = Everything()
        residency = Residency(engine, self.registry, load=PackageLoader(self.store, engine))
        self.lifecycle = AdapterLifecycle(self.registry, self.catalog, self.store, residency, max_versions=2)
        self.poller = Poller(self.lifecycle, dead_after=0)

    def state(self) -> list[Any]:
        """What is durable of each name."""
        names = sorted(self.catalog.load().histories.items())
        return [
            [name, history.live, sorted(history.candidates), history.record.served, history.record.removed]
            + [[version.key.version, version.key.digest] for version in history.all()]
            for name, history in names
            if history.all() or history.record.removed
        ]


def changes(first: Path, second: Path) -> dict[str, Change]:
    """By name; all begin where ``prepare`` ends."""
    return {
        "upload of a new name": lambda life: life.install_copy("new", second),
        "upload of a next version": lambda life: life.install_copy("plain", second),
        "upload of a candidate": lambda life: life.install_copy("new", second, activate=False),
        "upload that deletes the oldest": lambda life: life.install_copy("full", second),
        "activation": lambda life: life.activate("json", 2),
        "rollback": lambda life: life.rollback("full"),
        "deletion": lambda life: life.remove("json", force=True),
        "deletion of a version": lambda life: life.remove_version("json", 2, force=True),
        "mending": lambda life: mend(life, first),
    }


async def mend(life: AdapterLifecycle, package: Path) -> None:
    """Upload what a version is again, whose files were spoiled."""
    await life.install_copy("spoiled", package)


async def prepare(site: Site, first: Path, second: Path) -> None:
    """Names in several states."""
    life = site.lifecycle
    await life.install_copy("plain", first)
    await life.install_copy("json", first)
    await life.install_copy("json", second, activate=False)
    for package in (first, second, first):
        await life.install_copy("full", package)
    spoiled = await life.install_copy("spoiled", first)
    for place in (spoiled.path, site.store.root / "artifacts" / "packages" / spoiled.path.name):
        if place.is_dir():
            (place / "adapter_model.safetensors").write_bytes(b"")
    await life.settle()


def kill_at(step: int, root: Path) -> None:
    """End this process, as kill -9 does, at its ``step``-th touch of ``root`` or commit; never for -1."""
    left, armed = step, False

    def count() -> None:
        nonlocal left
        if not armed:
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def hook(name: str, arguments: tuple[object, ...]) -> None:
        if name in _STEPS and any(str(root) in str(argument) for argument in arguments):
            count()

    sys.addaudithook(hook)
    event.listen(Engine, "commit", lambda _: count())  # before it
    event.listen(Engine, "begin", lambda _: count())  # after the one before, or before anything
    armed = True


def child(work: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[bool, Any]:
    """Run ``work`` in a process of its own; whether it came to its end, and what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            os.write(write, json.dumps(asyncio.run(work())).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the parent says it
            os.write(write, json.dumps(traceback.format_exc()).encode())
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(json.loads(said))
    return os.WIFEXITED(status), json.loads(said) if said else None


async def make(root: Path, change: Change, step: int) -> list[Any]:
    """The change; what is durable after it."""
    site = Site(root)
    await site.poller.restore()
    kill_at(step, root)
    await change(site.lifecycle)
    await site.lifecycle.settle()
    return site.state()


def digest_of(store: AdapterStore, place: Path) -> str:
    """Of the content of a package that is kept."""
    store.fetch(place)
    return inspect_package(place).digest


async def look(root: Path) -> dict[str, Any]:
    """What is there, and what is there after a start."""
    site = Site(root)
    before = site.state()
    wrong = [
        str(version.key)
        for history in site.catalog.load().histories.values()
        for version in history.all()
        if version.key.name != "spoiled" and digest_of(site.store, version.path) != version.key.digest
    ]
    await site.poller.restore()
    for _ in range(2):
        await site.poller.poll()
    await site.lifecycle.settle()
    kept = {version.path.name for name in site.registry.known_names() for version in site.registry.versions(name)}
    on_disk = {path.name for folder in ("packages", "artifacts/packages") for path in (root / folder).glob("*")}
    assert set(site.store.packages()) == on_disk
    return {
        "before": before,
        "after": site.state(),
        "wrong": wrong,
        "unknown files": sorted(on_disk - kept),
        "lost files": sorted(kept - on_disk),
        "unknown rows": sorted(known_packages(site.catalog.database) - kept),
        "quarantine": len(list((root / "quarantine" / "0").iterdir())),
    }


def walk(folder: Path, template: Path, name: str, change: Change, every: int) -> dict[str, Any]:
    """One change, killed at each of its steps, or at every so manieth."""
    _, old = child(partial(look, _copy(template, folder / "old")))
    step, faults = 0, []
    _, new = child(partial(make, _copy(template, folder / "new"), change, -1))
    ended = False
    while not ended:
        root = _copy(template, folder / "work")
        ended, _ = child(partial(make, root, change, step))
        _, found = child(partial(look, root))
        clean = not any(found[key] for key in ("wrong", "unknown files", "lost files", "unknown rows", "quarantine"))
        if found["before"] not in (old["after"], new) or found["after"] != found["before"] or not clean:
            faults.append({"step": step, "old": old["after"], "new": new, **found})
        step += every
    return {"change": name, "steps": step - every, "faults": faults}


def _copy(template: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(template, target)
    return target


async def _template(root: Path, first: Path, second: Path) -> None:
    site = Site(root)
    await prepare(site, first, second)
    site.store.close()
    site.database.close()


def main(folder: str, first: str, second: str, every: str, *where: str) -> None:
    """Walk all changes, killed at every so manieth step."""
    root = Path(folder)
    template = root / "template"
    template.mkdir()
    for name in where:  # data-dir: nothing more
        (template / name).mkdir()
    child(partial(_template, template, Path(first), Path(second)))
    made = changes(Path(first), Path(second))
    done = [walk(root, template, name, change, int(every)) for name, change in made.items()]
    sys.stdout.write(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
