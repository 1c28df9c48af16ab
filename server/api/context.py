"""What the routes work with, made by ``server.app`` and kept on the application: no globals. Asyncio-confined.

A route states what it uses: single fields of the context, or all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from server.adapter_key import AdapterKey
from server.api.turns import Turns
from server.catalog.lifecycle import AdapterLifecycle
from server.catalog.registry import Registry
from server.engine.ipc.client import EngineClient
from server.errors import EngineUnavailableError, QueueFullError
from server.metrics import Metrics
from server.settings import ServerConfig
from server.text.tokenizer import TextProcessor


class Admission:
    """Counts accepted sequences up to ``limit``; closed while loading (until ``open``) and while draining."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active = 0
        self._closed = "the server is loading the base; try again"
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Sequences that have not ended."""
        return self._active

    @property
    def closed_because(self) -> str:
        """Why nothing is accepted; empty while open."""
        return self._closed

    def open(self) -> None:
        """Accept from now on."""
        self._closed = ""

    def close(self, reason: str) -> None:
        """Accept nothing more; what runs goes on."""
        self._closed = reason

    @contextmanager
    def admit(self, sequences: int) -> Iterator[None]:
        """Hold room for ``sequences``. Raises QueueFullError, or EngineUnavailableError while closed."""
        if self._closed:
            raise EngineUnavailableError(self._closed)
        if self._active + sequences > self._limit:
            raise QueueFullError(
                f"{self._active} sequences are running or waiting, the limit is {self._limit}; try later"
            )
        self._active += sequences
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= sequences
            if not self._active:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no accepted sequence is left."""
        await self._idle.wait()


@dataclass(frozen=True, eq=False)
class ServerContext:
    """One server. ``base_name`` is the name clients use for the base, ``base_root`` what it was loaded from."""

    config: ServerConfig
    base_name: str
    base_root: str
    engine: EngineClient
    registry: Registry
    lifecycle: AdapterLifecycle
    text: TextProcessor
    metrics: Metrics
    admission: Admission
    version: str
    created: int = field(default_factory=lambda: int(time.time()))
    turns: Turns = field(default_factory=Turns)

    def vocab_size(self, adapter: AdapterKey | None) -> int:
        """How many token ids an adapter knows."""
        own = self.registry.leased(adapter).vocab_size if adapter is not None else None
        return own or self.engine.info.vocab_size

    def text_of(self, adapter: AdapterKey | None) -> TextProcessor:
        """The tokenizer of an adapter: the base's, with those tokens that the adapter brought and has rows for."""
        if adapter is None or not (tokens := self.registry.leased(adapter).tokens):
            return self.text
        size = self.vocab_size(adapter)
        return self.text.with_tokens(tuple(token for token in tokens if token.id < size))


async def get_context(request: Request) -> ServerContext:
    """The context of the application that serves ``request``."""
    context = request.app.state.context
    assert isinstance(context, ServerContext)
    return context


ContextDep = Annotated[ServerContext, Depends(get_context)]


def _field(name: str) -> Any:
    async def get(context: ContextDep) -> Any:
        return getattr(context, name)

    return Depends(get)


ConfigDep = Annotated[ServerConfig, _field("config")]
EngineDep = Annotated[EngineClient, _field("engine")]
RegistryDep = Annotated[Registry, _field("registry")]
LifecycleDep = Annotated[AdapterLifecycle, _field("lifecycle")]
MetricsDep = Annotated[Metrics, _field("metrics")]
AdmissionDep = Annotated[Admission, _field("admission")]
