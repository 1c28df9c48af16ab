"""A whole server but for HTTP, and a witness of what its lifecycle tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import override

from server.adapter_key import AdapterKey
from server.catalog.catalog import Catalog
from server.catalog.database.database import Database, sqlite_url
from server.catalog.lifecycle import AdapterLifecycle
from server.catalog.loading import PackageLoader
from server.catalog.memory_ledger import Budget
from server.catalog.observer import Action, LifecycleObserver
from server.catalog.registry import Registry
from server.catalog.residency import Residency
from server.catalog.store import AdapterStore
from server.catalog.versions import VersionState
from server.engine.ipc.client import ClientCore
from server.engine.messages import AdapterLoaded
from tests.server.catalog.databases import known_packages
from tests.server.engine.ipc.clients import answer, config_for
from tests.server.engine.ipc.local_client import LocalEngineClient


@dataclass
class Witness(LifecycleObserver):
    """Notes what the lifecycle tells."""

    loaded: list[AdapterKey] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    changed: list[AdapterKey] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    retired: list[AdapterKey] = field(default_factory=list)

    @override
    def adapter_loaded(self, loaded: AdapterLoaded) -> None:
        self.loaded.append(loaded.key)

    @override
    def name_changed(self, key: AdapterKey, action: Action) -> None:
        self.changes.append(action)
        self.changed.append(key)

    @override
    def adapter_refused(self, code: str) -> None:
        self.refused.append(code)

    @override
    def retire(self, key: AdapterKey) -> None:
        self.retired.append(key)


class Backend:
    """A whole server but for HTTP."""

    def __init__(
        self,
        base: Path,
        root: Path,
        client: ClientCore | None = None,
        max_candidates: int = 16,
        *,
        max_versions: int = 0,
        budget: Budget | None = None,
        eager: bool = True,
        store: AdapterStore | None = None,
        database: str = "",
    ) -> None:
        self.root = root
        self.witness = Witness()
        self.client = client or LocalEngineClient(config_for(base))
        self.registry = Registry("base", max_candidates)
        self.store = store or AdapterStore(root)
        self.database = Database(database or sqlite_url(root))
        self.database.migrate()
        self.catalog = Catalog(self.database, lambda: "base", self.store.place)
        self.residency = Residency(
            self.client,
            self.registry,
            budget,
            self.witness,
            rule=self.registry.settings,
            load=PackageLoader(self.store, self.client),
            eager=eager,
        )
        self.lifecycle = AdapterLifecycle(
            self.registry, self.catalog, self.store, self.residency, observer=self.witness, max_versions=max_versions
        )
        self.client.needed, self.client.on_lost = self.residency.held, self.residency.lost
        self.client.on_restart = self.residency.engine_started

    async def ask(self, model: str, *, max_tokens: int = 12) -> list[int]:
        self.asked = getattr(self, "asked", 0) + 1
        request_id = f"r{self.asked}"
        with self.registry.lease(model) as lease:
            await self.residency.ensure(lease)
            return await answer(self.client, request_id, lease.key, max_tokens=max_tokens)

    def check_integrity(self) -> None:
        """When idle, engine and disk hold exactly what the registry knows."""
        versions = [version for name in self.registry.known_names() for version in self.registry.versions(name)]
        served = (VersionState.LIVE, VersionState.CANARY, VersionState.SHADOW, VersionState.CANDIDATE)
        served_keys = {v.key for v in versions if self.registry.state(v.key) in served}
        assert self.client.resident == {key for key in served_keys if self.residency.stage(key) is not None}
        if not self.residency.budget.is_limited:
            assert self.client.resident == served_keys
        self.residency.check_integrity()
        assert not self.registry._leaving
        assert set((self.root / "packages").iterdir()) == {version.path for version in versions}
        assert list((self.root / "quarantine" / "0").iterdir()) == []
        assert known_packages(self.catalog.database) == {version.path.name for version in versions}
        durable = self.catalog.load().histories
        assert {name: history.all() for name, history in durable.items() if history.all()} == {
            name: self.registry.versions(name) for name in self.registry.known_names()
        }
