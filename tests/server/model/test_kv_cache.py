from __future__ import annotations

import torch

from adapters.ops import PrefixKV
from server.model.kv_cache import KVCache, LayerShape

LAYERS = [LayerShape(2, 4, 4), LayerShape(2, 4, 6)]


def make_cache() -> KVCache:
    return KVCache(LAYERS, num_blocks=5, block_size=3, dtype=torch.float32, device=torch.device("cpu"))


def test_written_slots_are_read_back_in_order() -> None:
    cache = make_cache()
    key, value = torch.randn(4, 2, 4), torch.randn(4, 2, 6)
    cache.write(1, torch.tensor([7, 2, 9, 0]), key, value)
    keys, values = cache.read(1, torch.tensor([[2, 7], [0, 9]]))
    assert torch.equal(keys[0].transpose(0, 1), key[[1, 0]])
    assert torch.equal(values[1].transpose(0, 1), value[[3, 2]])


def test_blocks_are_copied_in_every_layer() -> None:
    cache = make_cache()
    for layer, shape in enumerate(LAYERS):
        cache.write(layer, torch.arange(3, 6), torch.randn(3, 2, shape.key_dim), torch.randn(3, 2, shape.value_dim))
    cache.copy_blocks([(1, 4), (0, 2)])
    for keys, values in zip(cache.keys, cache.values, strict=True):
        assert torch.equal(keys[12:15], keys[3:6])
        assert torch.equal(values[12:15], values[3:6])
        assert keys[3:6].abs().sum() > 0


def test_size_is_as_computed() -> None:
    cache = make_cache()
    assert KVCache.num_blocks_for(LAYERS, cache.nbytes, 3, torch.float32) == 5
    assert KVCache.num_blocks_for(LAYERS, cache.nbytes - 1, 3, torch.float32) == 4


def test_a_prefix_fills_its_slots() -> None:
    cache = KVCache([LAYERS[0]] * 2, 5, 3, torch.float32, torch.device("cpu"))
    prefix = PrefixKV(torch.randn(2, 4, 2, 4), torch.randn(2, 4, 2, 4))
    cache.write_prefix(prefix, torch.tensor([3, 4, 5, 9]))
    assert torch.equal(cache.keys[1][[3, 4, 5, 9]], prefix.keys[1])
    assert torch.equal(cache.values[0][9], prefix.values[0, 3])
