"""Products with weights that stay packed as they are stored.

A weight's numbers are blocks of ``block`` neighbours along a row, each with a scale and, in some formats, a minimum:
GGUF's Q4_0, Q4_1 and Q8_0 (blocks of 32), AWQ and GPTQ (blocks of 128), bitsandbytes' NF4 and FP4 (blocks of 64, codes
that stand for the values of a code book) and INT8 (one block a row). Float weights have neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hotkernels import native
from hotkernels.memory import LargePages


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
        blocks = (
            codes.float().view(*self.scale.shape, self.in_features // self.scale.shape[1])
            * self.scale.float()[..., None]
        )
        if self.minimum is not None:
            blocks = blocks + self.minimum.float()[..., None]
        return blocks.flatten(-2)

    def map(self, fn: Callable[[Tensor], Tensor]) -> StoredWeight:
        """The same weight with ``fn`` applied to every tensor that has rows."""
        scale = None if self.scale is None else fn(self.scale)
        minimum = None if self.minimum is None else fn(self.minimum)
        return StoredWeight(fn(self.codes), scale, minimum, self.book)


class PackedWeight(ABC):
    """A weight laid out for the variant in use; made by ``pack``, and the only form of it that need be kept."""

    @property
    @abstractmethod
    def out_features(self) -> int:
        """N."""

    @property
    @abstractmethod
    def in_features(self) -> int:
        """K."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that it takes."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight in float32, [out_features, in_features]."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> PackedWeight:
        """Output features ``start .. stop`` alone, sharing this weight's memory. Both are multiples of ``ROWS``."""

    @abstractmethod
    def take(self, indices: Tensor) -> Tensor:
        """Some output features' weights, dequantizing no others: rows of an embedding's table.

        Semantics: ``dense()[indices]``; of no output feature, NaN or IndexError.
        Shape: ``indices`` [n] int64; returns [n, in_features] float32.
        """

    @property
    def address(self) -> int | None:
        """What ``NATIVE_LINEAR`` takes for this weight, as long as the weight lives; None where torch does the work."""
        return None


ROWS = 16  # output features that lie side by side: a tile


def pack(weights: Sequence[StoredWeight], memory: LargePages | None = None) -> PackedWeight:
    """Lay weights of equal format and in_features out, one below the other; ``rows`` gives back each.

    Each must have a multiple of ``ROWS`` output features, except the last. Nothing but the result is held meanwhile.
    It lies in ``memory``, side by side with what else does.
    """
    assert all(weight.out_features % ROWS == 0 for weight in weights[:-1])
    first = weights[0]
    if native.library() is None or not _fits_tiles(first):
        return _AsStored(first if len(weights) == 1 else _joined(weights))
    layout = _layout(weights)
    tiles = [-(-weight.out_features // ROWS) for weight in weights]
    memory = memory or LargePages(sum(tiles) * layout.tile_bytes)
    packed = memory.empty(sum(tiles) * layout.tile_bytes).view(sum(tiles), layout.tile_bytes)
    for part, weight in zip(torch.split(packed, tiles), weights, strict=True):
        layout.fill(part, weight)
    return _Tiled(packed, layout, sum(weight.out_features for weight in weights), first.book)


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """The product with a packed weight.

    Semantics: ``x @ weight.dense().T + bias``. Native products of integer codes round the activations to words of 16
    bits a run of 32, which count a power of two (with a code book to 14 bits, and the book's values too), and add runs
    in order, so that every row is the same in any batch. Those of float weights add in float32 over k in order.
    Shape: ``x`` [T, K]; returns [T, N] in ``x``'s type, or ``out``, whose rows may lie any distance apart.
    """
    address = weight.address
    if address is None or not native.is_native(x, bias, out):
        return linear_torch(x, weight, bias, out=out)
    if bias is not None:
        bias = bias.float()
    y = x.new_empty(x.shape[0], weight.out_features) if out is None else out
    NATIVE_LINEAR(address, x.data_ptr(), x.stride(0), x.shape[0], native.pointer(bias), y.data_ptr(), y.stride(0))
    return y


# Weight's address, x, floats between its rows, rows, bias or None, y, floats between its rows: ``linear`` unchecked.
NATIVE_LINEAR = native.Function("linear", "ppiippi")
# The same, then the addresses and counts of ``LowRankMaps`` and ``LowRankRows``: ``add_low_rank`` in the same call.
NATIVE_LINEAR_UPDATED = native.Function("linear_updated", "ppiippipipi")


def linear_torch(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """The twin of ``linear``."""
    y: Tensor = F.linear(x.float(), weight.dense(), None if bias is None else bias.float())
    return y.to(x.dtype) if out is None else out.copy_(y)


@dataclass(frozen=True, eq=False)
class _AsStored(PackedWeight):
    """Where torch does the work."""

    stored: StoredWeight

    @property
    def out_features(self) -> int:
        return self.stored.out_features

    @property
    def in_features(self) -> int:
        return self.stored.in_features

    @property
    def nbytes(self) -> int:
        tensors = (self.stored.codes, self.stored.scale, self.stored.minimum)
        return sum(t.nbytes for t in tensors if t is not None)

    def dense(self) -> Tensor:
        return self.stored.dense()

    def rows(self, start: int, stop: int) -> PackedWeight:
        _check_rows(self, start, stop)
        return _AsStored(self.stored.map(lambda tensor: tensor[start:stop]))

    def take(self, indices: Tensor) -> Tensor:
        return self.stored.map(lambda tensor: tensor[indices]).dense()


def _joined(weights: Sequence[StoredWeight]) -> StoredWeight:
    def joined(name: str) -> Tensor | None:
        parts = [getattr(weight, name) for weight in weights]
        return None if parts[0] is None else torch.cat(parts)

    codes = joined("codes")
    assert codes is not None
    return StoredWeight(codes, joined("scale"), joined("minimum"), weights[0].book)


def _check_rows(weight: PackedWeight, start: int, stop: int) -> None:
    assert start % ROWS == 0
    assert stop % ROWS == 0 or stop == weight.out_features


_FLOATS = native.STORED  # Kind in csrc/linear.h begins with these
_CODES = {torch.uint8: 3, torch.int8: 4}
_NONE = 5
_RUN = 32


@dataclass(frozen=True)
class _Layout:
    """How the bytes of a tile lie; csrc/linear.h says it in words. A weight of floats is one block without scales."""

    codes: torch.dtype
    in_features: int
    blocks: int
    scale: torch.dtype | None
    minimum: torch.dtype | None
    zero: int  # stands for a minimum of -zero * scale

    @property
    def word(self) -> torch.dtype:
        """What is transposed: an integer as wide as a float, or two bytes of codes."""
        return torch.int32 if self.codes == torch.float32 else torch.int16

    @property
    def words(self) -> int:
        """Of a block of one output feature; those of codes are filled up to whole runs."""
        block = self.in_features // self.blocks
        return block if self.codes in _FLOATS else -(-block // _RUN) * _RUN // (4 if self.codes == torch.uint8 else 2)

    @property
    def header(self) -> int:
        """Bytes of a block's scales and minima."""
        return sum(ROWS * kind.itemsize for kind in (self.scale, self.minimum) if kind is not None)

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile."""
        return self.blocks * (self.header + self.words * ROWS * self.word.itemsize)

    def parts(self, tiles: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Words [tiles, blocks, words, 16], scales and minima [tiles, blocks, 16]: views of the tiles' bytes."""
        blocks = tiles.view(len(tiles), self.blocks, -1)
        words = blocks[..., self.header :].view(self.word).view(len(tiles), self.blocks, self.words, ROWS)
        split = 0 if self.scale is None else ROWS * self.scale.itemsize
        scale = None if self.scale is None else blocks[..., :split].view(self.scale)
        minimum = None if self.minimum is None else blocks[..., split : self.header].view(self.minimum)
        return words, scale, minimum

    def fill(self, tiles: Tensor, weight: StoredWeight) -> None:
        """Put a weight into its tiles."""
        whole = weight.out_features // ROWS
        if whole:
            self._fill(tiles[:whole], weight.map(lambda tensor: tensor[: whole * ROWS]))
        if rest := weight.out_features % ROWS:
            self._fill(tiles[whole:], weight.map(lambda tensor: F.pad(tensor[-rest:], (0, 0, 0, ROWS - rest))))

    def _fill(self, tiles: Tensor, weight: StoredWeight) -> None:
        words, *floats = self.parts(tiles)
        stored = weight.codes.contiguous().view(torch.uint8).view(len(tiles), ROWS, self.blocks, -1)
        stored = F.pad(stored, (0, self.words * self.word.itemsize - stored.shape[-1]))
        words.copy_(stored.view(self.word).permute(0, 2, 3, 1))
        for packed, found in zip(floats, (weight.scale, weight.minimum), strict=True):
            if packed is not None and found is not None:
                packed.copy_(found.view(len(tiles), ROWS, self.blocks).mT)

    def stored(self, tiles: Tensor, rows: int, book: Tensor | None) -> StoredWeight:
        """The weight that was put in."""
        words, scale, minimum = self.parts(tiles)
        words = words.permute(0, 3, 1, 2).flatten(0, 1)[:rows]
        scale, minimum = (None if t is None else t.mT.flatten(0, 1)[:rows] for t in (scale, minimum))
        kept = self.in_features // self.blocks * self.codes.itemsize // (2 if self.codes == torch.uint8 else 1)
        codes = words.contiguous().view(torch.uint8)[..., :kept].flatten(1)
        if self.zero and scale is not None:
            minimum = scale.float() * -self.zero
        return StoredWeight(codes.contiguous().view(self.codes), scale, minimum, book)


def _fits_tiles(weight: StoredWeight) -> bool:
    codes, scale = weight.codes, weight.scale
    if codes.device.type != "cpu" or weight.in_features == 0:
        return False
    if codes.dtype in _FLOATS:
        return scale is None
    return scale is not None and codes.dtype in _CODES and codes.shape[1] % scale.shape[1] == 0


def _layout(weights: Sequence[StoredWeight]) -> _Layout:
    def kind(tensor: Tensor | None) -> torch.dtype | None:
        return None if tensor is None else tensor.dtype if tensor.dtype in _FLOATS else torch.float32

    first = weights[0]
    zero = _CENTRE if all(_is_centred(weight) for weight in weights) else 0
    blocks = 1 if first.scale is None else first.scale.shape[1]
    minimum = None if zero else kind(first.minimum)
    return _Layout(first.codes.dtype, first.in_features, blocks, kind(first.scale), minimum, zero)


_CENTRE = 8


def _is_centred(weight: StoredWeight) -> bool:
    """Whether the minimum says no more than that codes mean what they are less 8, as in Q4_0."""
    scale, minimum = weight.scale, weight.minimum
    if scale is None or minimum is None or weight.codes.dtype != torch.uint8 or weight.book is not None:
        return False
    return torch.equal(minimum.float(), scale.float() * -_CENTRE)


_TAKE = native.Function("take", "ppip")


class _Tiled(PackedWeight):
    """In tiles for the library, the same for all its variants."""

    def __init__(self, tiles: Tensor, layout: _Layout, out_features: int, book: Tensor | None) -> None:
        self._tiles, self._layout, self._out_features = tiles, layout, out_features
        self._book = None if book is None else book.float().contiguous()
        kind = {**_FLOATS, **_CODES}[layout.codes]
        floats = [_NONE if t is None else _FLOATS[t] for t in (layout.scale, layout.minimum)]
        book_address = 0 if self._book is None else self._book.data_ptr()
        sizes = (kind, out_features, layout.in_features, layout.in_features // layout.blocks)
        self._weight = torch.tensor([tiles.data_ptr(), book_address, *sizes, *floats, layout.zero])
        self._address = self._weight.data_ptr()

    def __reduce__(self) -> tuple[type[_Tiled], tuple[object, ...]]:
        """A copy has other addresses, and memory of its own."""
        return _Tiled, (self._tiles.clone(), self._layout, self._out_features, self._book)

    @property
    def address(self) -> int:
        return self._address

    @property
    def out_features(self) -> int:
        return self._out_features

    @property
    def in_features(self) -> int:
        return self._layout.in_features

    @property
    def nbytes(self) -> int:
        return self._tiles.nbytes

    def dense(self) -> Tensor:
        return self._layout.stored(self._tiles, self._out_features, self._book).dense()

    def rows(self, start: int, stop: int) -> PackedWeight:
        _check_rows(self, start, stop)
        return _Tiled(self._tiles[start // ROWS : -(-stop // ROWS)], self._layout, stop - start, self._book)

    def take(self, indices: Tensor) -> Tensor:
        if native.library() is None:  # packed for it all the same
            return self.dense()[indices]
        indices, y = indices.contiguous(), torch.empty(len(indices), self.in_features)
        _TAKE(self._address, indices.data_ptr(), len(indices), y.data_ptr())
        return y
