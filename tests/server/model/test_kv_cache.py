from __future__ import annotations

import sys

import psutil
import pytest
import torch

from adapters.ops import PrefixKV
from server.model.kv_cache import KVCache, LayerShape

LAYERS = [LayerShape(2, 4, 4), LayerShape(2, 4, 6)]


STORED = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def make_cache(stored: torch.dtype = torch.float32) -> KVCache:
    return KVCache(LAYERS, 5, 3, torch.float32, torch.device("cpu"), stored)


def test_written_slots_are_read_back_in_order() -> None:
    cache = make_cache()
    key, value = torch.randn(4, 2, 4), torch.randn(4, 2, 6)
    cache.write(1, torch.tensor([7, 2, 9, 0]), key, value)
    keys, values = cache.read(1, torch.tensor([[2, 7], [0, 9]]))
    assert torch.equal(keys[0].transpose(0, 1), key[[1, 0]])
    assert torch.equal(values[1].transpose(0, 1), value[[3, 2]])


@pytest.mark.parametrize("stored", STORED)
def test_numbers_are_kept_within_the_rounding_of_their_type(stored: torch.dtype) -> None:
    cache, slots = make_cache(stored), torch.tensor([7, 2, 9, 0])
    key, value = torch.randn(4, 2, 4), torch.randn(4, 2, 6)
    cache.write(1, slots, key, value)
    keys, values = cache.read(1, slots[None])
    step = 2 / 127 if stored == torch.int8 else torch.finfo(stored).eps  # of numbers below 4
    assert keys.dtype == torch.float32
    for got, want in ((keys, key), (values, value)):
        torch.testing.assert_close(got[0].transpose(0, 1), want, rtol=0, atol=2 * step)


@pytest.mark.parametrize("stored", STORED)
def test_blocks_are_copied_in_every_layer(stored: torch.dtype) -> None:
    """Within a page, and from one to another."""
    cache = KVCache(LAYERS, 100, 3, torch.float32, torch.device("cpu"), stored)
    assert len(cache.keys[0]) > 1
    for layer, shape in enumerate(LAYERS):
        cache.write(layer, torch.arange(3, 6), torch.randn(3, 2, shape.key_dim), torch.randn(3, 2, shape.value_dim))
    cache.copy_blocks([(1, 4), (0, 2), (1, 99)])
    for layer in range(len(LAYERS)):
        slots = torch.tensor([[3, 4, 5], [12, 13, 14], [297, 298, 299]])
        for source, *targets in cache.read(layer, slots):
            assert all(torch.equal(source, target) for target in targets)
            assert source.abs().sum() > 0


@pytest.mark.parametrize("stored", STORED)
def test_all_layers_of_a_block_lie_close_together(stored: torch.dtype) -> None:
    """So that huge pages hold what is in use."""
    layers = [LayerShape(3, 64, 64)] * 30
    cache = KVCache(layers, 1_000, 16, torch.float32, torch.device("cpu"), stored)
    block = [t[0, 0].data_ptr() for t in cache.keys]
    assert max(block) - min(block) < 1.1 * 128 * sum(layer.nbytes(stored) for layer in layers)


@pytest.mark.parametrize("stored", STORED)
def test_size_is_as_computed(stored: torch.dtype) -> None:
    cache = make_cache(stored)
    assert KVCache.num_blocks_for(LAYERS, cache.nbytes, 3, stored) == 5
    assert KVCache.num_blocks_for(LAYERS, cache.nbytes - 1, 3, stored) == 4


def test_a_prefix_fills_its_slots() -> None:
    cache = KVCache([LAYERS[0]] * 2, 5, 3, torch.float32, torch.device("cpu"))
    prefix = PrefixKV(torch.randn(2, 4, 2, 4), torch.randn(2, 4, 2, 4))
    cache.write_prefix(prefix, torch.tensor([3, 4, 5, 9]))
    assert torch.equal(cache.keys[1].flatten(0, 1)[[3, 4, 5, 9]], prefix.keys[1])
    assert torch.equal(cache.values[0].flatten(0, 1)[9], prefix.values[0, 3])


@pytest.mark.skipif(sys.platform != "linux", reason="where pages come from")
@pytest.mark.parametrize("stored", STORED)
def test_a_cache_takes_memory_as_it_is_written(stored: torch.dtype) -> None:
    layers = [LayerShape(4, 64, 64)] * 2
    before = resident()
    cache = KVCache(layers, 6_000, 16, torch.float32, torch.device("cpu"), stored)
    assert cache.nbytes > 100e6
    for layer in range(len(layers)):
        for block in (0, 3_000):  # the first to be handed out, and another
            slots = torch.arange(16) + 16 * block
            cache.write(layer, slots, torch.ones(16, 4, 64), torch.ones(16, 4, 64))
    assert resident() - before < 0.25 * cache.nbytes
    keys, values = cache.read(1, torch.tensor([[12_345, 3_000 * 16]]))
    assert keys[:, :, 0].abs().max() == values[:, :, 0].abs().max() == 0, "never written"
    assert keys[:, :, 1].min() > 0
    for layer in range(len(layers)):
        for start in range(0, 6_000 * 16, 6_000):
            cache.write(layer, torch.arange(6_000) + start, torch.ones(6_000, 4, 64), torch.ones(6_000, 4, 64))
    assert resident() - before > 0.75 * cache.nbytes, "the test sees what is written"


def resident() -> int:
    return int(psutil.Process().memory_info().rss)
