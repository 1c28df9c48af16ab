"""The tensors of a LoRA package, sorted by the module that they belong to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from adapters.configs.lora import LoraConfig
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.names import PREFIX
from adapters.names import shown

LINEAR = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
_PARAMETER = re.compile(
    r"(?P<module>.+)\.(?P<parameter>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector)"
)
_BIAS = re.compile(r"(?P<module>.+?)(\.base_layer)?\.bias")
_OPTIONS = {"lora_magnitude_vector": "use_dora", "lora_B.bias": "lora_bias"}
_UNSERVED = {
    "lora_diag": "KaSA",
    "embed_tokens.weight": "a saved embedding (was the vocabulary resized?)",
    "lm_head.weight": "a saved output head (was the vocabulary resized?)",
    "base_layer.weight": "a saved weight of the base",
}
Layers = dict[str, dict[str, Tensor]]


def sort_tensors(tensors: Mapping[str, Tensor], config: LoraConfig) -> tuple[Layers, dict[str, Tensor]]:
    """Tensors of adapted modules by module and parameter, and trained biases by module. Raises for any other name."""
    layers: Layers = defaultdict(dict)
    biases: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
        if found := _PARAMETER.fullmatch(short):
            _check_option(name, found["parameter"], config)
            layers[found["module"]][found["parameter"]] = tensor
        elif (found := _BIAS.fullmatch(short)) and config.bias != "none" and ".lora_" not in short:
            if found["module"] in biases:
                raise PackageError(f"tensor {shown(name)}: the package holds two biases for this module")
            biases[found["module"]] = tensor
        elif not _is_for_training(short, config):
            _refuse(name)
    return dict(layers), biases


def _is_for_training(short: str, config: LoraConfig) -> bool:
    """State of samplers and compressed backward passes, which trained models never read."""
    if config.velora_config and short.endswith(".lora_velora_embed"):
        return True
    return bool(config.monteclora_config) and ".lora_monteclora_sampler." in short


def _check_option(name: str, parameter: str, config: LoraConfig) -> None:
    option = _OPTIONS.get(parameter)
    if option is not None and not getattr(config, option):
        raise PackageError(
            f"tensor {shown(name)} is unknown where adapter_config.json does not set {option}; set it if the adapter "
            "was trained so"
        )


def _refuse(name: str) -> None:
    for part, what in _UNSERVED.items():
        if part in name:
            raise UnsupportedKindError(f"tensor {shown(name)} belongs to {what}, which is not served")
    raise PackageError(
        f"tensor {shown(name)} is unknown: a LoRA package holds base_model.model.<module>.lora_A.weight and "
        "lora_B.weight, and biases only where its config's 'bias' says so"
    )
