"""When an engine process is taken for hung, and when it is not however long it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from server.config import EngineConfig
from server.engine.ipc.watchdog import BEAT_SECONDS, LOADING_PATIENCE, REPORT_SECONDS, Watchdog
from server.engine.messages import EngineInfo, EngineStats, FromEngine, Heartbeat, StepOutputs

INFO = EngineInfo(
    base_fingerprint="",
    quantization="none",
    dtype="float32",
    device="cpu",
    base_bytes=0,
    kv_bytes=0,
    num_kv_blocks=1,
    block_size=1,
    max_model_len=1,
    vocab_size=1,
    eos_token_ids=[],
)


def ticks(seconds: float) -> int:
    return int(seconds / BEAT_SECONDS)


def watchdog(*, loaded: bool = True, serving: bool = True, **settings: float) -> Watchdog:
    defaults: dict[str, Any] = {"engine_timeout": 5, "step_timeout": 20, "start_timeout": 0}
    made = Watchdog(EngineConfig(model="m", **{**defaults, **settings}))
    if loaded:
        made.heard(INFO)
    if serving:
        made.serving()
    return made


def run(watched: Watchdog, count: int, *messages: FromEngine) -> Iterator[str]:
    """The reasons that ``count`` ticks give, each after ``messages``."""
    for _ in range(count):
        for message in messages:
            watched.heard(message)
        if (reason := watched.tick()) is not None:
            yield reason


def test_silence_is_a_hang_after_its_time_and_not_before() -> None:
    watched = watchdog()
    assert list(run(watched, ticks(5) - 1)) == []
    assert "nothing was heard of it for 5 s (--engine-timeout)" in next(run(watched, 1))


def test_a_sign_of_life_starts_the_silence_anew() -> None:
    watched = watchdog()
    for _ in range(3):
        assert list(run(watched, ticks(5) - 1)) == []
        watched.heard(Heartbeat())
    assert list(run(watched, ticks(5) - 1)) == []


def test_importing_and_loading_may_be_silent_for_longer() -> None:
    watched = watchdog(loaded=False, serving=False)
    assert list(run(watched, ticks(5 * LOADING_PATIENCE) - 1)) == []
    assert "for 50 s (--engine-timeout)" in next(run(watched, 1))


def test_beats_alone_do_not_excuse_a_step_that_stands_still() -> None:
    watched = watchdog()
    assert list(run(watched, ticks(20) - 1, Heartbeat(7))) == []
    assert "a step has not got on for 20 s (--step-timeout)" in next(run(watched, 2, Heartbeat(7)))


@pytest.mark.parametrize("message", [Heartbeat(), StepOutputs([], EngineStats())])
def test_idleness_and_outputs_are_no_standstill(message: FromEngine) -> None:
    watched = watchdog()
    assert list(run(watched, ticks(200), Heartbeat(7), message)) == []


def test_a_long_step_that_gets_on_is_none_either() -> None:
    watched = watchdog()
    for passes in range(5):  # each takes nearly as long as a whole step may
        assert list(run(watched, ticks(20) - 1, Heartbeat(passes))) == []


def test_a_start_that_never_ends(caplog: pytest.LogCaptureFixture) -> None:
    watched = watchdog(loaded=False, serving=False, start_timeout=2 * REPORT_SECONDS)
    with caplog.at_level(logging.WARNING):
        assert list(run(watched, ticks(REPORT_SECONDS), Heartbeat())) == []
        assert "still loading the base, 60 s after its start" in caplog.text
        watched.heard(INFO)
        reasons = list(run(watched, ticks(REPORT_SECONDS), Heartbeat()))
    assert reasons == ["it was not ready 120 s after its start (--start-timeout)"]


def test_once_it_serves_the_start_is_over(caplog: pytest.LogCaptureFixture) -> None:
    watched = watchdog(start_timeout=10)
    assert list(run(watched, ticks(300), Heartbeat())) == []
    assert not caplog.text


def test_0_is_never() -> None:
    watched = watchdog(serving=False, engine_timeout=0, step_timeout=0, start_timeout=0)
    watched.heard(Heartbeat(1))
    assert list(run(watched, ticks(10_000))) == []
