"""Methods to peft models, one function each. A new method is one function and one line here."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from trainer.base_model import Base
from trainer.config import LoraMethod, Method, PrefixMethod, PromptMethod
from trainer.errors import ConfigError

TASK = "CAUSAL_LM"
INITIAL_STD = 0.02  # of the weights that make a prefix


def apply_method(base: Base, method: Method) -> Any:
    """The base with a fresh adapter of ``method``; only the adapter is trainable. Seed torch before.

    Raises ConfigError when the method does not fit the base.
    """
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for a property that transformers 5 has renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        if isinstance(method, LoraMethod):
            model = _lora(base, method)
        elif isinstance(method, PrefixMethod):
            model = _prefix(base, method)
        else:
            model = _prompt(base, method)
    model.active_peft_config.base_model_name_or_path = base.name
    return model


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _lora(base: Base, method: LoraMethod) -> Any:
    config = LoraConfig(
        task_type=TASK,
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
        bias=method.bias,
        use_rslora=method.use_rslora,
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern=dict(method.alpha_pattern),
    )
    try:
        return get_peft_model(base.model, config)
    except ValueError as error:
        raise ConfigError(f"method.target_modules: {str(error).splitlines()[0]}") from error


def _prefix(base: Base, method: PrefixMethod) -> Any:
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


def _prompt(base: Base, method: PromptMethod) -> Any:
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
