"""Methods that stand before the prompt: prefix tuning, prompt tuning, P-Tuning v1."""

from __future__ import annotations

from typing import Any

import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from trainer.base_model import Base
from trainer.errors import ConfigError
from trainer.method_config import PrefixMethod, PromptMethod, PTuningMethod

TASK = "CAUSAL_LM"
INITIAL_STD = 0.02  # of the weights that make a prefix


def apply_prefix(base: Base, method: PrefixMethod) -> Any:
    """Prefix tuning, with or without a projection."""
    model = get_peft_model(
        base.model,
        PrefixTuningConfig(
            task_type=TASK,
            num_virtual_tokens=method.tokens,
            prefix_projection=method.projection,
            encoder_hidden_size=method.projection_hidden_size if method.projection else None,
        ),
    )
    _start_small(model.prompt_encoder["default"])
    return model


def _start_small(encoder: torch.nn.Module) -> None:
    """Begin with a prefix close to zero, as transformers begins its own layers.

    peft leaves torch's initialisation, whose embeddings have unit variance. Behind them one step of Adam moves keys
    and values by more than their size: at the same learning rate the loss diverges within a few steps.
    """
    for module in encoder.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            torch.nn.init.normal_(module.weight, std=INITIAL_STD)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.bias)


def apply_prompt(base: Base, method: PromptMethod) -> Any:
    """Prompt tuning. We set the first embeddings ourselves: peft would write a tokenizer's path into the package."""
    model = get_peft_model(base.model, PromptTuningConfig(task_type=TASK, num_virtual_tokens=method.tokens))
    embeddings = base.model.get_input_embeddings().weight
    if method.init_text:
        ids = base.tokenizer.backend_tokenizer.encode(method.init_text, add_special_tokens=False).ids
        if not ids:
            raise ConfigError("method.init_text: the text has no tokens")
        chosen = torch.tensor((ids * (method.tokens // len(ids) + 1))[: method.tokens])
    else:
        chosen = torch.randint(len(base.tokenizer), (method.tokens,))
    with torch.no_grad():
        prompt = model.prompt_encoder["default"].embedding.weight
        prompt.copy_(embeddings[chosen.to(embeddings.device)])
    return model


def apply_p_tuning(base: Base, method: PTuningMethod) -> Any:
    """P-Tuning v1. The encoder starts as torch's own layers do, its embeddings small as in prefix tuning."""
    model = get_peft_model(
        base.model,
        PromptEncoderConfig(
            task_type=TASK,
            num_virtual_tokens=method.tokens,
            encoder_reparameterization_type=method.encoder.upper(),
            encoder_hidden_size=method.hidden_size,
            encoder_num_layers=2,
        ),
    )
    for module in model.prompt_encoder["default"].modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=INITIAL_STD)
    return model
