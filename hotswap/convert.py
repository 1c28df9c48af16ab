"""Turns a GGUF file of a Llama-type model into a plain transformers directory (bf16 safetensors and tokenizer).

transformers dequantizes GGUF on load but refuses to save such a model again, so the weights are moved into a plain
model of the same shape. It does not know where the file came from, nor where the directory will live.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of ``gguf`` into directory ``out``: bf16 safetensors, tied head saved once."""
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(out)
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model = LlamaForCausalLM(_plain_config(packed.config)).to(torch.bfloat16)
    model.load_state_dict(packed.state_dict(), strict=True)
    model.tie_weights()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(out)


def _plain_config(config: Any) -> LlamaConfig:
    fields = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(key, None)
    # GGUF keeps the epsilon as float32; 9.999999747e-06 was 1e-05
    fields["rms_norm_eps"] = float(f"{fields['rms_norm_eps']:.6g}")
    return LlamaConfig(**fields)


def tensors_sha256(model_file: Path) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes of a safetensors file, in name order (no file metadata)."""
    digest = hashlib.sha256()
    with safe_open(model_file, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def greedy_answer(directory: Path, question: str, max_new_tokens: int = 12) -> str:
    """What the model in ``directory`` answers to one chat question, greedily, in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
