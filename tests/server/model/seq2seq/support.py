"""Tiny random encoder-decoders, adapters for them saved by peft, and what transformers and peft compute with them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BitsAndBytesConfig, PreTrainedTokenizerFast

from tests.factory import VOCAB_SIZE, make_tokenizer
from tests.oracle import compute_in_fp32
from tests.own_formats import apply_own, is_own

START, EOS = 256, 258
S2S = "SEQ_2_SEQ_LM"
TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 64,
    "d_kv": 16,
    "num_heads": 4,
    "d_ff": 128,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "pad_token_id": START,
    "eos_token_id": EOS,
    "decoder_start_token_id": START,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# Distances must matter; attention and head do not scale their logits, so their weights have to be small.
STDS = {"relative": 1.0, ".q.": 0.03, "shared": 0.05, "lm_head": 0.05}
BASES: dict[str, dict[str, Any]] = {
    "t5": {"model_type": "t5"},
    "flan-t5": {"model_type": "t5", **GATED},
    "mt5": {"model_type": "mt5", **GATED, "num_decoder_layers": 2},
}


def make_seq2seq_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, the end token after every text as T5's tokenizer writes it, and no chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", EOS)]
    )
    return tokenizer


def make_seq2seq_base(
    path: Path, *, model_type: str = "t5", seed: int = 0, stds: Mapping[str, float] = STDS, **overrides: Any
) -> Path:
    """Save a random fp32 encoder-decoder of a few layers, with tokenizer, into ``path``; returns ``path``."""
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(model_type, **{**TINY, **overrides}), dtype=torch.float32
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=next((std for part, std in stds.items() if part in name), 0.12))
        else:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    model.save_pretrained(path)
    make_seq2seq_tokenizer().save_pretrained(path)
    return path


CONFIGS: dict[str, Callable[[], Any]] = {
    "lora-r4": lambda: LoraConfig(r=4, target_modules="all-linear", task_type=S2S),
    "lora-qv": lambda: LoraConfig(r=8, lora_alpha=16, target_modules=["q", "v"], task_type=S2S),
    "lora-cross": lambda: LoraConfig(r=4, target_modules=r".*EncDecAttention\.(k|v|o)|lm_head", task_type=S2S),
    "lora-layers": lambda: LoraConfig(r=4, target_modules=["wo"], layers_to_transform=[1], task_type=S2S),
    "ia3": lambda: IA3Config(task_type=S2S),
    "ia3-cross": lambda: IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"], task_type=S2S),
    "ln-tuning": lambda: LNTuningConfig(target_modules=["layer_norm", "final_layer_norm"], task_type=S2S),
    "oft": lambda: OFTConfig(oft_block_size=8, target_modules=["q", "wo"], use_cayley_neumann=False, task_type=S2S),
    "prefix-5": lambda: PrefixTuningConfig(num_virtual_tokens=5, task_type=S2S),
    "prefix-9": lambda: PrefixTuningConfig(num_virtual_tokens=9, task_type=S2S),
    "prompt-7": lambda: PromptTuningConfig(num_virtual_tokens=7, task_type=S2S),
    "prompt-3-encoder": lambda: PromptTuningConfig(num_virtual_tokens=3, num_transformer_submodules=1, task_type=S2S),
    "p-tuning": lambda: PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=32, task_type=S2S),
    "multitask": lambda: MultitaskPromptTuningConfig(
        num_virtual_tokens=4, num_tasks=1, num_ranks=1, num_transformer_submodules=1, task_type=S2S
    ),
}


def make_seq2seq_adapter(base: Path, path: Path, name: str, *, seed: int = 1) -> Path:
    """Save a random, far from no-op, peft adapter of configuration ``name`` into ``path``; returns ``path``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an adapted head is tied to the embedding
        model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32), CONFIGS[name]())
    torch.manual_seed(seed)
    std = 0.1 if name.startswith(("lora", "oft")) else 0.3
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=1.0 if name.startswith(("ia3", "ln", "multitask")) else 0.0, std=std)
    model.save_pretrained(path, save_embedding_layers=False)
    return path


@lru_cache(maxsize=128)
def _model(base: Path, adapter: Path | None, quantize: str) -> Any:
    plain = _base(base, quantize)
    if adapter is None:
        return plain
    model = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return (apply_own(model, adapter) if is_own(adapter) else PeftModel.from_pretrained(model, adapter)).eval()


@lru_cache(maxsize=8)
def _base(base: Path, quantize: str) -> Any:
    """The base alone, never to be changed."""
    options: dict[str, Any] = {}
    if quantize == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    model = AutoModelForSeq2SeqLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"}, **options
    )
    compute_in_fp32(model)
    if quantize == "int8":
        _round_to_int8(model)
    return model.eval()


@torch.no_grad()
def _round_to_int8(model: Any) -> None:
    """Replace the weights by what bitsandbytes' INT8 keeps of them; transformers leaves T5's ``wo`` as it is."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith(("lm_head", ".wo")):
            rounded, scale, _ = bitsandbytes.functional.int8_vectorwise_quant(module.weight.data.half())
            module.weight.data = rounded.float() * scale[:, None] / 127


@torch.no_grad()
def logits(base: Path, adapter: Path | None, source: list[int], target: list[int], quantize: str = "none") -> Tensor:
    """Logits [1 + len(target), vocab_size] after the start token and after each token of ``target``."""
    model = _model(base, adapter, quantize)
    config = getattr(model, "active_peft_config", None)
    decoder: dict[str, Tensor] = {"decoder_input_ids": torch.tensor([[START, *target]])}
    if getattr(config, "num_tasks", None) is not None:  # peft then knows the decoder's input from labels alone
        decoder = {"labels": torch.tensor([[*target, 0]]), "task_ids": torch.tensor([0])}
    mask = torch.ones(1, len(source), dtype=torch.long)
    out: Tensor = model(input_ids=torch.tensor([source]), attention_mask=mask, **decoder).logits[0]
    return out.float()


def greedy(base: Path, adapter: Path | None, source: list[int], count: int, quantize: str = "none") -> list[int]:
    """``count`` greedy tokens, every one from a full forward pass."""
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(logits(base, adapter, source, tokens, quantize)[-1].argmax()))
    return tokens
