"""Methods to models that train: ``apply_method``. A new method is one builder and one line here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from bases.architecture import has_own_code
from trainer.base_model import Base
from trainer.config.methods import (
    AdaLoraMethod,
    BottleneckMethod,
    FreezeMethod,
    FullMethod,
    Method,
    PrefixMethod,
    PromptMethod,
    PTuningMethod,
)
from trainer.errors import ConfigError
from trainer.methods import token_rows
from trainer.methods.adalora import apply_adalora, pruned
from trainer.methods.cached_prefix import apply_cached_prefix
from trainer.methods.fit import check_fit, check_package
from trainer.methods.own import apply_bottleneck, apply_freeze, apply_full
from trainer.methods.own_model import ENCODED, OwnModel
from trainer.methods.peft_kinds import CONFIGS, apply_p_tuning, apply_peft, apply_prompt
from trainer.methods.prefix import PrefixModel, apply_prefix


def _apply_prefix(base: Base, method: PrefixMethod) -> PrefixModel:
    cached = base.is_encoder_decoder or has_own_code(base.model)
    return apply_cached_prefix(base, method) if cached else apply_prefix(base, method)


_BUILDERS: dict[type[Any], Callable[[Base, Any], Any]] = {
    **dict.fromkeys(CONFIGS, apply_peft),
    PrefixMethod: _apply_prefix,
    PromptMethod: apply_prompt,
    PTuningMethod: apply_p_tuning,
    BottleneckMethod: apply_bottleneck,
    FreezeMethod: apply_freeze,
}


# What peft says of norms in LN tuning, of BOFT without CUDA, and of a head that is trained and no longer the embedding
_KNOWN_WARNINGS = (
    "Unsupported layer type",
    "Failed to load the CUDA",
    "Setting boft_n_butterfly_factor to 1",
    "Model has `tie_word_embeddings=True`",
)


def apply_method(base: Base, method: Method, steps: int | None = None) -> Any:
    """The base with a fresh adapter of ``method``; only the adapter is trainable. Seed torch before.

    ``steps`` are those of the run, for methods with a schedule of their own; None when nothing will be trained.
    Raises ConfigError when the method does not fit the base.
    """
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for a property that transformers 5 has renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        check_fit(base.model, method)
        model = _apply(base, method, steps)
    if not isinstance(model, OwnModel):
        model.active_peft_config.base_model_name_or_path = base.name
    check_package(_config_of(model))
    return model


def _apply(base: Base, method: Method, steps: int | None) -> Any:
    if isinstance(method, FullMethod):
        return apply_full(base, method)
    rows = token_rows.attach(base) if base.tokens else []
    if isinstance(method, AdaLoraMethod):
        model = apply_adalora(base, method, steps)
    else:
        model = _BUILDERS[type(method)](base, method)
    if rows:
        token_rows.train_rows(base, rows)
    return model


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_of(model: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration and the tensors of the adapter in ``model``, as its package holds them."""
    config, tensors = _method_of(model)
    if rows := token_rows.rows_of(model):
        config = {**config, token_rows.CONFIG_KEY: token_rows.indices_of(rows)}
        tensors = {**tensors, **{part.tensor_name(): part.rows for part in rows}}
    return config, tensors


def load_adapter(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put ``tensors``, as a package holds them, into the adapter of ``model``: ``adapter_of`` backwards.

    Raises ConfigError unless they are exactly its own.
    """
    own = adapter_of(model)[1]
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in own.items()}:
        raise ConfigError(f"start_from: {_difference(tensors, own)}; give method the settings that it was made with")
    rest = dict(tensors)
    for part in token_rows.rows_of(model):
        with torch.no_grad():
            part.rows.copy_(rest.pop(part.tensor_name()))
    if isinstance(model, OwnModel):
        model.load_adapter_tensors(rest)
    else:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, rest)
    after = adapter_of(model)[1]
    if any(not torch.equal(after[name].cpu(), value.to(after[name].dtype)) for name, value in tensors.items()):
        raise ConfigError(ENCODED)  # an encoder of peft's stands between what was loaded and what it makes


def _difference(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> str:
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in theirs:
            return f"this method also trains {name}, which the package does not have"
        if name not in ours:
            return f"the package also has {name}, which this method does not train"
        if theirs[name].shape != ours[name].shape:
            return f"{name} has shape {list(theirs[name].shape)} in the package and {list(ours[name].shape)} here"
    raise AssertionError("the same names and shapes")


def _method_of(model: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if isinstance(model, OwnModel):
        return model.adapter_config, model.adapter_tensors()
    from peft import PeftType, get_peft_model_state_dict

    with warnings.catch_warnings(), pruned(model) if model.peft_type == PeftType.ADALORA else nullcontext():
        # AdaLoRA may leave a module without components, which peft takes for a broken file
        warnings.filterwarnings("ignore", message=".*LoRA tensor.s. have invalid shape", category=UserWarning)
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        return _config_of(model), tensors


def _config_of(model: Any) -> dict[str, Any]:
    if isinstance(model, OwnModel):
        return model.adapter_config
    return {**model.active_peft_config.to_dict(), "inference_mode": True}
