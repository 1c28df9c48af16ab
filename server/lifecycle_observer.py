"""Who is told of adapters coming and going, for metrics."""

from __future__ import annotations

from typing import Literal, Protocol

from server.engine.messages import AdapterLoaded
from server.versions import AdapterKey

Action = Literal["load", "replace", "activate", "rollback", "remove"]


class LifecycleObserver(Protocol):
    """Is told what happens."""

    def adapter_loaded(self, loaded: AdapterLoaded) -> None:
        """A version became resident: one that goes into service, or a candidate."""

    def name_changed(self, action: Action) -> None:
        """What a name serves changed: by an upload (a first one: load), an activation, a rollback, or its removal."""

    def adapter_refused(self, code: str) -> None:
        """A package was refused."""

    def retire(self, key: AdapterKey) -> None:
        """A version serves no new requests."""


class SilentObserver:
    """Tells nobody."""

    def adapter_loaded(self, loaded: AdapterLoaded) -> None:
        """Ignored."""

    def name_changed(self, action: Action) -> None:
        """Ignored."""

    def adapter_refused(self, code: str) -> None:
        """Ignored."""

    def retire(self, key: AdapterKey) -> None:
        """Ignored."""
