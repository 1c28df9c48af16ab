"""Engines for tests: their bookkeeping is checked, idle, after every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.engine.executor import Runner
from tests.server.engine.driver import Driver
from tests.server.engine.harness import Harness
from tests.server.engine.toy_runner import ToyRunner

MakeEngine = Callable[..., Harness]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """``make_engine(runner=None, **config)`` gives a Harness; afterwards it is drained and checked."""
    made: list[Harness] = []

    def make(runner: Runner | None = None, **config: Any) -> Harness:
        made.append(Harness(runner or ToyRunner(), **config))
        return made[-1]

    yield make
    for harness in made:
        harness.run()
        harness.engine.check_integrity()
        prefixes = sum(len(slot.prefix_blocks) for slot in harness.engine.scheduler.slots.values())
        assert harness.engine.stats().kv_blocks_used == prefixes, "an idle engine holds prefix blocks only"
        harness.engine.close()


@pytest.fixture
def make_driver(tiny_base: Path) -> Iterator[Callable[..., Driver]]:
    """``make_driver(**settings)`` gives a Driver of the tiny base; afterwards its bookkeeping is checked."""
    made: list[Driver] = []

    def make(**settings: object) -> Driver:
        made.append(Driver(tiny_base, **settings))
        return made[-1]

    yield make
    for driver in made:
        driver.engine.check_integrity()
