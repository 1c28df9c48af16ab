"""How many tokens to draft for which request of a step: as many as make a step give more tokens in its time.

It knows neither requests nor the model, only how long steps took and how likely drafted tokens are right.
"""

from __future__ import annotations

from collections.abc import Sequence

_MEMORY = 0.98  # what former steps weigh at a new one
_FIXED_ROWS = 4.0  # rows that take as long as what a step costs besides its rows; before any is measured
_TRUST = 32.0  # squared rows: how much steps must have differed in all before they count for more than that
_MOST_FIXED_ROWS = 256.0
_OUTLIER = 3.0  # times as long as a step takes in the mean: something else was going on


class DraftSize:
    """Learns from every step without prompts, with ``seconds = a + b * rows``, of which it needs ``a / b``."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._rows = self._seconds = 0.0  # means
        self._rows_rows = self._rows_seconds = 0.0  # of products of deviations

    @property
    def fixed_rows(self) -> float:
        """Rows that take as long as what a step costs besides its rows."""
        if not self._weight:
            return _FIXED_ROWS
        expected = self._seconds / (self._rows + _FIXED_ROWS)
        trust = _TRUST / self._weight
        row = (self._rows_seconds + trust * expected) / (self._rows_rows + trust)
        fixed = self._seconds / row - self._rows if row > 0 else _MOST_FIXED_ROWS
        return min(max(fixed, 0.0), _MOST_FIXED_ROWS)

    def observe(self, rows: int, seconds: float) -> None:
        """Tell of a step of ``rows`` tokens, none of a prompt's, that took ``seconds``."""
        if self._weight:
            seconds = min(seconds, _OUTLIER * self._seconds)
        self._weight = _MEMORY * self._weight + 1.0
        share = 1.0 / self._weight
        more_rows, more_seconds = rows - self._rows, seconds - self._seconds
        self._rows += share * more_rows
        self._seconds += share * more_seconds
        self._rows_rows = (1 - share) * (self._rows_rows + share * more_rows * more_rows)
        self._rows_seconds = (1 - share) * (self._rows_seconds + share * more_rows * more_seconds)

    def share(self, num_streams: int, chances: Sequence[Sequence[float]]) -> list[int]:
        """How many tokens to draft by the ``chances`` of each request, in a step in which ``num_streams`` generate.

        ``chances[i][j]`` is how likely the first ``j + 1`` tokens of draft i are right, so falling in j. A step of R
        rows takes as long as R + ``fixed_rows`` rows and gives T tokens: one row more pays when it gives more than
        T / (R + fixed_rows). The likeliest are taken until one does not.
        """
        counts = [0] * len(chances)
        tokens, rows = float(num_streams), num_streams + self.fixed_rows
        paying = ((chance, i) for i, draft in enumerate(chances) for chance in draft if chance * rows > tokens)
        for chance, i in sorted(paying, reverse=True):
            if chance * rows <= tokens:
                break
            counts[i] += 1
            tokens, rows = tokens + chance, rows + 1.0
        return counts
