"""Counter-based random numbers."""

from __future__ import annotations

import numpy as np

from server.engine.rng import uniforms


def test_known_values_never_change() -> None:
    """SplitMix64 of seed 0 begins e220a8397b1dcdaf (its reference implementation); ours is keyed by such a draw."""
    first = 0xE220A8397B1DCDAF
    mask = (1 << 64) - 1
    z = (first + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    assert uniforms([0], [0])[0] == (z >> 12) * 2.0**-52


def test_rows_are_independent_of_each_other() -> None:
    seeds, counters = [5, -3, 2**64 + 5, 0], [0, 7, 0, 1000]
    together = uniforms(seeds, counters)
    assert [uniforms([s], [c])[0] for s, c in zip(seeds, counters, strict=True)] == list(together)
    assert together[0] == together[2], "seeds count modulo 2**64"


def test_uniform_over_counters_and_over_seeds() -> None:
    n = 20_000
    for numbers in (uniforms([7] * n, range(n)), uniforms(range(n), [3] * n)):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.bincount((numbers * 50).astype(int), minlength=50)
        chi_square = ((counts - n / 50) ** 2 / (n / 50)).sum()
        assert chi_square < 85.4  # 0.999 quantile, 49 degrees of freedom


def test_neighbouring_seeds_are_uncorrelated() -> None:
    n = 20_000
    one, other = uniforms([1] * n, range(n)), uniforms([2] * n, range(n))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[1:], other[:-1])[0, 1]) < 0.03
