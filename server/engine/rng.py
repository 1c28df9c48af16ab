"""Counter-based random numbers: a pure function of a request's seed and its number of outputs.

There is no state, so no other request, no preemption and no restart can change what a row draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def uniforms(seeds: Sequence[int], counters: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per row, a multiple of 2**-52: element ``counters[i]`` of the stream ``seeds[i]``."""
    streams = _mix(np.array([seed & _MASK for seed in seeds], dtype=np.uint64) + _GOLDEN)
    steps = np.array(counters, dtype=np.uint64) + np.uint64(1)
    bits: NDArray[np.uint64] = _mix(streams + steps * _GOLDEN) >> np.uint64(12)
    return bits.astype(np.float64) * 2.0**-52


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit changes half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
