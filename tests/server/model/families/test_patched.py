"""What parity in fp32 does not show of the patched families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from adapters.errors import UnsupportedKindError
from bases.packed import PackedLinear
from server.config import EngineConfig
from server.model.families.alibi import alibi_slopes
from server.model.families.mpt import mpt_slopes
from server.model.inputs import ModelInput, SequenceInput
from server.model.loader import load_base
from server.model.model_runner import load_runner
from server.model.prepared import distance
from tests.factory import make_adapter, make_base
from tests.server.model.bench import Bench
from tests.server.model.families.catalog import FAMILIES, PATCHED, model_type_of
from tests.server.model.families.sweep import prefix


def make(name: str, path: Path) -> Path:
    return make_base(path / "base", model_type=model_type_of(name), **FAMILIES[name].config)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 71])
def test_slopes(heads: int) -> None:
    bloom = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), bloom)
    bias = build_mpt_alibi_tensor(heads, 2)[:, 0]
    torch.testing.assert_close(mpt_slopes(heads), bias[:, 1] - bias[:, 0])


@pytest.mark.parametrize("model_type", PATCHED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantize_replaces_all_linear_maps_but_the_head(model_type: str, dtype: str, tmp_path: Path) -> None:
    config = EngineConfig(model=str(make(model_type, tmp_path)), quantize="nf4", dtype=dtype, device="cpu")
    linears = [m for m in load_base(config).model.modules() if isinstance(m, torch.nn.Linear)]
    assert [is_in_4_bits(m) for m in linears].count(False) == 1


def is_in_4_bits(module: torch.nn.Linear) -> bool:
    if isinstance(module, PackedLinear):
        return module.packed.nbytes < 0.6 * module.in_features * module.out_features
    return isinstance(module, Linear4bit)


@pytest.mark.parametrize("name", [name for name in FAMILIES if model_type_of(name) in PATCHED])
def test_bfloat16(name: str, tmp_path: Path) -> None:
    base = make(name, tmp_path)
    steps = [([9, 8, 7, 6, 5], 0, [4]), ([4], 5, [0])]
    found = []
    for dtype in ("float32", "bfloat16"):
        config = EngineConfig(model=str(base), quantize="none", dtype=dtype, device="cpu", kv_cache_gb=0.01, threads=1)
        runner = load_runner(config)
        found.append(
            torch.cat([runner.execute(ModelInput([SequenceInput(None, ids, s, [0], at)])) for ids, s, at in steps])
        )
    assert distance(found[1], found[0]) < 0.05


def test_prefix_adapters_where_keys_and_values_differ_in_size(tmp_path: Path) -> None:
    base = make("deepseek_v3", tmp_path)
    path = make_adapter(base, tmp_path / "prefix", prefix(token_dim=96, num_attention_heads=4), std=0.3)
    with pytest.raises(UnsupportedKindError, match="keys and values of different sizes"):
        Bench(base, {"prefix": path})
