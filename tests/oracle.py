"""The independent oracle: transformers and peft running one adapter and one request at a time."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


@lru_cache(maxsize=16)
def _model(base: Path, adapter: Path | None, quantize: str) -> Any:
    options: dict[str, Any] = {}
    if quantize == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    elif quantize == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"}, **options
    )
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


@torch.no_grad()
def logits(base: Path, adapter: Path | None, token_ids: list[int], quantize: str = "none") -> Tensor:
    """Logits [len(token_ids), vocab_size] of ``token_ids`` with ``adapter`` alone."""
    out: Tensor = _model(base, adapter, quantize)(input_ids=torch.tensor([token_ids])).logits[0]
    return out[-len(token_ids) :].float()  # prompt tuning returns rows for its virtual tokens too


def greedy(base: Path, adapter: Path | None, prompt: list[int], count: int, quantize: str = "none") -> list[int]:
    """``count`` greedy tokens, every one from a full forward pass over all tokens so far."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(base, adapter, tokens, quantize)[-1].argmax()))
    return tokens[len(prompt) :]


def greedy_cached(base: Path, adapter: Path | None, prompt: list[int], count: int, quantize: str = "none") -> list[int]:
    """``count`` greedy tokens by transformers' own generate with its cache; for models of real size."""
    model = _model(base, adapter, quantize)
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
