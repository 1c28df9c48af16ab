"""The independent oracle: transformers and peft running one adapter and one request at a time."""

from __future__ import annotations

import copy
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora.variants import calculate_alora_offsets
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from bases.finding import GGUF_BLOCKS
from tests.own_formats import apply_own, is_own

_SMALL = 50_000_000  # bytes of a base whose models are all kept


def _model(base: Path, adapter: Path | None, quantize: str) -> Any:
    """The model, kept for the next time: bases of tests are small, and their adapters asked again and again."""
    small = sum(file.stat().st_size for file in base.glob("*.safetensors")) < _SMALL
    return (_kept if small else _of_a_real_base)(base, adapter, quantize)


def _adapted(base: Path, adapter: Path | None, quantize: str) -> Any:
    plain = _base(base, quantize)
    if adapter is None:
        return plain
    model = copy.deepcopy(plain)
    return (apply_own(model, adapter) if is_own(adapter) else PeftModel.from_pretrained(model, adapter)).eval()


_kept, _of_a_real_base = lru_cache(maxsize=256)(_adapted), lru_cache(maxsize=4)(_adapted)


@lru_cache(maxsize=16)
def _base(base: Path, quantize: str) -> Any:
    """The base alone, never to be changed."""
    options: dict[str, Any] = {}
    if quantize.startswith(("nf4", "fp4")):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quantize[:3], bnb_4bit_use_double_quant=quantize.endswith("-dq")
        )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"}, **options
    )
    compute_in_fp32(model)
    if quantize == "int8":
        _round_to_int8(model)
    if quantize == "gguf":
        _take_gguf_values(model, load_file(base / GGUF_BLOCKS))
    return model.eval()


def compute_in_fp32(model: Any) -> None:
    """Have 4-bit layers compute in fp32 on every CPU, whatever type their checkpoint was saved with.

    On CPUs with AVX512-BF16 bitsandbytes otherwise repacks them in the first forward pass for a kernel that computes in
    bf16 whatever it is given (logits of an fp32 model move by 4e-2), and peft then reads the packed weights as garbage.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.support_avx512bf16_for_cpu = False


@torch.no_grad()
def _round_to_int8(model: Any) -> None:
    """Replace the weights by what bitsandbytes' INT8 keeps of them, in plain fp32."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            rounded, scale, _ = bitsandbytes.functional.int8_vectorwise_quant(module.weight.data.half())
            module.weight.data = rounded.float() * scale[:, None] / 127


@torch.no_grad()
def _take_gguf_values(model: Any, tensors: dict[str, Tensor]) -> None:
    """Replace the weights by those that a GGUF file stored: ``code * scale + minimum`` in each block of 32."""
    for name in (key.removesuffix(".codes") for key in tensors if key.endswith(".codes")):
        codes, scale = tensors[f"{name}.codes"], tensors[f"{name}.scale"].float().repeat_interleave(32, dim=1)
        if codes.dtype == torch.uint8:
            halves = torch.empty(codes.shape[0], 2 * codes.shape[1])
            halves[:, 0::2], halves[:, 1::2] = codes % 16, codes // 16
            minimum = tensors[f"{name}.minimum"].float().repeat_interleave(32, dim=1)
            weight = halves * scale + minimum
        else:
            weight = codes * scale
        module = model.get_submodule(name.removesuffix(".weight"))
        module.weight.data.copy_(weight.T if isinstance(module, Conv1D) else weight)


@torch.no_grad()
def logits(base: Path, adapter: Path | None, token_ids: list[int], quantize: str = "none") -> Tensor:
    """Logits [len(token_ids), vocab_size] of ``token_ids`` with ``adapter`` alone."""
    model = _model(base, adapter, quantize)
    out: Tensor = model(input_ids=torch.tensor([token_ids]), **task_of(model)).logits[0]
    return out[-len(token_ids) :].float()  # prompt tuning returns rows for its virtual tokens too


@torch.no_grad()
def hidden(base: Path, adapter: Path | None, token_ids: list[int]) -> Tensor:
    """transformers' last_hidden_state of ``token_ids`` with ``adapter`` alone, without rows of virtual tokens."""
    model, found = _model(base, adapter, "none"), []
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = causal.base_model.register_forward_hook(lambda *call: found.append(call[2].last_hidden_state[0]))
    try:
        model(input_ids=torch.tensor([token_ids]), **task_of(model))
    finally:
        hook.remove()
    (rows,) = found
    out: Tensor = rows[-len(token_ids) :].float()
    return out


@torch.no_grad()
def activated_logits(base: Path, adapter: Path, prompt: list[int], token_ids: list[int]) -> Tensor:
    """As ``logits``, with an activated LoRA: peft's generate looks for the invocation in the prompt alone."""
    model = _model(base, adapter, "none")
    (offset,) = calculate_alora_offsets(model.peft_config, "default", torch.tensor([prompt]))
    offsets = [None if offset is None else offset + len(token_ids) - len(prompt)]
    out: Tensor = model(input_ids=torch.tensor([token_ids]), alora_offsets=offsets).logits[0]
    return out


def task_of(model: Any) -> dict[str, Tensor]:
    """The extra argument that peft asks for with an adapter of many tasks: the first of them."""
    config = getattr(model, "active_peft_config", None)
    return {"task_ids": torch.tensor([0])} if getattr(config, "num_tasks", None) is not None else {}


def greedy(base: Path, adapter: Path | None, prompt: list[int], count: int, quantize: str = "none") -> list[int]:
    """``count`` greedy tokens, every one from a full forward pass over all tokens so far."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(base, adapter, tokens, quantize)[-1].argmax()))
    return tokens[len(prompt) :]


def greedy_cached(base: Path, adapter: Path | None, prompt: list[int], count: int, quantize: str = "none") -> list[int]:
    """``count`` greedy tokens by transformers' own generate with its cache; for models of real size."""
    model = _model(base, adapter, quantize)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft says that it makes its own position ids
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            eos_token_id=-1,  # never: min_new_tokens would forbid the end token instead of going past it
            do_sample=False,
            pad_token_id=0,
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
