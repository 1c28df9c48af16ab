"""Options of the servers that are measured."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.speed.loads import CACHE_TOKENS, LOADS
from benchmarks.speed.servers import cache_of
from server.config import EngineConfig
from server.model.kv_cache import KVCache, LayerShape


def test_the_load_that_memory_is_measured_by_fills_its_cache(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 30, "num_key_value_heads": 3, "hidden_size": 576, "num_attention_heads": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = cache_of(tmp_path, CACHE_TOKENS)
    dtype, size = (options[options.index(name) + 1] for name in ("--kv-dtype", "--kv-cache-gb"))
    assert dtype == "float16"
    block = EngineConfig(model="m").block_size
    blocks = KVCache.num_blocks_for([LayerShape(3, 64, 64)] * 30, int(float(size) * 1e9), block, torch.float16)
    assert blocks * block == CACHE_TOKENS
    (load,) = (load for load in LOADS if load.adapters == "sized")
    assert load.concurrency == load.requests, "all at once"
    assert load.concurrency * (load.prompt_tokens + load.max_tokens) == CACHE_TOKENS
