"""Products with weights that stay packed as they are stored.

A weight's numbers are blocks of ``block`` neighbours along a row, each with a scale and, in some formats, a minimum:
GGUF's Q4_0, Q4_1 and Q8_0 (blocks of 32), bitsandbytes' NF4 and FP4 (blocks of 64, codes that stand for the values of a
code book) and INT8 (one block a row). Float weights have neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight [out_features, in_features] of a linear map, as files store it.

    Semantics: ``W[n, k] = value(codes[n, k]) * scale[n, k // block] + minimum[n, k // block]``, where ``value`` is the
    code itself, or ``book[code]`` with a code book; a float weight is ``codes`` alone.
    Shape: ``codes`` [N, K] float, or int8; of four bits uint8 [N, K / 2], the even k in the low half, unsigned.
    ``scale`` and ``minimum`` [N, K / block] float; ``book`` [16] float.
    """

    codes: Tensor
    scale: Tensor | None = None
    minimum: Tensor | None = None
    book: Tensor | None = None

    @property
    def out_features(self) -> int:
        """N."""
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.codes.shape[1] * (2 if self.codes.dtype == torch.uint8 else 1)

    def dense(self) -> Tensor:
        """The weight in float32, [out_features, in_features]."""
        codes = self.codes
        if codes.dtype == torch.uint8:
            codes = torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)
            if self.book is not None:
                codes = self.book.float()[codes.int()]
        if self.scale is None:
            return codes.float()
        blocks = codes.float().view(*self.scale.shape, -1) * self.scale.float()[..., None]
        if self.minimum is not None:
            blocks = blocks + self.minimum.float()[..., None]
        return blocks.flatten(-2)

    def map(self, fn: Callable[[Tensor], Tensor]) -> StoredWeight:
        """The same weight with ``fn`` applied to every tensor that has rows."""
        scale = None if self.scale is None else fn(self.scale)
        minimum = None if self.minimum is None else fn(self.minimum)
        return StoredWeight(fn(self.codes), scale, minimum, self.book)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight laid out for the variant in use; made by ``pack``, and the only form of it that need be kept."""

    stored: StoredWeight

    @property
    def out_features(self) -> int:
        """N."""
        return self.stored.out_features

    @property
    def in_features(self) -> int:
        """K."""
        return self.stored.in_features

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        tensors = (self.stored.codes, self.stored.scale, self.stored.minimum)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def dense(self) -> Tensor:
        """The weight in float32, [out_features, in_features]."""
        return self.stored.dense()

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Output features ``start .. stop`` alone, sharing this weight's memory. Both are multiples of ``ROWS``."""
        assert start % ROWS == 0 and (stop % ROWS == 0 or stop == self.out_features)
        return PackedWeight(self.stored.map(lambda tensor: tensor[start:stop]))


ROWS = 16  # output features that lie side by side


def pack(weights: Sequence[StoredWeight]) -> PackedWeight:
    """Lay weights of equal format and in_features out, one below the other; ``rows`` gives back each.

    Each must have a multiple of ``ROWS`` output features, except the last.
    """
    assert all(weight.out_features % ROWS == 0 for weight in weights[:-1])
    first = weights[0]
    if len(weights) == 1:
        return PackedWeight(first)

    def joined(name: str) -> Tensor | None:
        parts = [getattr(weight, name) for weight in weights]
        return None if parts[0] is None else torch.cat(parts)

    codes = joined("codes")
    assert codes is not None
    return PackedWeight(StoredWeight(codes, joined("scale"), joined("minimum"), first.book))


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """The product with a packed weight.

    Semantics: ``x @ weight.dense().T + bias``. Native products of integer codes round the activations to 16 bits a
    block (14 with a code book), and add blocks in order, so that every row is the same in any batch.
    Shape: ``x`` [T, K]; returns [T, N] in ``x``'s type.
    """
    return linear_torch(x, weight, bias)


def linear_torch(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """The twin of ``linear``."""
    y: Tensor = F.linear(x.float(), weight.dense(), None if bias is None else bias.float())
    return y.to(x.dtype)
