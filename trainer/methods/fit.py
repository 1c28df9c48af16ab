"""Whether a method fits a base, before anything is trained: what peft passes over in silence, or finds too late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from adapters.errors import AdapterError
from adapters.package.writing import encode_config
from bases.quantization import quantization_of
from trainer.config.methods import Method
from trainer.errors import ConfigError


def check_fit(model: nn.Module, method: Method) -> None:
    """Raise ConfigError for modules that the base lacks, and for a quantized checkpoint that the method cannot use."""
    for key in ("target_modules", "feedforward_modules", "modules_to_save"):
        names = getattr(method, key, None)
        for name in names if isinstance(names, list) else ():
            _check_module(model, f"method.{key}", name)
    for name in getattr(method, "modules_to_save", ()):
        _check_trainable(model, name)
    kind = quantization_of(model)
    if kind not in method.QUANTIZED:
        raise ConfigError(
            f"method: {method.KIND} works on the base's weights themselves, and this base is quantized ({kind}); use "
            "its full-precision form, or another method"
        )


def check_package(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings whose adapter no server would read, such as a rank above what is allowed."""
    if not config:
        return  # a whole base
    try:
        encode_config(config)
    except AdapterError as error:
        raise ConfigError(f"method: {str(error).removeprefix('adapter_config.json: ')}") from error


def _check_module(model: nn.Module, key: str, wanted: str) -> None:
    if any(_modules_named(model, wanted)):
        return
    leaves = {name.rpartition(".")[2]: None for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    near = get_close_matches(wanted, leaves, 1)
    hint = f"did you mean {near[0]}?" if near else f"its linear maps are {', '.join(leaves)}"
    raise ConfigError(f"{key}: the base has no module {wanted!r}; {hint}")


def _check_trainable(model: nn.Module, wanted: str) -> None:
    for name, module in _modules_named(model, wanted):
        parameters = list(module.parameters())
        if not parameters:
            raise ConfigError(f"method.modules_to_save: {name} has no parameters to train")
        if not all(parameter.is_floating_point() for parameter in parameters):
            raise ConfigError(
                f"method.modules_to_save: {name} is quantized, and quantized weights cannot be trained; set "
                "training.quantize to none, or leave the module to LoRA"
            )


def _modules_named(model: nn.Module, wanted: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose path is ``wanted`` or ends with it."""
    return ((name, part) for name, part in model.named_modules() if f".{name}".endswith(f".{wanted}") and name)
