"""What the API process sees of an engine, whoever runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from server.engine.messages import AdapterLoaded, EngineInfo, EngineRequest, EngineStats, RequestOutput
from server.registry import AdapterKey


class EngineClient(Protocol):
    """An engine behind any transport: a child process, this process, a replica elsewhere."""

    @property
    def ready(self) -> bool:
        """Whether requests are served now (False while starting or restarting)."""

    @property
    def info(self) -> EngineInfo:
        """What the engine runs; valid once ``start`` has returned."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics."""

    async def start(self) -> None:
        """Start and wait until ready. Raises EngineStartError with the engine's own reason."""

    def submit(self, request: EngineRequest) -> AsyncIterator[RequestOutput]:
        """Hand over a request; iterate its outputs up to the terminal one.

        Leaving the iterator early (``aclose``, cancellation) aborts the request. Raises EngineUnavailableError when
        the engine is down or dies underneath: the request may be sent again.
        """

    async def load_adapter(self, key: AdapterKey, path: Path, *, allow_noop: bool = False) -> AdapterLoaded:
        """Make an adapter resident; raises an AdapterError subclass when it is refused.

        One that answers exactly as the base does is refused unless ``allow_noop``.
        """

    async def unload_adapter(self, key: AdapterKey, *, force: bool = False) -> None:
        """Drop an adapter when its last request has ended (at once with ``force``), and wait for that."""

    async def close(self) -> None:
        """Stop the engine; outstanding requests end with EngineUnavailableError."""
