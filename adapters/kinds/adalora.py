"""AdaLoRA: low-rank updates with singular values, of which training kept some."""

from __future__ import annotations

from collections.abc import Iterable

from adapters.base import BaseSpec
from adapters.configs.factors import AdaLoraConfig
from adapters.errors import PackageError
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.names import shown
from adapters.ops import Adapter, LowRank, Op
from adapters.package import AdapterPackage

_A, _B, _E = _PARAMETERS = ("lora_A", "lora_B", "lora_E")


def compile_adalora(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of an AdaLoRA package (https://huggingface.co/papers/2303.10512).

    Semantics: ``y += (x @ (lora_A * lora_E).T) @ lora_B.T * scale``, where ``scale`` is lora_alpha, or the rank when
    that is not above 0, over ``init_r + 1e-5``: peft keeps the initial rank there when it drops components.
    Shape: ``<module>.lora_A`` [r, in_features]; ``lora_E`` [r, 1]; ``lora_B`` [out_features, r]; r is the number of
    components that ``rank_pattern`` keeps, ``init_r`` for modules that it does not name, and may be 0.
    """
    config = package.config
    assert isinstance(config, AdaLoraConfig)
    layers = sort_layers(package, base, _PARAMETERS)
    ranks = _ranks(config, [layer.module for layer in layers.layers])

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = ranks.get(layer.module, config.init_r)
        hint = "its rank is what rank_pattern or init_r in adapter_config.json says; or the base is another one"
        a = layer.tensor(_A, (r, layer.in_features), hint) * layer.tensor(_E, (r, 1), hint)
        b = layer.tensor(_B, (layer.out_features, r), hint) * _scale(config, r)
        return (check_update(LowRank(a.T.contiguous(), b.T.contiguous()), layer.module),) if r else ()

    return layers.compile(ops)


def _ranks(config: AdaLoraConfig, modules: Iterable[str]) -> dict[str, int]:
    """What is left of each module's rank; ``rank_pattern`` names modules by their ``lora_E``."""
    named = {f"{module}.{_E}": module for module in modules}
    ranks: dict[str, int] = {}
    for name, kept in (config.rank_pattern or {}).items():
        module = named.get(name.removesuffix(".default"))
        if module is None:
            raise PackageError(f"adapter_config.json: rank_pattern names {shown(name)}, of which there are no tensors")
        ranks[module] = sum(kept)
    return ranks


def _scale(config: AdaLoraConfig, r: int) -> float:
    return (config.lora_alpha if config.lora_alpha > 0 else float(r)) / (config.init_r + 1e-5)
