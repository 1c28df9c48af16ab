"""Ops made of factors, in shapes beyond those of the common cases."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from adapters.ops import AddOp, products
from adapters.ops.low_rank import RandomBases
from adapters.ops.products import Hadamard, Kron
from tests.bounds import bound

pytestmark = pytest.mark.numeric


def assert_is_reference(op: AddOp, in_features: int, out_features: int, rows: int = 5) -> None:
    x, y = torch.randn(rows, in_features), torch.randn(rows, out_features)
    want = torch.stack([op.reference(row, out, None) for row, out in zip(x, y, strict=True)])
    factors = {f.name: value.abs() for f in fields(op) if isinstance(value := getattr(op, f.name), torch.Tensor)}
    positive = replace(op, **factors)  # nothing cancels: the sums of absolute products
    largest = max(float(positive.reference(row, out, None).max()) for row, out in zip(x.abs(), y.abs(), strict=True))
    type(op).stack([op]).add_(x, y)
    torch.testing.assert_close(y, want, rtol=0, atol=bound(torch.float32, max(in_features, out_features), 3, largest))


@pytest.mark.parametrize(("in_features", "out_features"), [(30, 12), (12, 30), (12, 12), (13, 13), (1, 9)])
def test_random_bases_of_wide_and_tall_maps(in_features: int, out_features: int) -> None:
    r, side = 4, min(in_features, out_features)
    n = -(-side // r)
    a, big = torch.randn(r, side + 1), torch.randn(n * r + 4, max(in_features, out_features) + 2)
    assert_is_reference(RandomBases(a, big, torch.randn(r, n), torch.randn(n, side) * 0.1, out_features),
                        in_features, out_features)  # fmt: skip


@pytest.mark.parametrize("elements", [1, 200, 1 << 24])
def test_hadamard_goes_through_its_rows_in_parts(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_STEP_ELEMENTS", elements)
    a1, a2, b1, b2 = torch.randn(5, 9), torch.randn(5, 9), torch.randn(5, 7), torch.randn(5, 7)
    assert_is_reference(Hadamard(a1, b1, a2, b2), 7, 9)


@pytest.mark.parametrize("out1", [1, 3, 8])
def test_kron_of_any_sides(out1: int) -> None:
    assert_is_reference(Kron(torch.randn(out1, 1), torch.randn(12, 5)), 12, 5 * out1)
    assert_is_reference(Kron(torch.randn(out1, 12), torch.randn(1, 1), torch.randn(1, 5)), 12, 5 * out1)
