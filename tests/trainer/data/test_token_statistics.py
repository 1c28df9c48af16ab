from __future__ import annotations

import numpy as np
import pytest

from trainer.data.token_statistics import Bar, length_limits, limit_of, suggested_limit, summarize


def test_summary_by_hand() -> None:
    found = summarize(np.asarray([5, 1, 2, 3, 4] * 20 + [21]))
    assert (found.min, found.median, found.p95, found.p99, found.max) == (1, 3, 5, 5, 21)
    assert found.mean == pytest.approx(321 / 101, abs=0.05)
    assert found.histogram == [
        Bar(1, 3, 60),
        Bar(4, 6, 40),
        *(Bar(i, i + 2, 0) for i in (7, 10, 13, 16)),
        Bar(19, 21, 1),
    ]
    assert summarize(np.asarray([7, 7])).histogram == [Bar(7, 7, 2)]


def test_the_bars_hold_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(3, 500, 1000)
    bars = summarize(lengths).histogram
    assert sum(bar.count for bar in bars) == 1000
    assert all(bar.count == ((lengths >= bar.low) & (lengths <= bar.high)).sum() for bar in bars)
    assert (bars[0].low, bars[-1].high) == (lengths.min(), lengths.max())


def test_padding_by_hand() -> None:
    found = limit_of(np.asarray([10, 2, 10, 2, 50]), 20, batch_size=2)
    assert (found.max_length, found.rows_longer) == (20, 1)
    assert found.padding == 0  # (10, 10) and (2, 2)
    assert found.padding_shuffled in (0, 0.4)  # or 24 of 40
    assert found.padding_packed == 0.4  # (10, 10) and (2, 2) in two rows of 20
    assert limit_of(np.asarray([4, 2]), 8, batch_size=2).padding == 0.25


def test_what_keeps_95_and_99_percent_and_all_is_tried() -> None:
    lengths = np.asarray([50] * 95 + [100] * 4 + [1000])
    found = length_limits(lengths, 8)
    assert [(limit.max_length, limit.rows_longer) for limit in found] == [(64, 5), (128, 1), (1024, 0)]
    assert suggested_limit(found, 100) == 128  # one row in a hundred is not worth eight times the length
    assert suggested_limit(length_limits(np.asarray([50] * 95 + [100] * 5), 8), 100) == 128
