"""bf16 and fp16, and a CUDA device: the same batch as in fp32 on the CPU, within the type's rounding."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hotkernels import native
from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.model_runner import load_runner
from tests.bounds import bound

pytestmark = pytest.mark.numeric

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = ["lora-r4", "lora-r8", "rslora-r16", "lora-bias", "prompt-7", "prefix-5"]


def mixed_logits(base: Path, adapters: Mapping[str, Path], **settings: str) -> Tensor:
    """Logits of one prefill and one decode of the same mixed batch."""
    common = {"quantize": "none", "kv_cache_gb": 0.02, "block_size": 4, "threads": 1}
    runner = load_runner(EngineConfig(model=str(base), **{**common, **settings}))  # type: ignore[arg-type]
    prefill, decode = [SequenceInput(None, [7, 8, 9], 0, [0], [2])], [SequenceInput(None, [5], 3, [0], [0])]
    for i, name in enumerate(NAMES):
        key, blocks = AdapterKey(name, 1, name), list(range(4 * i + 1, 4 * i + 5))
        adapter = runner.prepare(adapters[name]).adapter
        runner.install(key, adapter)
        ids, start = [10 + i, 20, 30, 40, 50 + i], 0
        if adapter.prefix is not None:
            runner.write_prefix(key, blocks)
            start = adapter.num_virtual_tokens
        else:
            ids = [VIRTUAL] * adapter.num_virtual_tokens + ids
        prefill.append(SequenceInput(key, ids, start, blocks, [len(ids) - 1]))
        decode.append(SequenceInput(key, [60 + i], start + len(ids), blocks, [0]))
    return torch.cat([runner.execute(ModelInput(part)).cpu() for part in (prefill, decode)])


# 18 roundings one after another (tests.bounds.LOGITS lists them), logits of deviation 1: that is the mean distance; of
# some thousand, the largest is within five deviations. A forgotten bias changes logits by 0.05 in the mean.
ROUNDING = {name: bound(dtype, length=18) for name, dtype in HALF.items()}


@pytest.fixture(scope="module")
def half_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_base`` in bf16, as bases are published: every type then quantizes the same numbers."""
    path = tmp_path_factory.mktemp("base") / "half"
    shutil.copytree(tiny_base, path)
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    "quantize", ["none", "nf4", "int8", *(pytest.param(q, marks=pytest.mark.slow) for q in ("nf4-dq", "fp4"))]
)
def test_half_types(half_base: Path, tiny_adapters: Mapping[str, Path], dtype: str, quantize: str) -> None:
    want = mixed_logits(half_base, tiny_adapters, dtype="float32", device="cpu", quantize=quantize)
    got = mixed_logits(half_base, tiny_adapters, dtype=dtype, device="cpu", quantize=quantize)
    torch.testing.assert_close(got, want, rtol=0, atol=5 * ROUNDING[dtype])
    assert float((got - want).abs().mean()) < ROUNDING[dtype]


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_types_of_the_cache(half_base: Path, tiny_adapters: Mapping[str, Path], dtype: str, kv_dtype: str) -> None:
    """Keys and values alone are rounded, those of int8 about as in bf16."""
    want = mixed_logits(half_base, tiny_adapters, dtype="float32", device="cpu")
    got = mixed_logits(half_base, tiny_adapters, dtype=dtype, kv_dtype=kv_dtype, device="cpu")
    rounding = max(ROUNDING.get(name, 0.0) for name in (dtype, "bfloat16" if kv_dtype == "int8" else kv_dtype))
    torch.testing.assert_close(got, want, rtol=0, atol=5 * rounding)
    assert not torch.equal(got, want)


@pytest.mark.parametrize(
    ("quantize", "dtype", "want"),
    [("none", "float32", "float32"), ("nf4", "float32", "float16"), ("int8", "float32", "float16"),
     ("nf4", "bfloat16", "bfloat16")],
)  # fmt: skip
@pytest.mark.skipif(native.library() is None, reason="needs native kernels")
def test_the_cache_is_in_halves_where_kernels_read_it_over_a_quantized_base(
    half_base: Path, quantize: str, dtype: str, want: str
) -> None:
    settings = {"quantize": quantize, "dtype": dtype, "device": "cpu", "kv_cache_gb": 0.02, "block_size": 4}
    runner = load_runner(EngineConfig(model=str(half_base), **settings))  # type: ignore[arg-type]
    assert runner.kv_dtype == want
    bytes_of_block = 4 * sum(layer.nbytes(getattr(torch, want)) for layer in runner._forward.layers())
    assert runner.kv_bytes == runner.num_blocks * bytes_of_block
    assert 0.02e9 - bytes_of_block < runner.kv_bytes <= 0.02e9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    want = mixed_logits(tiny_base, tiny_adapters, dtype="float32", device="cpu")
    got = mixed_logits(tiny_base, tiny_adapters, dtype="float32", device="cuda")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
