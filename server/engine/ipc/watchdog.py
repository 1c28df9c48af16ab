"""Tells when an engine process must be taken for hung. It counts ticks and reads no clock.

A clock that is set, a machine that sleeps and a server that was stopped itself, or was busy while messages queued up,
thus accuse nobody.
"""

from __future__ import annotations

import logging
from math import ceil

from server.config import EngineConfig
from server.engine.messages import EngineInfo, FromEngine, Heartbeat

logger = logging.getLogger(__name__)
BEAT_SECONDS = 0.5  # between two signs of life, and between two ticks
LOADING_PATIENCE = 10  # times as much silence is borne: importing libraries from a cold disk lets no other thread run
REPORT_SECONDS = 60.0  # between two lines about a start that takes long


class Watchdog:
    """Watches one life of an engine process: tell it what is ``heard``, and let it ``tick`` every BEAT_SECONDS."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._age = self._silent = self._stuck = 0  # in ticks
        self._progress: int | None = None
        self._loaded = self._serving = False

    def heard(self, message: FromEngine) -> None:
        """The process has sent something."""
        self._silent = 0
        progress = message.progress if isinstance(message, Heartbeat) else None
        if progress is None or progress != self._progress:
            self._stuck = 0
        self._progress = progress
        self._loaded = self._loaded or isinstance(message, EngineInfo)

    def serving(self) -> None:
        """The start is over: the base and all adapters are loaded."""
        self._serving = True

    def tick(self) -> str | None:
        """Count a tick; returns why the process is to be killed, if it is."""
        self._age += 1
        self._silent += 1
        self._stuck += self._progress is not None
        silence = self._config.engine_timeout * (1 if self._loaded else LOADING_PATIENCE)
        if _over(self._silent, silence):
            return f"nothing was heard of it for {silence:g} s (--engine-timeout)"
        if _over(self._stuck, self._config.step_timeout):
            return f"a step has not got on for {self._config.step_timeout:g} s (--step-timeout)"
        return None if self._serving else self._starting()

    def _starting(self) -> str | None:
        if _over(self._age, self._config.start_timeout):
            return f"it was not ready {self._config.start_timeout:g} s after its start (--start-timeout)"
        if self._age % ceil(REPORT_SECONDS / BEAT_SECONDS) == 0:
            what = "adapters" if self._loaded else "the base"
            logger.warning("the engine is still loading %s, %.0f s after its start", what, self._age * BEAT_SECONDS)
        return None


def _over(ticks: int, limit: float) -> bool:
    """Whether so many ticks are as long as a limit; 0 is none."""
    return limit > 0 and ticks >= ceil(limit / BEAT_SECONDS)
