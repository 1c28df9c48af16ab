"""Updates that are a matrix of their own: whole, by single entries, by frequencies, of circulant blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from adapters.ops.op import AddOp, Site
from hotkernels.products import matmul, weighted_rows


@dataclass(frozen=True, eq=False)
class Delta(AddOp):
    """A dense update of a linear map. It weighs as much as the map itself, so members are never copied into a stack.

    Semantics: ``y += x @ weight``.
    Shape: ``weight`` [in_features, out_features].
    """

    STACKS: ClassVar[bool] = False
    PROPORTIONAL_TO: ClassVar[str] = "weight"

    weight: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        return y + x @ self.weight.float()

    @override
    def update(self, x: Tensor) -> Tensor:
        return matmul(x, self.weight)


@dataclass(frozen=True, eq=False)
class Sparse(AddOp):
    """A sparse update of a linear map, in compressed rows.

    Semantics: ``y[o] += sum of values[i] * x[inputs[i]]`` over ``starts[o] <= i < starts[o + 1]``, in float32.
    Shape: ``starts`` [out_features + 1], ``inputs`` [n], both int32; ``values`` [n].
    """

    STACKS: ClassVar[bool] = False
    PROPORTIONAL_TO: ClassVar[str] = "values"

    starts: Tensor
    inputs: Tensor
    values: Tensor

    @classmethod
    def build(cls, rows: Tensor, columns: Tensor, values: Tensor, out_features: int) -> Self:
        """The op whose update has ``values`` at ``rows``, ``columns``; values at one place add up. Shape: all [n]."""
        order = torch.argsort(rows.long(), stable=True)
        counts = torch.bincount(rows.long(), minlength=out_features)
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return cls(starts.int(), columns[order].int(), values[order])

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        return y + self._dense(len(x)) @ x

    @override
    def update(self, x: Tensor) -> Tensor:
        return self._sums(x[0].float().T).T.to(x.dtype)[None]

    def _dense(self, in_features: int) -> Tensor:
        """The update's matrix [out_features, in_features]."""
        rows = torch.repeat_interleave(self.starts.diff())
        matrix = torch.zeros(len(self.starts) - 1, in_features, device=self.values.device)
        return matrix.index_put_((rows, self.inputs.long()), self.values.float(), accumulate=True)

    def _sums(self, x: Tensor) -> Tensor:
        """The products of a stack of one with ``x`` [in_features, k]; [out_features, k]."""
        return weighted_rows(x.contiguous(), self.starts[0], self.inputs[0], self.values[0])


@dataclass(frozen=True, eq=False)
class Spectrum(Sparse):
    """A sparse update in the frequency domain; it is applied there, so its matrix is never built.

    Semantics: ``y += x @ Re(ifft2(S)).T`` in float32, where ``S`` [out_features, in_features] is the matrix that
    ``starts``, ``inputs`` and ``values`` describe as in ``Sparse``: the same as ``Re(ifft(S @ conj(fft(x)))) / in``.
    Shape: as ``Sparse``.
    """

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        matrix: Tensor = torch.fft.ifft2(self._dense(len(x))).real
        return y + matrix @ x

    @override
    def update(self, x: Tensor) -> Tensor:
        rows, in_features = x.shape[1:]
        frequencies = torch.view_as_real(torch.fft.fft(x[0].float()).conj().resolve_conj())  # [rows, in, 2]
        sums = self._sums(frequencies.transpose(0, 1).reshape(in_features, 2 * rows))  # [out, rows * 2]
        # A row's numbers side by side: along the other dimension a lone row is transformed in another order.
        sums = sums.view(-1, rows, 2).transpose(0, 1).contiguous()
        found: Tensor = torch.fft.ifft(torch.view_as_complex(sums)).real
        return (found / in_features).to(x.dtype)[None]


@dataclass(frozen=True, eq=False)
class Circulant(AddOp):
    """A block-circulant update, applied as products of frequencies (C3A, https://huggingface.co/papers/2407.19342).

    Semantics: for output block ``m`` and input block ``n``, ``y[m][j] += sum over k of w[m, n, k] * x[n][(j + k) %
    size]`` in float32, with ``spectrum[f, n, m]`` the conjugate of frequency ``f`` of ``w[m, n]``.
    Shape: ``spectrum`` [size // 2 + 1, in_features / size, out_features / size], complex64.
    """

    PROPORTIONAL_TO: ClassVar[str] = "spectrum"

    spectrum: Tensor
    size: int

    @classmethod
    def build(cls, w: Tensor) -> Self:
        """The op of ``w`` [out_features / size, in_features / size, size]."""
        return cls(torch.fft.rfft(w.float()).conj().permute(2, 1, 0).resolve_conj().contiguous(), w.shape[-1])

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        w: Tensor = torch.fft.irfft(self.spectrum.permute(2, 1, 0).conj(), n=self.size)
        blocks = x.view(-1, self.size)
        shifted = torch.stack([blocks.roll(-j, dims=-1) for j in range(self.size)])  # [j, n, k] is x[n][(j + k) % size]
        return y + (shifted.flatten(1) @ w.flatten(1).T).T.flatten()

    @override
    def update(self, x: Tensor) -> Tensor:
        blocks = x.float().view(*x.shape[:-1], -1, self.size)
        frequencies = torch.fft.rfft(blocks).permute(0, 3, 1, 2)  # [G, f, rows, n]
        product = _complex_product(frequencies, self.spectrum)  # [G, f, rows, m]
        found: Tensor = torch.fft.irfft(product.permute(0, 2, 3, 1).contiguous(), n=self.size)
        return found.flatten(-2).to(x.dtype)


def _complex_product(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` by products of real numbers, which keep every row the same in any batch.

    Shape: ``x`` [G, f, n, in], ``w`` [G, f, in, out], both complex64.
    """
    members, frequencies, rows, _ = x.shape
    parts = torch.view_as_real(x).permute(0, 1, 4, 2, 3).flatten(2, 3).flatten(0, 1)  # [G f, 2 n, in]
    products = matmul(parts, torch.view_as_real(w).flatten(3).flatten(0, 1))
    real, imaginary = products.view(members, frequencies, 2, rows, -1, 2).unbind(2)
    return torch.complex(real[..., 0] - imaginary[..., 1], real[..., 1] + imaginary[..., 0])
