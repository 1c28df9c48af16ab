"""What is known so far of a request's pooled output: its prompt is computed in parts, and vectors are made of them.

Knows neither the model nor other requests; plain arrays, so that what is kept of a request holds no device memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.engine.messages import Pooling, PoolingParams

Rows = NDArray[np.float32]


class PooledPrompt:
    """The hidden states of one prompt, pooled as they come.

    Those of a mean, of the first token, and of every token have to be computed from the prompt's beginning on: what is
    found in the prefix cache has none.
    """

    def __init__(self, params: PoolingParams) -> None:
        self.params = params
        self._first = self._stop = self._told = 0
        self._sum: NDArray[np.float64] | None = None
        self._rows: Rows | None = None

    def place(self, first: int, stop: int) -> None:
        """The prompt's tokens are at the positions ``first .. stop`` of their sequence."""
        self._first, self._stop = first, stop

    @property
    def needs_all(self) -> bool:
        """Whether more is wanted than the last token's hidden state."""
        return self.params.pooling is not Pooling.LAST

    @property
    def is_mean(self) -> bool:
        """Whether ``add`` wants the sum of the rows, as one row."""
        return self.params.pooling is Pooling.MEAN

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
        """Take in what a step has computed: the wanted rows [n, size], or their sum [1, size] for a mean."""
        if self.is_mean:
            self._sum = rows[0] + (0.0 if self._sum is None else self._sum)
        else:
            self._rows = rows

    def take(self) -> bytes:
        """What can be told now and was not: every token's row as it comes, one vector once the prompt is computed."""
        rows, self._rows = self._rows, None
        if rows is None and self._sum is not None:
            rows = (self._sum / (self._stop - self._first))[None].astype(np.float32)
        if rows is None:
            return b""
        if self.params.pooling is Pooling.ALL:
            self._told += len(rows)
        return finished(rows, self.params).astype("<f4").tobytes()

    def forget(self) -> None:
        """All has to be computed again. What was told of single tokens stays told."""
        self._sum = self._rows = None


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
