"""Methods that put embeddings before the prompt: prompt tuning and P-Tuning v1."""

from __future__ import annotations

from typing import Any

import torch
from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model

from trainer.base_model import Base
from trainer.config.methods import PromptMethod, PTuningMethod
from trainer.errors import ConfigError

TASK = "CAUSAL_LM"
INITIAL_STD = 0.02  # of an encoder's embeddings


def apply_prompt(base: Base, method: PromptMethod) -> Any:
    """Prompt tuning. We set the first embeddings ourselves: peft would write a tokenizer's path into the package."""
    model = get_peft_model(base.model, PromptTuningConfig(task_type=TASK, num_virtual_tokens=method.tokens))
    embeddings = base.model.get_input_embeddings().weight
    if method.init_text:
        ids = base.tokenizer.backend_tokenizer.encode(method.init_text, add_special_tokens=False).ids
        if not ids or max(ids) >= len(embeddings):
            raise ConfigError("method.init_text: the text has no tokens, or added ones, which have no embedding yet")
        chosen = torch.tensor((ids * (method.tokens // len(ids) + 1))[: method.tokens])
    else:
        chosen = torch.randint(min(len(base.tokenizer), len(embeddings)), (method.tokens,))
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
