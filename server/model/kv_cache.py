"""Paged storage of keys and values: block b holds the slots ``b * block_size ..``, in every layer alike.

Which block belongs to whom is the block manager's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops import PrefixKV


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer stores for a position: ``num_heads`` keys of ``key_dim`` and values of ``value_dim``."""

    num_heads: int
    key_dim: int
    value_dim: int

    @property
    def size(self) -> int:
        """Numbers stored for one position."""
        return self.num_heads * (self.key_dim + self.value_dim)


def common_head_dim(layers: Sequence[LayerShape]) -> int:
    """The size of every key and value; 0 when they differ, or layers have different numbers of heads."""
    first = layers[0]
    alike = all(layer == first for layer in layers) and first.key_dim == first.value_dim
    return first.key_dim if alike else 0


class KVCache:
    """Keys and values of all layers. ``keys[l]`` is [num_blocks * block_size, num_heads, key_dim]."""

    def __init__(
        self, layers: Sequence[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        slots = num_blocks * block_size
        self.num_blocks, self.block_size = num_blocks, block_size
        self.keys = [torch.zeros(slots, s.num_heads, s.key_dim, dtype=dtype, device=device) for s in layers]
        self.values = [torch.zeros(slots, s.num_heads, s.value_dim, dtype=dtype, device=device) for s in layers]

    @staticmethod
    def num_blocks_for(layers: Sequence[LayerShape], nbytes: int, block_size: int, dtype: torch.dtype) -> int:
        """How many blocks fit into ``nbytes``."""
        return nbytes // (block_size * dtype.itemsize * sum(s.size for s in layers))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store ``key`` and ``value`` [T, num_heads, dim] at ``slots`` [T]."""
        self.keys[layer].index_copy_(0, slots, key)
        self.values[layer].index_copy_(0, slots, value)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at ``slots`` [B, K], each as [B, num_heads, K, dim]."""
        flat = slots.flatten()
        key = self.keys[layer].index_select(0, flat).view(*slots.shape, *self.keys[layer].shape[1:])
        value = self.values[layer].index_select(0, flat).view(*slots.shape, *self.values[layer].shape[1:])
        return key.transpose(1, 2), value.transpose(1, 2)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, target) each."""
        if not pairs:
            return
        source, target = torch.tensor(pairs, device=self.keys[0].device).unbind(1)
        for tensor in (*self.keys, *self.values):
            blocks = tensor.view(self.num_blocks, self.block_size, *tensor.shape[1:])
            blocks.index_copy_(0, target, blocks.index_select(0, source))

    def write_prefix(self, prefix: PrefixKV, slots: Tensor) -> None:
        """Store a prefix adapter's positions at ``slots`` [num_virtual_tokens]."""
        for layer in range(len(self.keys)):
            self.write(layer, slots, prefix.keys[layer], prefix.values[layer])
