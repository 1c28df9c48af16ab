"""What is known so far of a request's pooled output: its prompt is computed in parts, and vectors are made of them.

Knows neither the model nor other requests; plain arrays, so that what is kept of a request holds no device memory.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from server.engine.messages import Pooling, PoolingParams

Rows = NDArray[np.float32]


_ONE_OF_ALL = (Pooling.MEAN, Pooling.MEAN_SQRT_LEN, Pooling.WEIGHTED_MEAN, Pooling.MAX)


class PooledPrompt:
    """The hidden states of one prompt, pooled as they come.

    Those of a mean, of the first token, and of every token have to be computed from the prompt's beginning on: what is
    found in the prefix cache has none.
    """

    def __init__(self, params: PoolingParams) -> None:
        self.params = params
        self._skip = 0 if params.pooling in (Pooling.LAST, Pooling.ALL) else params.skip
        self._first = self._stop = self._told = 0
        self._kept: NDArray[np.float64] | None = None  # of all rows so far, where they become one
        self._rows: Rows | None = None

    def place(self, first: int, stop: int) -> None:
        """The prompt's tokens are at the positions ``first .. stop`` of their sequence; not all of them are skipped."""
        self._first, self._stop = first + self._skip, stop

    @property
    def needs_all(self) -> bool:
        """Whether more is wanted than the last token's hidden state."""
        return self.params.pooling is not Pooling.LAST

    @property
    def is_one_of_all(self) -> bool:
        """Whether ``add`` wants what the rows come to, as one row: their largest numbers, or their sum."""
        return self.params.pooling in _ONE_OF_ALL

    def weights(self, position: int, count: int) -> Rows | None:
        """How often each row counts in their sum [count], of tokens from ``position`` on; None: all of them once."""
        if self.params.pooling is not Pooling.WEIGHTED_MEAN:
            return None
        start = position - self._first + self._skip + 1
        return np.arange(start, start + count, dtype=np.float32)

    def wanted(self, start: int, count: int) -> range:
        """Of the positions ``start .. start + count`` those whose hidden states are wanted, counted from ``start``."""
        first, stop = self._first + self._told, self._stop
        match self.params.pooling:
            case Pooling.LAST:
                first = stop - 1
            case Pooling.CLS:
                stop = first + 1
        return range(max(first - start, 0), min(stop - start, count))

    def add(self, rows: Rows) -> None:
        """Take in what a step has computed: the wanted rows [n, size], or [1, size] where they become one."""
        if not self.is_one_of_all:
            self._rows = rows
        elif self._kept is None:
            self._kept = rows[0].astype(np.float64)
        elif self.params.pooling is Pooling.MAX:
            self._kept = np.maximum(self._kept, rows[0])
        else:
            self._kept = self._kept + rows[0]

    def take(self) -> bytes:
        """What can be told now and was not: every token's row as it comes, one vector once the prompt is computed."""
        rows, self._rows = self._rows, None
        if rows is None and self._kept is not None:
            rows = (self._kept / self._weight)[None].astype(np.float32)
        if rows is None:
            return b""
        if self.params.pooling is Pooling.ALL:
            self._told += len(rows)
        return finished(rows, self.params).astype("<f4").tobytes()

    def forget(self) -> None:
        """All has to be computed again. What was told of single tokens stays told."""
        self._kept = self._rows = None

    @property
    def _weight(self) -> float:
        """What the sum of all rows is divided by."""
        count = self._stop - self._first
        match self.params.pooling:
            case Pooling.MAX:
                return 1.0
            case Pooling.MEAN_SQRT_LEN:
                return math.sqrt(count)
            case Pooling.WEIGHTED_MEAN:
                return count * (2 * self._skip + count + 1) / 2  # from skip + 1 on
        return count


def finished(rows: Rows, params: PoolingParams) -> Rows:
    """``rows`` [n, size] as they are answered: cut to ``dimensions``, then through the activation or to length 1."""
    if params.dimensions:
        rows = rows[:, : params.dimensions]
    if params.activation == "softmax":
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        rows = powers / powers.sum(axis=1, keepdims=True)
    elif params.activation == "sigmoid":
        rows = (1 / (1 + np.exp(-rows.astype(np.float64)))).astype(np.float32)
    if params.normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows
