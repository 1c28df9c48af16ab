"""Paged storage of keys and values: block b holds the slots ``b * block_size ..``, in every layer alike.

Which block belongs to whom is the block manager's business. In memory a page of some blocks holds the keys and values
of all layers: those of a layer in one piece, which is read at the speed of memory, and all layers of one block close
together, so that the machine's huge pages hold what is in use and little else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from adapters.ops import PrefixKV
from hotkernels import native
from hotkernels.attention import (
    AttentionRule,
    Scales,
    Sequences,
    cache_numbers,
    paged_attention,
    read_cache,
    write_cache,
)
from hotkernels.memory import mapped


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer stores for a position: ``num_heads`` keys of ``key_dim`` and values of ``value_dim``."""

    num_heads: int
    key_dim: int
    value_dim: int

    def nbytes(self, stored: torch.dtype) -> int:
        """Bytes of one position; int8 has two scales a head."""
        scales = 2 * torch.float32.itemsize if stored == torch.int8 else 0
        return self.num_heads * ((self.key_dim + self.value_dim) * stored.itemsize + scales)


def common_head_dim(layers: Sequence[LayerShape]) -> int:
    """The size of every key and value; 0 when they differ, or layers have different numbers of heads."""
    first = layers[0]
    alike = all(layer == first for layer in layers) and first.key_dim == first.value_dim
    return first.key_dim if alike else 0


_ALIGNED = 64  # bytes: a line of the caches
_PAGE = 128  # least positions of a page, if blocks are not larger: as many as attention takes at once


class KVCache:
    """Keys and values of all layers. ``keys[l]`` is [pages, page, num_heads, key_dim], a page being some blocks' slots.

    They are written and read in ``dtype``, and kept in ``stored``, which is ``dtype`` where nobody chose; int8 with
    ``scales[l]``. Slots that were never written hold zeros, and on the CPU no memory.
    """

    def __init__(  # noqa: PLR0917 - all but one are of the kind that nobody mistakes
        self,
        layers: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        stored: torch.dtype | None = None,
    ) -> None:
        kept = stored or dtype
        self.num_blocks, self.block_size = num_blocks, block_size
        self.dtype, self.stored, self.device = dtype, kept, device
        self._blocks_of_page = min(max(_PAGE // block_size, 1), num_blocks)
        self._bytes_of_block = _bytes_of_block(layers, block_size, kept)
        pages = -(-num_blocks // self._blocks_of_page)
        tensors = iter(_laid_out(_tensors(layers, kept), pages, self._blocks_of_page * block_size, device))
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.scales: list[Scales | None] = []
        for _ in layers:
            self.keys.append(next(tensors))
            self.values.append(next(tensors))
            self.scales.append((next(tensors), next(tensors)) if kept == torch.int8 else None)

    @staticmethod
    def num_blocks_for(layers: Sequence[LayerShape], nbytes: int, block_size: int, stored: torch.dtype) -> int:
        """How many blocks fit into ``nbytes``."""
        return nbytes // _bytes_of_block(layers, block_size, stored)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return self.num_blocks * self._bytes_of_block

    @property
    def is_read_in_place(self) -> bool:
        """Whether ``attend`` does better than reading and attending to what was read."""
        return self.device.type == "cpu" and self.dtype == torch.float32 and native.library() is not None

    @cached_property
    def numbers(self) -> list[int]:
        """Where the layers' keys and values lie, for programs: the ``cache_numbers`` of all layers."""
        layers = zip(self.keys, self.values, self.scales, strict=True)
        return [number for layer in layers for number in cache_numbers(*layer)]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store ``key`` and ``value`` [T, num_heads, dim] at ``slots`` [T]."""
        write_cache(key, value, slots, self.keys[layer], self.values[layer], scales=self.scales[layer])

    def attend(self, layer: int, q: Tensor, sequences: Sequences, rule: AttentionRule) -> Tensor:
        """Attention of every row of ``q`` [T, Hq, key_dim] over its own sequence, [T, Hq, value_dim]."""
        return paged_attention(q, self.keys[layer], self.values[layer], sequences, rule, scales=self.scales[layer])

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at ``slots`` [B, K], each as [B, num_heads, K, dim]."""
        stored, flat = (self.keys[layer], self.values[layer]), slots.flatten()
        key, value = (
            read_cache(t, flat, scale, self.dtype).view(*slots.shape, *t.shape[2:]).transpose(1, 2)
            for t, scale in zip(stored, self.scales[layer] or (None, None), strict=True)
        )
        return key, value

    def _tensors(self) -> list[Tensor]:
        return [*self.keys, *self.values, *(scale for pair in self.scales for scale in pair or ())]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, target) each."""
        if not pairs:
            return
        source, target = torch.tensor(pairs, device=self.device).unbind(1)
        places = [(blocks // self._blocks_of_page, blocks % self._blocks_of_page) for blocks in (source, target)]
        for tensor in self._tensors():
            blocks = tensor.view(len(tensor), self._blocks_of_page, self.block_size, *tensor.shape[2:])
            blocks[places[1]] = blocks[places[0]]

    def write_prefix(self, prefix: PrefixKV, slots: Tensor) -> None:
        """Store a prefix adapter's positions at ``slots`` [num_virtual_tokens]."""
        for layer in range(len(self.keys)):
            self.write(layer, slots, prefix.keys[layer], prefix.values[layer])


def _bytes_of_block(layers: Sequence[LayerShape], block_size: int, stored: torch.dtype) -> int:
    return block_size * sum(s.nbytes(stored) for s in layers)


def _tensors(layers: Sequence[LayerShape], stored: torch.dtype) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    """What the layers store of a position: keys, values, and with int8 the scales of both."""
    for s in layers:
        yield (s.num_heads, s.key_dim), stored
        yield (s.num_heads, s.value_dim), stored
        if stored == torch.int8:
            yield from [((s.num_heads,), torch.float32)] * 2


def _laid_out(
    tensors: Iterable[tuple[tuple[int, ...], torch.dtype]], pages: int, page: int, device: torch.device
) -> Iterator[Tensor]:
    """Zeros, [pages, page, ..] by what a tensor stores of a position; in memory a page of each side by side."""
    starts, kinds = [0], list(tensors)
    for shape, dtype in kinds:
        nbytes = page * prod(shape) * dtype.itemsize
        starts.append(starts[-1] + -(-nbytes // _ALIGNED) * _ALIGNED)
    nbytes = pages * starts[-1]
    memory = mapped(nbytes) if device.type == "cpu" else torch.zeros(nbytes, dtype=torch.uint8, device=device)
    for start, (shape, dtype) in zip(starts, kinds, strict=False):
        strides = torch.empty(page, *shape, device="meta").stride()
        apart, first = starts[-1] // dtype.itemsize, start // dtype.itemsize
        yield memory.view(dtype).as_strided((pages, page, *shape), (apart, *strides), first)
