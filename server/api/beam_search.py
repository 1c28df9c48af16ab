"""Beam search, as transformers' ``generate(num_beams=...)`` defines it. Knows neither engine nor requests.

Semantics: of all continuations of the running beams by one token the best by the sum of log-probabilities are kept, so
many that ``width`` are left if all beams end in every way. Those among the first ``width`` of them that end go to the
ended ones, whose score is that sum divided by their length to the power ``length_penalty``; the best ``width`` of the
others run on. It is over when no more tokens may come, or no running beam can get better than the worst of ``width``
ended ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from server.engine.messages import TokenLogprobs


@dataclass(frozen=True)
class BeamParams:
    """``width`` beams, of which ``told`` are answered. With ``early_stopping`` it is over as soon as so many ended."""

    width: int
    told: int
    length_penalty: float = 1.0
    early_stopping: bool = False


@dataclass(frozen=True)
class Beam:
    """Tokens behind the prompt, the sum of their log-probabilities, and of each what it was chosen among."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    chosen: tuple[TokenLogprobs, ...] = ()
    ended: bool = False

    def longer(self, token: int, logprob: float, among: TokenLogprobs, *, ended: bool) -> Beam:
        """The beam with one token more."""
        told = TokenLogprobs(token, logprob, among.top)
        return Beam((*self.tokens, token), self.score + logprob, (*self.chosen, told), ended)


class BeamSearch:
    """The search behind one prompt. ``running`` are to be continued by ``advance`` until it ``is_over``."""

    def __init__(self, params: BeamParams, ends: frozenset[int], max_tokens: int, min_tokens: int = 0) -> None:
        self._params = params
        self._ends = ends
        self._max_tokens, self._min_tokens = max_tokens, min_tokens
        self._kept = max(2, 1 + len(ends)) * params.width
        self.running: list[Beam] = [Beam()]
        self._finished: list[tuple[float, Beam]] = []  # best first
        self.is_over = False

    @property
    def num_top(self) -> int:
        """How many likeliest tokens have to be known of each running beam."""
        return self._kept + len(self._ends)

    def advance(self, told: Sequence[TokenLogprobs]) -> None:
        """Go one token further: ``told`` are the likeliest tokens behind each of ``running``."""
        length = len(self.running[0].tokens) + 1
        last, may_end = length == self._max_tokens, length > self._min_tokens
        ways = [
            (beam.score + logprob, -number, -place, token)
            for number, (beam, among) in enumerate(zip(self.running, told, strict=True))
            for place, (token, logprob) in enumerate(among.top)
            if may_end or token not in self._ends
        ]
        best: list[Beam] = []
        for score, number, _, token in nlargest(self._kept, ways):
            beam, among = self.running[-number], told[-number]
            best.append(beam.longer(token, score - beam.score, among, ended=token in self._ends))
        self._finish([beam for beam in best[: self._params.width] if beam.ended or last], length)
        self.running = [beam for beam in best if not beam.ended][: self._params.width]
        self.is_over = last or not self.running or self._is_decided(length)

    def _finish(self, beams: Sequence[Beam], length: int) -> None:
        penalty = length**self._params.length_penalty
        found = [*self._finished, *((beam.score / penalty, beam) for beam in beams)]
        self._finished = sorted(found, key=lambda scored: -scored[0])[: self._params.width]

    def _is_decided(self, length: int) -> bool:
        """Whether nothing that still runs would be among the best."""
        if len(self._finished) < self._params.width:
            return False
        possible = self.running[0].score / length**self._params.length_penalty
        return self._params.early_stopping or possible <= self._finished[-1][0]

    @property
    def best(self) -> list[Beam]:
        """The ``width`` best, best first; fewer where there are no more continuations than that."""
        return [beam for _, beam in self._finished]
