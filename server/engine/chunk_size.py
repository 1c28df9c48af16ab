"""How many tokens of prompts a step may hold while others generate: what the machine computes in a few decode steps.

It knows neither requests nor the model, only how long steps took.
"""

from __future__ import annotations

_DECODES = 2.0  # decode steps that the prompts' part of a step may take, so that a gap is three at most
_SMALLEST = 32  # tokens: fewer would read all weights for little, and keep prompts waiting for long
_MEMORY = 0.8  # what an estimate keeps of itself at a new measurement


class ChunkSize:
    """Learns from every step."""

    def __init__(self) -> None:
        self._decode: float | None = None  # seconds of a step, what prompts take of it left out
        self._token: float | None = None  # seconds that a token of a prompt takes

    def limit(self) -> int | None:
        """Tokens of prompts for the next step, in which others generate; None before anything is known."""
        if self._decode is None or self._token is None:
            return None
        return max(_SMALLEST, int(_DECODES * self._decode / self._token))

    def observe(self, prompt_tokens: int, others: int, seconds: float) -> None:
        """Tell of a step of ``prompt_tokens`` tokens of prompts and ``others`` that took ``seconds``."""
        if others and (self._token is not None or not prompt_tokens):
            prompts = (self._token or 0.0) * prompt_tokens
            self._decode = _moved(self._decode, max(seconds - prompts, 0.1 * seconds))
        elif prompt_tokens >= _SMALLEST:
            decode = (self._decode or 0.0) if others else 0.0
            self._token = _moved(self._token, max(seconds - decode, 0.1 * seconds) / prompt_tokens)


def _moved(estimate: float | None, measured: float) -> float:
    return measured if estimate is None else _MEMORY * estimate + (1 - _MEMORY) * measured
