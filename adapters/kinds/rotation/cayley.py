"""Rotations from the numbers that are trained: skew-symmetric matrices, and Cayley's transform of them.

Each rotation is given as what it adds to the identity: kinds train around the identity, and half-precision numbers
hold a small difference better than a number near one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.errors import PackageError
from adapters.quoting import quote


def skew(vectors: Tensor, size: int) -> Tensor:
    """Skew-symmetric matrices with ``vectors`` above the diagonal. Shape: [n, size (size - 1) / 2]; [n, size, size]."""
    rows, cols = torch.triu_indices(size, size, 1)
    matrices = vectors.new_zeros(len(vectors), size, size)
    matrices[:, rows, cols] = vectors
    return matrices - matrices.transpose(-2, -1)


def cayley(matrices: Tensor) -> Tensor:
    """``(I - Q) (I + Q)^-1 - I`` of each skew-symmetric ``Q``. Shape: [n, size, size], as the result."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    change, info = torch.linalg.solve_ex(identity + matrices, -2 * matrices, left=False)
    return torch.where(info[:, None, None] > 0, torch.nan, change)  # sums beyond what a float can tell apart


def cayley_series(matrices: Tensor, terms: int) -> Tensor:
    """The Neumann series of ``cayley``, as peft cuts it off: ``2Q + 2Q^2 + ... + 2Q^(terms - 2) + Q^(terms - 1)``.

    Two terms are ``2Q``, and three are as four. peft writes the series for the opposite sign of ``Q``.
    """
    if terms < 2:
        return torch.zeros_like(matrices)
    total = 2 * matrices
    if terms == 2:
        return total
    power = matrices @ matrices
    total = total + 2 * power
    for _ in range(3, terms - 1):
        power = power @ matrices
        total = total + 2 * power
    return total + power @ matrices


def finite_rotation(name: str, rotation: Tensor) -> Tensor:
    """``rotation`` in float32. PackageError when it is not finite."""
    rotation = rotation.float()
    if not bool(torch.isfinite(rotation).all()):
        raise PackageError(f"tensor {quote(name)} gives no finite rotation; its values are too large")
    return rotation
