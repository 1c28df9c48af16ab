"""Writes small GGUF files as llama.cpp's converter does, from the tiny bases of the tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, AutoTokenizer

from bases.gguf_blocks import matrices, stored_weight, write_blocks

_LLAMA = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    base: Path,
    path: Path,
    *,
    kind: Type = Type.F32,
    architecture: str = "llama",
    metadata: dict[str, str | int] | None = None,
    extra: dict[str, np.ndarray[Any, Any]] | None = None,
    leave_out: str = "",
) -> Path:
    """``base`` (a llama or qwen2) as one file with matrices of type ``kind``; returns ``path``."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim if architecture == "llama" else config.hidden_size // 4)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (metadata or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(key, value)
    _add_tokenizer(writer, base, config.vocab_size)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, parameter = name.rpartition(".")
        data = tensor.numpy()
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            data = _permuted(data, heads)
        if (gguf_name := f"{_name(module)}.{parameter}") != leave_out:
            _add(writer, gguf_name, data, kind if data.ndim > 1 else Type.F32)
    for name, data in (extra or {}).items():
        _add(writer, name, data, Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_blocks(base: Path, out: Path, kind: Type = Type.Q4_1) -> Path:
    """A copy of ``base`` in ``out``, returned, with its matrices as a file of ``kind`` and Q8_0 would store them."""
    shutil.copytree(base, out)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    blocks = {}
    for name, weight in matrices(model):
        in_kind = Type.Q8_0 if "embed" in name or "wte" in name else kind
        blocks[name] = stored_weight(gguf.quantize(weight.contiguous().numpy(), in_kind), in_kind)
    write_blocks(out, blocks)
    return out


def rounded(data: np.ndarray[Any, Any], kind: Type) -> np.ndarray[Any, Any]:
    """What is left of a matrix in type ``kind``."""
    out: np.ndarray[Any, Any] = gguf.dequantize(gguf.quantize(data, kind), kind)
    return out


def _add(writer: gguf.GGUFWriter, name: str, data: np.ndarray[Any, Any], kind: Type) -> None:
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)


def _name(module: str) -> str:
    if module in _TOP:
        return _TOP[module]
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_LLAMA[rest]}"


def _permuted(data: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp rotates neighbouring dimensions of a head, transformers its two halves."""
    shape = (heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
    return data.reshape(shape).swapaxes(1, 2).reshape(data.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, base: Path, vocab_size: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    names[len(names)] = "ab"  # a merge must be there, and what it makes
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.get(i, f"[UNUSED{i}]") for i in range(vocab_size)])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in special or i not in names else gguf.TokenType.NORMAL for i in range(vocab_size)]
    )
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
