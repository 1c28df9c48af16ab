"""Packed modules compute what the modules in whose place they are compute, and hold their weights once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from bases.errors import QuantizationError
from bases.loader import load_model
from bases.packed import PackedEmbedding, PackedLinear, is_placeholder
from bases.weights import linear_weight, weight_bytes
from hotkernels import native
from tests.bases.gguf_files import add_blocks
from tests.bounds import LOGITS, packed_logits
from tests.factory import make_base

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(native.library() is None, reason="only what native kernels multiply is packed"),
]

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 300, 1]])


def load(path: Path, quantize: str = "none", dtype: torch.dtype = torch.float32) -> Any:
    return load_model(path, dtype=dtype, device=CPU, quantize=quantize).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out: Tensor = model(IDS).logits[0].float()
    return out


def in_bf16(base: Path, out: Path) -> Path:
    """``base`` as most are published."""
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(out)
    return out


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "qwen2", "olmo2", "phi3", "starcoder2", "gptj"])
def test_a_bf16_checkpoint_computes_as_transformers_does_in_fp32(family: str, tmp_path: Path) -> None:
    """What is no weight too: scales of embeddings and tables of positions are not rounded to bf16."""
    own: dict[str, dict[str, Any]] = {"gptj": {"rotary_dim": 8}, "phi3": {"tie_word_embeddings": False}}
    path = in_bf16(make_base(tmp_path / "base", model_type=family, **own.get(family, {})), tmp_path / "bf16")
    model = load(path)
    packed = [m for m in model.modules() if isinstance(m, (PackedLinear, PackedEmbedding))]
    assert len(packed) >= 8
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    want = logits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    torch.testing.assert_close(logits(model), want, rtol=0, atol=LOGITS)


def test_siblings_lie_below_each_other_and_a_tied_head_is_the_table(tiny_base: Path) -> None:
    model = load(tiny_base)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    assert q.joined is k.joined is v.joined
    assert (q.offset, k.offset, v.offset, q.joined.out_features) == (0, 64, 96, 128)
    assert torch.equal(q.joined.dense(), torch.cat([linear_weight(m) for m in (q, k, v)]))
    assert mlp.gate_proj.joined is mlp.up_proj.joined is not None
    assert mlp.down_proj.joined is attention.o_proj.joined is None
    assert model.lm_head.packed is model.model.embed_tokens.packed
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 2)])
def test_weights_keep_the_type_that_they_were_saved_in(tiny_base: Path, tmp_path: Path, dtype: Any, width: int) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=dtype).save_pretrained(tmp_path)
    model = load(tmp_path)
    matrices = {name: m for name, m in model.named_modules() if isinstance(m, PackedLinear)}
    held = sum(m.in_features * m.out_features for m in matrices.values())
    rest = sum(p.numel() for p in model.parameters() if not is_placeholder(p)) + sum(b.numel() for b in model.buffers())
    assert weight_bytes(model) == width * held + 4 * rest


def test_four_bits_of_a_gguf_take_five_with_their_constants(tiny_base: Path, tmp_path: Path) -> None:
    model = load(add_blocks(tiny_base, tmp_path / "base"), "gguf")
    layer, table = model.model.layers[0].mlp.down_proj, model.model.embed_tokens
    assert layer.packed.nbytes == layer.in_features * layer.out_features * 5 / 8
    assert table.packed.nbytes == table.num_embeddings * table.embedding_dim * 8.5 / 8


def test_a_base_from_no_gguf_is_refused_as_one(tiny_base: Path) -> None:
    with pytest.raises(QuantizationError, match="keeps no weights of a GGUF file"):
        load(tiny_base, "gguf")


@pytest.mark.parametrize("quantize", ["nf4", "gguf", "none"])
def test_another_weight_may_stand_in(tiny_base: Path, tmp_path: Path, quantize: str) -> None:
    model = load(add_blocks(tiny_base, tmp_path / "base"), quantize)
    layer = model.model.layers[0].mlp.down_proj
    x, weight = torch.randn(3, layer.in_features), torch.randn(layer.out_features, layer.in_features)
    assert torch.equal(functional_call(layer, {"weight": weight}, (x,)), F.linear(x, weight, layer.bias))
    table, ids = torch.randn(400, 64), torch.tensor([0, 399])
    assert torch.equal(functional_call(model.model.embed_tokens, {"weight": table}, (ids,)), table[ids])


def test_what_reads_a_weight_past_its_module_shows(tiny_base: Path) -> None:
    assert load(tiny_base).lm_head.weight.isnan().all()


@pytest.mark.parametrize("quantize", ["nf4", "nf4-dq"])
def test_blocks_across_rows_stay_bitsandbytes(tmp_path: Path, quantize: str) -> None:
    """Of 80 columns a block of 64 takes parts of two rows."""
    path = make_base(tmp_path / "base", hidden_size=80, num_attention_heads=5, num_key_value_heads=5)
    model, plain = load(path, quantize), load_model(path, dtype=torch.float32, device=CPU, quantize=quantize)
    with native.using(native.TORCH):
        plain = load(path, quantize)
    assert not isinstance(model.model.layers[0].self_attn.q_proj, PackedLinear)
    assert isinstance(model.model.layers[0].mlp.down_proj, PackedLinear)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=packed_logits(quantize))


@pytest.mark.parametrize("quantize", ["none", "gguf"])
def test_other_types_and_machines_without_kernels_have_plain_modules(
    tiny_base: Path, tmp_path: Path, quantize: str
) -> None:
    path = add_blocks(tiny_base, tmp_path / "base")
    packed = load(path, quantize)
    with native.using(native.TORCH):
        plain = load(path, quantize)
    assert type(plain.lm_head) is nn.Linear
    torch.testing.assert_close(logits(packed), logits(plain), rtol=0, atol=packed_logits(quantize))
    rounded = load(path, quantize, torch.bfloat16).model.layers[0].mlp.down_proj
    assert type(rounded) is nn.Linear
    assert torch.equal(rounded.weight, linear_weight(packed.model.layers[0].mlp.down_proj).bfloat16())
