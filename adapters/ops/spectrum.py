"""An update given by some of its frequencies: FourierFT."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops.base import Site
from adapters.ops.sparse import Sparse


@dataclass(frozen=True, eq=False)
class Spectrum(Sparse):
    """A sparse update in the frequency domain; it is applied there, so its matrix is never built.

    Semantics: ``y += x @ Re(ifft2(S)).T`` in float32, where ``S`` [out_features, in_features] is the matrix that
    ``starts``, ``inputs`` and ``values`` describe as in ``Sparse``: the same as ``Re(ifft(S @ conj(fft(x)))) / in``.
    Shape: as ``Sparse``.
    """

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        matrix: Tensor = torch.fft.ifft2(self._dense(len(x))).real
        return y + matrix @ x

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        rows, in_features = x.shape[1:]
        frequencies = torch.view_as_real(torch.fft.fft(x[0].float()).conj().resolve_conj())  # [rows, in, 2]
        sums = self._sums(frequencies.transpose(0, 1).reshape(in_features, 2 * rows))  # [out, rows * 2]
        found: Tensor = torch.fft.ifft(torch.view_as_complex(sums.view(-1, rows, 2)), dim=0).real
        return (found.T / in_features).to(x.dtype)[None]
