"""A package of the trainer's in a real engine, which verifies it as any server does."""

from __future__ import annotations

from pathlib import Path

from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.messages import AdapterFailed, AdapterLoaded
from server.model.model_runner import load_runner
from tests.server.keys import key_of


def load(engine: Engine, package: Path) -> AdapterLoaded | AdapterFailed:
    """What the engine says of ``package`` as a new adapter."""
    engine.load_adapter(key_of("new", package), package)
    for _ in range(3000):
        for event in engine.step():
            if isinstance(event, (AdapterLoaded, AdapterFailed)):
                return event
    raise AssertionError("no answer")


def serve(base: Path, package: Path, quantize: str) -> AdapterLoaded | AdapterFailed:
    """What a new engine on ``base`` says of ``package``."""
    config = EngineConfig(model=str(base), quantize=quantize, dtype="float32", kv_cache_gb=0.02, threads=1)
    engine = Engine(load_runner(config), config)
    try:
        return load(engine, package)
    finally:
        engine.check_integrity()
        engine.close()
