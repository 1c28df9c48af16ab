"""Checks of a converted base: what its tensors are, and whether it still answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


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
