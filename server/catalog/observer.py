"""What may be told of changes of what is served."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from server.adapter_key import AdapterKey
from server.engine.messages import AdapterLoaded

Action = Literal["load", "replace", "activate", "rollback", "remove", "canary", "promote", "abort"]
Evicted = Literal["room", "ttl"]


class LifecycleObserver:
    """Is told what happens; this one ignores it."""

    def adapter_loaded(self, loaded: AdapterLoaded) -> None:
        """A version became resident: one that goes into service, or a candidate."""

    def adapter_came_back(self, seconds: Mapping[str, float]) -> None:
        """A version that was only stored became resident, for requests or in the background; ``seconds`` by stage."""

    def adapter_evicted(self, why: Evicted) -> None:
        """A version left memory, to make room for others or because it was idle for its time to live."""

    def name_changed(self, key: AdapterKey, action: Action) -> None:
        """What a name serves changed: by an upload (a first one: load), an activation, a rollback, its removal, or a
        canary or shadow that began, changed its share, was promoted or aborted. ``key`` is the version that this is of:
        the live one from now on, the one with another share, or the one that was live to the end."""

    def shared_out(self, name: str, keys: Collection[AdapterKey]) -> None:
        """The requests to ``name`` go to ``keys`` from now on, the live version among them; none: to that alone."""

    def adapter_refused(self, code: str) -> None:
        """A package was refused."""

    def retire(self, key: AdapterKey) -> None:
        """A version serves no new requests."""
