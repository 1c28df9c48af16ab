"""What a step may hold while others generate: tokens of prompts for a few decode steps, other work for a part of one.

It knows neither requests nor the model, only how long steps took. What a decode step takes is measured by steps that
hold nothing else; while prompts come in without end, one in sixteen is such a step. What a token of a prompt takes is
what a step with some took beyond it, so that long contexts and log-probabilities are seen as they come.

Prompts take their time of the decode steps that there will be when they generate as well: by that of the few that
generate at first, a burst of prompts would be computed in crumbs, and most of its streams wait while few run.
"""

from __future__ import annotations

_DECODES = 1.5  # that the prompts of a step may take, so that gaps stay below three of them though estimates are off
_PAUSE = 0.2  # of a decode step: what requests wait in a step for adapters that are verified
_LONGEST_PAUSE = 0.03  # seconds
_SMALLEST = 32  # tokens: fewer would read all weights for little, and keep prompts waiting for long
_CHEAPEST = 0.1  # of a row's time: what a token of a prompt takes at least
_MEMORY = 0.8  # what an estimate keeps of itself at a new measurement
_EVERY = 16  # steps with prompts for one without
_ALIKE = 2.0  # so many times more or fewer that generate, and a decode step is measured again


class StepBudget:
    """Learns from every step."""

    def __init__(self) -> None:
        self._decode: float | None = None  # seconds of a step without prompts
        self._others = 0  # how many generated in it
        self._token: float | None = None  # seconds that a token of a prompt takes
        self._is_due = True  # whether to measure a decode step
        self._since = 0  # steps with prompts since one was

    def prompt_tokens(self, streams: int, fixed_rows: float) -> int:
        """Tokens of prompts for the next step, in which others generate; 0 where a decode step is to be measured.

        ``streams`` will generate side by side once the prompts in hand are computed. What a step costs besides its rows
        takes as long as ``fixed_rows``.
        """
        if self._is_due or self._decode is None:
            return 0
        if self._token is None:
            return _SMALLEST
        longer = (max(streams, self._others) + fixed_rows) / (self._others + fixed_rows)
        return max(_SMALLEST, int(_DECODES * longer * self._decode / self._token))

    def token_rows(self, fixed_rows: float) -> float:
        """Rows that take as long as a token of a prompt; as one before any is measured."""
        if self._decode is None or self._token is None:
            return 1.0
        return max(_CHEAPEST, self._token * (self._others + fixed_rows) / self._decode)

    def pause(self) -> float:
        """Seconds that a step may be put off for other work; shorter ones get little done beside long steps."""
        return _LONGEST_PAUSE if self._decode is None else min(_LONGEST_PAUSE, _PAUSE * self._decode)

    def observe(self, prompt_tokens: int, others: int, seconds: float) -> None:
        """Tell of a step of ``prompt_tokens`` tokens of prompts and ``others`` that took ``seconds``."""
        if not prompt_tokens:
            is_new = not self._are_alike(others)  # a mean of 1 and 32 streams would fit neither
            self._decode = _moved(None if is_new else self._decode, seconds)
            self._others, self._is_due, self._since = others, False, 0
            return
        if others:
            self._since += 1
            self._is_due = self._since >= _EVERY or not self._are_alike(others)
        if prompt_tokens >= _SMALLEST:
            decode = (self._decode or 0.0) if others else 0.0
            self._token = _moved(self._token, max(seconds - decode, 0.1 * seconds) / prompt_tokens)

    def _are_alike(self, others: int) -> bool:
        return self._others <= _ALIKE * others and others <= _ALIKE * self._others


def _moved(estimate: float | None, measured: float) -> float:
    return measured if estimate is None else _MEMORY * estimate + (1 - _MEMORY) * measured
