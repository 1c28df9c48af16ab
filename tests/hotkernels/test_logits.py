"""The largest logits, and log-probabilities."""

from __future__ import annotations

import pytest
import torch

from hotkernels import native
from hotkernels.logits import argmax, argmax_torch, log_probabilities, log_probabilities_torch
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric

SIZES = [1, 5, 16, 577, 5003]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("variant")
def test_the_first_of_the_largest_is_found(size: int) -> None:
    logits = torch.randn(7, size + 3).mul(3).round()[:, :size]  # many are equal
    values, places = argmax(logits)
    wanted = logits.max(dim=-1).values
    assert torch.equal(values, wanted)
    assert places.tolist() == [row.index(value) for row, value in zip(logits.tolist(), wanted.tolist(), strict=True)]


@pytest.mark.parametrize("place", [0, 13, 36, 39])
@pytest.mark.usefixtures("variant")
def test_what_is_no_number_is_found(place: int) -> None:
    logits = torch.randn(3, 40)
    logits[0, place], logits[1, place], logits[2] = torch.nan, torch.inf, -torch.inf
    values, places = argmax(logits)
    assert bool(values[0].isnan())
    assert values[1:].tolist() == [torch.inf, -torch.inf]
    assert places.tolist() == [place, place, 0] == argmax_torch(logits)[1].tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [0, 1, 5, 20])
@pytest.mark.usefixtures("variant")
def test_log_probabilities_are_their_twin(size: int, k: int) -> None:
    logits, tokens = torch.randn(9, size).mul(4).round(), torch.randint(size, (9,))
    logits[3, : size // 2] = -torch.inf
    told, values, places = log_probabilities(logits, tokens, k)
    exact, best, where = log_probabilities_torch(logits.double(), tokens, k)
    # Exponentials within 2 units, the logarithm, and the sum of a lane's share of the row (in vectors of 8 an eighth),
    # each addition of which rounds by half a unit: a relative error of a sum is an absolute one of its logarithm.
    bound = 2e-6 + size / 8 * 2**-24
    torch.testing.assert_close(told.double(), exact, rtol=1e-6, atol=bound)
    torch.testing.assert_close(values.double(), best, rtol=1e-6, atol=bound)
    assert torch.equal(places, where)


def test_a_row_is_the_same_in_any_batch(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    logits, tokens = torch.randn(11, 4097), torch.randint(4097, (11,))
    alone = [log_probabilities(logits[i : i + 1], tokens[i : i + 1], 9) for i in range(11)]
    for threads in THREADS:
        native.set_num_threads(threads)
        for got, rows in zip(log_probabilities(logits, tokens, 9), zip(*alone, strict=True), strict=True):
            assert torch.equal(got, torch.cat(rows))
