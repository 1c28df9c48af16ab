"""An update made of circulant blocks: C3A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class Circulant(AddOp):
    """A block-circulant update, applied as products of frequencies (C3A, https://huggingface.co/papers/2407.19342).

    Semantics: for output block ``m`` and input block ``n``, ``y[m][j] += sum over k of w[m, n, k] * x[n][(j + k) %
    size]`` in float32, with ``spectrum[f, n, m]`` the conjugate of frequency ``f`` of ``w[m, n]``.
    Shape: ``spectrum`` [size // 2 + 1, in_features / size, out_features / size], complex64.
    """

    spectrum: Tensor
    size: int

    @classmethod
    def build(cls, w: Tensor) -> Self:
        """The op of ``w`` [out_features / size, in_features / size, size]."""
        return cls(torch.fft.rfft(w.float()).conj().permute(2, 1, 0).resolve_conj().contiguous(), w.shape[-1])

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        w: Tensor = torch.fft.irfft(self.spectrum.permute(2, 1, 0).conj(), n=self.size)
        blocks = x.view(-1, self.size)
        shifted = torch.stack([blocks.roll(-j, dims=-1) for j in range(self.size)])  # [j, n, k] is x[n][(j + k) % size]
        return y + (shifted.flatten(1) @ w.flatten(1).T).T.flatten()

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        blocks = x.float().view(*x.shape[:-1], -1, self.size)
        frequencies = torch.fft.rfft(blocks).permute(0, 3, 1, 2)  # [G, f, rows, n]
        product = torch.matmul(frequencies, self.spectrum)  # [G, f, rows, m]
        found: Tensor = torch.fft.irfft(product.permute(0, 2, 3, 1), n=self.size)
        return found.flatten(-2).to(x.dtype)
