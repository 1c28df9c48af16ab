"""Methods that peft trains as they are: our settings to its configurations, and prompts with beginnings of our own."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import (
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)

from bases.architecture import has_own_code
from trainer.base_model import Base
from trainer.config.methods import (
    BoftMethod,
    HraMethod,
    Ia3Method,
    LnTuningMethod,
    LohaMethod,
    LokrMethod,
    LoraMethod,
    Method,
    MissMethod,
    OftMethod,
    PromptMethod,
    PTuningMethod,
    VeraMethod,
)
from trainer.errors import ConfigError
from trainer.methods.own_model import task_of


def apply_peft(base: Base, method: Method) -> Any:
    """The base with a fresh adapter of one of ``CONFIGS``. ConfigError when it does not fit the base."""
    make: Callable[[Any], Any] = CONFIGS[type(method)]
    return wrap(base, make(method))


def wrap(base: Base, config: PeftConfig) -> Any:
    """The base with a fresh adapter of ``config``. ConfigError when it does not fit the base."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*_pattern keys did not match", category=RuntimeWarning)
            config.task_type = task_of(base)
            return get_peft_model(base.model, config)
    except (ValueError, TypeError, AssertionError, RuntimeWarning, re.error) as error:
        # peft's own words name the module or the size
        key = "method.target_modules" if isinstance(error, re.error) or "target" in str(error).lower() else "method"
        raise ConfigError(f"{key}: {(str(error).splitlines() or ['it does not fit the base'])[0]}") from error


def _lora(method: LoraMethod) -> LoraConfig:
    return LoraConfig(
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
        bias=method.bias,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern=dict(method.alpha_pattern),
        modules_to_save=list(method.modules_to_save) or None,
    )


def _vera(method: VeraMethod) -> VeraConfig:
    targets = method.target_modules
    return VeraConfig(r=method.r, vera_dropout=method.dropout, target_modules=targets)


def _loha(method: LohaMethod) -> LoHaConfig:
    return LoHaConfig(r=method.r, alpha=method.alpha, target_modules=method.target_modules)


def _lokr(method: LokrMethod) -> LoKrConfig:
    return LoKrConfig(
        r=method.r,
        alpha=method.alpha,
        decompose_factor=method.factor,
        target_modules=method.target_modules,
    )


def _ia3(method: Ia3Method) -> IA3Config:
    return IA3Config(target_modules=method.target_modules, feedforward_modules=method.feedforward_modules)


def _oft(method: OftMethod) -> OFTConfig:
    size = method.block_size
    return OFTConfig(r=0, oft_block_size=size, target_modules=method.target_modules)


def _boft(method: BoftMethod) -> BOFTConfig:
    return BOFTConfig(
        boft_block_size=method.block_size,
        boft_n_butterfly_factor=method.factors,
        target_modules=method.target_modules,
    )


def _hra(method: HraMethod) -> HRAConfig:
    return HRAConfig(r=method.r, target_modules=method.target_modules)


def _miss(method: MissMethod) -> MissConfig:
    return MissConfig(r=method.r, target_modules=method.target_modules)


def _ln_tuning(method: LnTuningMethod) -> LNTuningConfig:
    return LNTuningConfig(target_modules=method.target_modules)


CONFIGS: dict[type[Any], Callable[[Any], Any]] = {
    LoraMethod: _lora,
    VeraMethod: _vera,
    LohaMethod: _loha,
    LokrMethod: _lokr,
    Ia3Method: _ia3,
    OftMethod: _oft,
    BoftMethod: _boft,
    HraMethod: _hra,
    MissMethod: _miss,
    LnTuningMethod: _ln_tuning,
}
ENCODER_STD = 0.02  # of an encoder's embeddings


def _check_embeddings(base: Base) -> None:
    """ConfigError for a base whose own code does not take the rows of its embedding in place of tokens."""
    if not has_own_code(base.model) or base.device.type == "meta":
        return
    ids = torch.tensor([[1, 2, 3]], device=base.model.device)
    try:
        with torch.no_grad():
            rows = base.model.get_input_embeddings()(ids)
            given = base.model(inputs_embeds=rows, attention_mask=torch.ones_like(ids), use_cache=False).logits
            fits = torch.allclose(given, base.model(input_ids=ids, use_cache=False).logits, rtol=1e-2, atol=1e-2)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
        fits = False
    if not fits:
        raise ConfigError(
            "method: prompts stand before embedded tokens, which the base's own code does not take (inputs_embeds); "
            "use another method, such as prefix"
        )


def apply_prompt(base: Base, method: PromptMethod) -> Any:
    """Prompt tuning. We set the first embeddings ourselves: peft would write a tokenizer's path into the package."""
    _check_embeddings(base)
    model = get_peft_model(
        base.model,
        PromptTuningConfig(task_type=task_of(base), num_virtual_tokens=method.tokens, num_transformer_submodules=1),
    )
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
    _check_embeddings(base)
    model = get_peft_model(
        base.model,
        PromptEncoderConfig(
            task_type=task_of(base),
            num_transformer_submodules=1,
            num_virtual_tokens=method.tokens,
            encoder_reparameterization_type=method.encoder.upper(),
            encoder_hidden_size=method.hidden_size,
            encoder_num_layers=2,
        ),
    )
    for module in model.prompt_encoder["default"].modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=ENCODER_STD)
    return model
