"""The loop around the engine: what it does while nobody asks for anything."""

from __future__ import annotations

import queue
import threading

import pytest

from server.config import EngineConfig
from server.engine import engine_loop
from server.engine.engine import Engine
from server.engine.engine_loop import Inbox, Progress, run_until_shutdown
from server.engine.messages import Shutdown
from tests.server.engine.harness import DEADLINE
from tests.server.engine.toy_runner import ToyRunner


def test_memory_is_given_back_when_requests_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = threading.Event()
    monkeypatch.setattr(engine_loop, "give_back", given_back.set)
    engine = Engine(ToyRunner(), EngineConfig(model="toy"))
    inbox: Inbox = queue.SimpleQueue()
    loop = threading.Thread(target=run_until_shutdown, args=(engine, inbox, lambda _: None, Progress()))
    loop.start()
    try:
        assert given_back.wait(DEADLINE)
    finally:
        inbox.put(Shutdown())
        loop.join(DEADLINE)
        engine.close()
    assert not loop.is_alive()
