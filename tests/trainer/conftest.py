"""Runs that several tests look at: every method trained once, for all of them and for all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.once import Once
from tests.trainer.every_method import METHODS
from tests.trainer.support import make_config
from trainer.loop import session
from trainer.loop.session import RunResult
from trainer.run import train

STEPS = 40  # in which every method learns the colours


@pytest.fixture
def drawn() -> None:
    """Ask for this where a run's loss.png is looked at."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """No picture of a run whose picture nobody looks at: it takes a fifth of the time of the whole run."""
    with pytest.MonkeyPatch.context() as patch:
        if "drawn" not in request.fixturenames:
            patch.setattr(session, "plot_losses", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def trained(tiny_base: Path, once: Once) -> Callable[[str], RunResult]:
    """The finished run of a method on the tiny base: ``trained(method)``. Read it only; copy what is to change."""

    def run(method: str) -> RunResult:
        def make(folder: Path) -> None:
            result = train(make_config(folder, tiny_base, f"max_steps={STEPS}", *METHODS[method]))
            (folder / "result.json").write_bytes(msgspec.json.encode(result, enc_hook=str))

        folder = once.make(f"trained/{method}", make)
        return msgspec.json.decode((folder / "result.json").read_bytes(), type=RunResult, dec_hook=lambda _, v: Path(v))

    return run
