"""How long an engine's death lasts for those who wait: until another serves, and until it has computed something."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

logger = logging.getLogger(__name__)
Stage = Literal["serving", "first_token"]
OnRecovery = Callable[[Stage, float], None]  # with seconds since the death, or since a hang was found


class Outage:
    """The present outage, if there is one. Engines that die before they serve are part of it."""

    def __init__(self) -> None:
        self.on_recovery: OnRecovery = lambda stage, seconds: None
        self._since: float | None = None
        self._serving = False

    def begin(self) -> None:
        """An engine that served has gone."""
        if self._since is None or self._serving:
            self._since = time.monotonic()
        self._serving = False

    def serves(self, resumed: int) -> None:
        """Another serves, and computes ``resumed`` sequences again."""
        if self._since is None:
            return
        self._serving = True
        self._tell("serving", "the engine serves again %.2f s after it was lost; sequences computed again: %d", resumed)
        if not resumed:
            self._since = None  # nobody waits for a token

    def token(self) -> None:
        """A token of a sequence that is computed again has come."""
        if self._since is not None and self._serving:
            self._tell("first_token", "the first token came %.2f s after the engine was lost")
            self._since = None

    def _tell(self, stage: Stage, text: str, *values: int) -> None:
        assert self._since is not None
        seconds = time.monotonic() - self._since
        logger.info(text, seconds, *values)
        self.on_recovery(stage, seconds)
