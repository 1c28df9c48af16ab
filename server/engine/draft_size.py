"""How many tokens to draft for which request of a step: as many as make outputs come faster.

It knows neither requests nor the model, only how long steps took and how likely drafted tokens are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log, log1p

_MEMORY = 0.98  # what former steps weigh at a new one, in the mean
_FIXED_ROWS = 4.0  # rows that take as long as what a step costs besides its rows; before any is measured
_TRUST = 32.0  # squared rows: how much steps must have differed in all before they count for more than that
_ENOUGH = 2048.0  # squared rows: what differs beyond that takes the place of what was seen first
_MOST_FIXED_ROWS = 256.0
_OUTLIER = 3.0  # times as long as a step of so many rows takes in the mean: something else was going on


class DraftSize:
    """Learns from every step without prompts, with ``seconds = a + b * rows``, of which it needs ``a / b``.

    What is known of ``b`` stays while steps are all alike: they tell nothing of it, however many they are.
    """

    def __init__(self) -> None:
        self._steps = 0.0  # that weigh in the means
        self._rows = self._seconds = 0.0  # means
        self._rows_rows = self._rows_seconds = 0.0  # sums of products of deviations

    @property
    def fixed_rows(self) -> float:
        """Rows that take as long as what a step costs besides its rows."""
        if not self._steps:
            return _FIXED_ROWS
        expected = self._seconds / (self._rows + _FIXED_ROWS)
        row = (self._rows_seconds + _TRUST * expected) / (self._rows_rows + _TRUST)
        fixed = self._seconds / row - self._rows if row > 0 else _MOST_FIXED_ROWS
        return min(max(fixed, 0.0), _MOST_FIXED_ROWS)

    def observe(self, rows: int, seconds: float) -> None:
        """Tell of a step of ``rows`` tokens, none of a prompt's, that took ``seconds``."""
        if self._steps:
            longer = max(1.0, (rows + _FIXED_ROWS) / (self._rows + _FIXED_ROWS))
            seconds = min(seconds, _OUTLIER * longer * self._seconds)
        self._steps = _MEMORY * self._steps + 1.0
        share = 1.0 / self._steps
        more_rows, more_seconds = rows - self._rows, seconds - self._seconds
        self._rows += share * more_rows
        self._seconds += share * more_seconds
        self._rows_rows += (1 - share) * more_rows * more_rows
        self._rows_seconds += (1 - share) * more_rows * more_seconds
        if (kept := _ENOUGH / max(self._rows_rows, _ENOUGH)) < 1:
            self._rows_rows *= kept
            self._rows_seconds *= kept

    def share(self, num_streams: int, chances: Sequence[Sequence[float]]) -> list[int]:
        """How many tokens to draft by the ``chances`` of each request, in a step in which ``num_streams`` generate.

        ``chances[i][j]`` is how likely the first ``j + 1`` tokens of draft i are right, so falling in j. As large as
        can be is made the product of all streams' speeds, which are their tokens of the step over its time. Where all
        have drafts as good, these are the most tokens a second; the draft of one does not slow down others for little.
        """
        gains = sorted(((gain, i) for i, draft in enumerate(chances) for gain in _gains(draft)), reverse=True)
        rows = num_streams + self.fixed_rows
        best = speeds = 0.0  # logarithms of that product, over that without drafts
        taken = 0
        for count, (gain, _) in enumerate(gains, start=1):
            speeds += gain
            if (value := speeds - num_streams * log(1.0 + count / rows)) > best:
                best, taken = value, count
        counts = [0] * len(chances)
        for _, i in gains[:taken]:
            counts[i] += 1
        return counts


def _gains(chances: Sequence[float]) -> Iterator[float]:
    """By how much each drafted token increases the logarithm of the tokens that its request gets of the step."""
    tokens = 1.0
    for chance in chances:
        yield log1p(chance / tokens)
        tokens += chance
