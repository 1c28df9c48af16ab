"""The largest values of a row, against a plain sort."""

from __future__ import annotations

import pytest
import torch

from server.engine.largest import as_blocks, largest


@pytest.mark.parametrize("size", [3, 64, 1000, 6400])
@pytest.mark.parametrize("width", [1, 5, 64, 100, 5000])
def test_equals_sorting(size: int, width: int) -> None:
    values = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    found, places = largest(as_blocks(values, -torch.inf), width)
    expected = values.sort(dim=-1, descending=True).values[:, :width]
    assert torch.equal(found[:, : expected.shape[1]], expected)
    inside = places[:, : expected.shape[1]]
    assert torch.equal(values.gather(1, inside), expected)
    assert all(len(set(row)) == len(row) for row in inside.tolist())


def test_all_in_one_block_and_one_in_each() -> None:
    values = torch.zeros(2, 6400)
    values[0, 640:704] = torch.arange(1.0, 65.0)
    values[1, ::64] = torch.arange(1.0, 101.0)
    found, places = largest(as_blocks(values, 0.0), 60)
    assert places[0].tolist() == list(range(703, 643, -1))
    assert found[1].tolist() == [float(100 - i) for i in range(60)]
