"""Full-rank updates from random bases that all modules of an adapter share: RandLoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class RandomBases(AddOp):
    """The sum of n low-rank products, of one random factor scaled n times and another random factor's n parts.

    RandLoRA (https://huggingface.co/papers/2502.00987). A module computes with a corner of the two shared tensors;
    its own numbers are few, while the sum has full rank. So the scaled factor is made anew in every call, and members
    are never copied into a stack.

    Semantics: ``y += x @ small.T @ big[: n r, : out]`` where the module has no more inputs than outputs, otherwise
    ``y += x @ big[: n r, : in].T @ small``; row ``i n + k`` of ``small`` is ``scales[i, k] * a[i, : m] * gains[k]``.
    Shape: ``a`` [r, at least m] with ``m = min(in_features, out_features)``; ``big`` [at least n r, at least
    max(in_features, out_features)]; ``scales`` [r, n]; ``gains`` [n, m].
    """

    STACKS: ClassVar[bool] = False

    a: Tensor
    big: Tensor
    scales: Tensor
    gains: Tensor
    out_features: int

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        (r, n), m = self.scales.shape, self.gains.shape[1]
        scales, gains, a = self.scales.float(), self.gains.float(), self.a[:, :m].float()
        small = torch.stack([scales[i, k] * a[i] * gains[k] for i in range(r) for k in range(n)])
        big = self.big[: r * n].float()
        if m == len(x):
            return y + x @ small.T @ big[:, : len(y)]
        return y + x @ big[:, : len(x)].T @ small

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        m, in_features = self.gains.shape[-1], x.shape[-1]
        scaled = self.scales[..., None] * self.a[:, :, None, :m] * self.gains[:, None]
        small = scaled.flatten(1, 2)
        big = self.big[:, : small.shape[1]]
        if m == in_features:
            return torch.bmm(torch.bmm(x, small.mT), big[..., : self.out_features])
        return torch.bmm(torch.bmm(x, big[..., :in_features].mT), small)
