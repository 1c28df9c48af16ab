"""Beam search, as transformers' ``generate(num_beams=...)`` defines it. Knows neither engine nor requests.

Semantics: of all continuations of the running beams by one token, the best first by the sum of log-probabilities, those
of the first ``width`` that end go to the ended ones, whose score is that sum divided by their length to the power
``length_penalty``; the first ``width`` that do not end run on. It is over when no more tokens may come, or no running
beam can get better than the worst of ``width`` ended ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from server.engine.messages import TokenLogprobs

_Way = tuple[float, int, int, int]  # score, minus the place of the beam, minus that of the token in it, token


@dataclass(frozen=True)
class BeamParams:
    """``width`` beams, of which ``told`` are answered. With ``early_stopping`` it is over as soon as so many ended."""

    width: int
    told: int
    length_penalty: float = 1.0
    early_stopping: bool = False


@dataclass(frozen=True)
class Beam:
    """Tokens behind the prompt, the sum of their log-probabilities, and of each the likeliest in its place."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    chosen: tuple[TokenLogprobs, ...] = ()
    ended: bool = False

    def longer(self, told: TokenLogprobs, score: float, *, ended: bool) -> Beam:
        """The beam with one token more."""
        token = told.token_id
        return Beam((*self.tokens, token), score, (*self.chosen, told), ended)


class BeamSearch:
    """The search behind one prompt. ``running`` are to be continued by ``advance`` until it ``is_over``.

    Of each token its beam keeps ``num_told`` of the likeliest in its place.
    """

    def __init__(
        self, params: BeamParams, ends: frozenset[int], max_tokens: int, min_tokens: int = 0, num_told: int = 0
    ) -> None:
        self._params = params
        self._ends = ends
        self._max_tokens, self._min_tokens, self._num_told = max_tokens, min_tokens, num_told
        self.running: list[Beam] = [Beam()]
        self._finished: list[tuple[float, Beam]] = []  # best first
        self.is_over = False

    @property
    def num_top(self) -> int:
        """How many likeliest tokens have to be known of each running beam: all that go on may be of one."""
        return self._params.width + len(self._ends)

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
        best = nlargest(self._params.width, ways)
        going = nlargest(self._params.width, (way for way in ways if way[3] not in self._ends))
        self._finish([self._gone(way, told) for way in best if way[3] in self._ends or last], length)
        self.running = [self._gone(way, told) for way in going]
        self.is_over = last or not self.running or self._is_decided(length)

    def _gone(self, way: _Way, told: Sequence[TokenLogprobs]) -> Beam:
        """The beam that a way leads to."""
        score, number, _, token = way
        beam = self.running[-number]
        chosen = TokenLogprobs(token, score - beam.score, told[-number].top[: self._num_told])
        return beam.longer(chosen, score, ended=token in self._ends)

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
