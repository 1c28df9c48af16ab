"""What ``make bench`` asks of a server whose memory it measures, and how it shows what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.speed.loads import CACHE_TOKENS, LOADS, OWN_LIMITS
from benchmarks.speed.measuring import Measured
from benchmarks.speed.report import OURS, tables
from benchmarks.speed.servers import cache_of
from server.config import EngineConfig
from server.model.kv_cache import KVCache, LayerShape


def test_the_cache_of_the_memory_load_has_its_size(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 30, "num_key_value_heads": 3, "hidden_size": 576, "num_attention_heads": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, dtype, _, size = cache_of(tmp_path, CACHE_TOKENS)
    assert dtype == "float16"
    block = EngineConfig(model="m").block_size
    blocks = KVCache.num_blocks_for([LayerShape(3, 64, 64)] * 30, int(float(size) * 1e9), block, torch.float16)
    assert blocks * block == CACHE_TOKENS
    (load,) = (load for load in LOADS if load.adapters == "sized")
    assert load.concurrency == load.requests, "all at once"
    assert load.concurrency * (load.prompt_tokens + load.max_tokens) == CACHE_TOKENS


def test_limits_are_shown_beside_what_was_measured() -> None:
    (limit,) = OWN_LIMITS
    assert limit.load in {load.name for load in LOADS}
    found = [Measured(OURS, limit.load, number, 1, 1, 1, 1, 1, pss, 0) for number, pss in enumerate((800, 850, 990))]
    assert f"| {limit.name} | 850 | 900 at most | 700 |" in tables(found)
