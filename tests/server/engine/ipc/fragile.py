"""Engines that end in the middle of their work: with a request that they do not bear, or when a test wants it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import ClassVar

from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.engine_loop import SteppableEngine, build_engine
from server.engine.messages import EngineInfo, FromEngine

POISONS: Mapping[int, int] = {300: 0, 301: 20}  # token of a prompt: after how many of its output the engine ends


class Fragile(Engine):
    """Ends with a prompt that holds a poison, and when ``doomed`` is set."""

    doomed: ClassVar[threading.Event] = threading.Event()

    def step(self) -> list[FromEngine]:
        """A step, or the end."""
        if self.doomed.is_set():
            self.doomed.clear()
            raise MemoryError("a test wants it")
        for request in self.scheduler.requests.values():
            if any(POISONS.get(token, 1000) <= request.num_output_tokens for token in request.prompt_ids):
                raise MemoryError("poison")
        return super().step()


def build_fragile(config: EngineConfig) -> tuple[SteppableEngine, EngineInfo]:
    """As ``build_engine``."""
    engine, info = build_engine(config)
    assert isinstance(engine, Engine)
    engine.__class__ = Fragile
    return engine, info
