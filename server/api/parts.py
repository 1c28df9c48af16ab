"""What the routes work with, made by ``server.app`` and kept on the application: no globals."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from server.api.admission import Admission
from server.config import ServerConfig
from server.engine.client import EngineClient
from server.lifecycle import AdapterLifecycle
from server.metrics import Metrics
from server.registry import AdapterKey, Registry
from server.text import TextProcessor


@dataclass(frozen=True, eq=False)
class Parts:
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


def get_parts(request: Request) -> Parts:
    """The parts of the application that serves ``request``."""
    parts = request.app.state.parts
    assert isinstance(parts, Parts)
    return parts


PartsDep = Annotated[Parts, Depends(get_parts)]
