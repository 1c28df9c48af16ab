"""Drawing, token by token, against the definition: filter by sorting, sum up in vocabulary order, invert."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from server.engine.sampling.draw import WIDTHS, Filters, draw

VOCAB = 7000  # not a multiple of a block; more blocks than the first width


def kept_weights(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Weights [vocab] after the filters, in float64; equal ones are kept or dropped together."""
    weights = ((logits - logits.max()) / temperature).exp().double()
    weights[weights < min_p] = 0
    if top_k:
        weights[weights < weights.sort(descending=True).values[top_k - 1]] = 0
    if top_p < 1:
        values = weights.sort(descending=True).values
        before = values.cumsum(0) - values
        weights[weights < values[before < top_p * values.sum()][-1:].min()] = 0
    return weights


def check(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, *, rows: int = 40) -> None:
    uniform = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    filters = Filters(
        torch.full((rows,), top_k), torch.full((rows,), top_p, dtype=torch.float64), torch.full((rows,), min_p)
    )
    batch = logits.expand(rows, -1)
    drawn = draw(batch, batch.amax(-1), torch.full((rows,), temperature), filters, uniform)
    ends = kept_weights(logits, temperature, top_k, top_p, min_p).cumsum(0)
    slack = 3e-6  # float32 sums of weights round
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    share = uniform.clone()
    assert (starts[drawn] / ends[-1] - slack <= share).all()
    assert (share <= ends[drawn] / ends[-1] + slack).all()
    assert (kept_weights(logits, temperature, top_k, top_p, min_p)[drawn] > 0).all()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0, 100.0])  # nuclei from a few tokens to nearly all
@pytest.mark.parametrize("top_p", [1.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [0, 2, 50, *WIDTHS, WIDTHS[-1] + 1, VOCAB - 1])
def test_equals_the_definition(temperature: float, top_p: float, top_k: int) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    check(logits, temperature, top_k, top_p, 0.0)


@pytest.mark.parametrize("min_p", [1e-4, 0.05, 0.5, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.8), (30, 0.8), (500, 1.0)])
def test_min_p_equals_the_definition(min_p: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    for temperature in (1.0, 20.0):
        check(logits, temperature, top_k, top_p, min_p)


@pytest.mark.parametrize("top_k", [0, 1, 3, 64, 300])
@pytest.mark.parametrize("top_p", [1.0, 0.05, 0.7])
def test_equal_logits_are_kept_together(top_k: int, top_p: float) -> None:
    """Rounded logits are equal in hundreds, across the edge of what is looked at first."""
    logits = (torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)) * 2).round()
    check(logits, 2.0, top_k, top_p, 0.0)
    check(torch.zeros(VOCAB), 1.0, top_k, top_p, 0.0)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((VOCAB,), -torch.inf)
    logits[[5, 63, 64, 6999]] = torch.tensor([0.0, 1.0, 0.5, 0.2])
    for top_k, top_p in ((0, 1.0), (3, 1.0), (100, 1.0), (0, 0.9), (0, 0.9999999)):
        check(logits, 1.0, top_k, top_p, 0.0, rows=200)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-52])
def test_ends_of_the_interval(uniform: float) -> None:
    logits = torch.full((3, 200), -torch.inf)
    logits[:, 70:130] = torch.randn(3, 60, generator=torch.Generator().manual_seed(0))
    filters = Filters(torch.tensor([0, 60, 0]), torch.tensor([1.0, 1.0, 0.99999], dtype=torch.float64), torch.zeros(3))
    points = torch.full((3,), uniform, dtype=torch.float64)
    drawn = draw(logits, logits.amax(-1), torch.ones(3), filters, points)
    assert drawn[:2].tolist() == ([70, 70] if uniform == 0 else [129, 129])
    assert 70 <= int(drawn[2]) <= 129


def test_rows_with_and_without_filters_side_by_side() -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    top_k, top_p = torch.tensor([0, 5, 0, 0, 2000, 0]), torch.tensor([1.0, 1.0, 0.5, 1.0, 0.9, 0.01]).double()
    min_p, uniform = torch.zeros(6), torch.linspace(0.1, 0.9, 6).double()
    whole = draw(logits, logits.amax(-1), torch.ones(6), Filters(top_k, top_p, min_p), uniform)
    for i in range(6):
        row = slice(i, i + 1)
        filters = Filters(top_k[row], top_p[row], min_p[row])
        alone = draw(logits[row], logits[row].amax(-1), torch.ones(1), filters, uniform[row])
        assert alone.tolist() == whole[row].tolist()
