"""Paged storage of keys and values: block b holds the slots ``b * block_size ..``, in every layer alike.

Which block belongs to whom is the block manager's business.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
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


class KVCache:
    """Keys and values of all layers. ``keys[l]`` is [num_blocks * block_size, num_heads, key_dim].

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
        slots, kept = num_blocks * block_size, stored or dtype
        self.num_blocks, self.block_size = num_blocks, block_size
        self.dtype, self.stored, self.device = dtype, kept, device
        self.keys = [_zeros((slots, s.num_heads, s.key_dim), kept, device) for s in layers]
        self.values = [_zeros((slots, s.num_heads, s.value_dim), kept, device) for s in layers]
        self.scales: list[Scales | None] = [None] * len(layers)
        if kept == torch.int8:
            shapes = [(slots, s.num_heads) for s in layers]
            self.scales = [(_zeros(s, torch.float32, device), _zeros(s, torch.float32, device)) for s in shapes]

    @staticmethod
    def num_blocks_for(layers: Sequence[LayerShape], nbytes: int, block_size: int, stored: torch.dtype) -> int:
        """How many blocks fit into ``nbytes``."""
        return nbytes // (block_size * sum(s.nbytes(stored) for s in layers))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

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
            read_cache(t, flat, scale, self.dtype).view(*slots.shape, *t.shape[1:]).transpose(1, 2)
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
        for tensor in self._tensors():
            blocks = tensor.view(self.num_blocks, self.block_size, *tensor.shape[1:])
            blocks.index_copy_(0, target, blocks.index_select(0, source))

    def write_prefix(self, prefix: PrefixKV, slots: Tensor) -> None:
        """Store a prefix adapter's positions at ``slots`` [num_virtual_tokens]."""
        for layer in range(len(self.keys)):
            self.write(layer, slots, prefix.keys[layer], prefix.values[layer])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On the CPU of fresh pages, which the machine gives memory to when they are first written.

    torch.zeros writes them all.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
