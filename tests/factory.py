"""Makes what tests run on: tiny random bases with a byte-level tokenizer, and adapter packages saved by peft itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 320  # 256 bytes, 3 special tokens, the rest never produced by the tokenizer
TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: one token a byte, and ChatML's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def make_base(path: Path, *, model_type: str = "llama", seed: int = 0, std: float = 0.12, **overrides: Any) -> Path:
    """Save a random fp32 base of a few layers, with tokenizer, into ``path``; returns ``path``.

    Weights are drawn from N(0, ``std``): 0.02, as usual, leaves logits almost flat. An override of None leaves that
    setting to the architecture.
    """
    torch.manual_seed(seed)
    settings = {name: value for name, value in {**TINY, **overrides}.items() if value is not None}
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # biases start at zero, which would hide mistakes with them
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def load(base: Path) -> Any:
    """The stock model in ``base``, in fp32, to be changed at will: most bases are asked for many times in a row."""
    written = max(file.stat().st_mtime_ns for file in base.iterdir())
    return copy.deepcopy(_loaded(base, written))


@lru_cache(maxsize=4)
def _loaded(base: Path, written: int) -> Any:
    """The model whose files were last ``written`` then (ns), never to be changed."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def make_adapter(
    base: Path,
    path: Path,
    config: Any,
    *,
    seed: int = 1,
    std: float = 0.1,
    fill: Callable[[str, torch.nn.Parameter], None] | None = None,
) -> Path:
    """Save a random, far from no-op, peft adapter of ``config`` for ``base`` into ``path``; returns ``path``.

    Trained parameters are drawn from N(0, ``std``), or set by ``fill`` (without gradient).
    """
    from peft import get_peft_model

    model = get_peft_model(load(base), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if fill is None:
            torch.nn.init.normal_(parameter, std=std)
        else:
            with torch.no_grad():
                fill(name, parameter)
    model.save_pretrained(path)
    return path
