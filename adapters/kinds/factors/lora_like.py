"""AdaLoRA, DeLoRA and GraLoRA: low-rank updates, scaled or cut otherwise than LoRA's.

AdaLoRA has singular values, of which training kept some; DeLoRA bounds the norm; GraLoRA has an update of each block
of a weight, and one across all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.dense import check_update
from adapters.kinds.factors.config import AdaLoraConfig, DeloraConfig, GraloraConfig
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter
from adapters.ops import Adapter, LowRank, Op
from adapters.ops.products import BlockLowRank
from adapters.quoting import quote

_ADALORA_A, _ADALORA_B, _ADALORA_E = _ADALORA = ("lora_A", "lora_B", "lora_E")


def compile_adalora(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of an AdaLoRA package (https://huggingface.co/papers/2303.10512).

    Semantics: ``y += (x @ (lora_A * lora_E).T) @ lora_B.T * scale``, where ``scale`` is lora_alpha, or the rank when
    that is not above 0, over ``init_r + 1e-5``: peft keeps the initial rank there when it drops components.
    Shape: ``<module>.lora_A`` [r, in_features]; ``lora_E`` [r, 1]; ``lora_B`` [out_features, r]; r is the number of
    components that ``rank_pattern`` keeps, ``init_r`` for modules that it does not name, and may be 0.
    """
    config = package.config
    assert isinstance(config, AdaLoraConfig)
    layers = sort_layers(package, base, _ADALORA)
    ranks = _adalora_ranks(config, [layer.module for layer in layers.layers])

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = ranks.get(layer.module, config.init_r)
        hint = "its rank is what rank_pattern or init_r in adapter_config.json says; or the base is another one"
        a = layer.tensor(_ADALORA_A, (r, layer.in_features), hint) * layer.tensor(_ADALORA_E, (r, 1), hint)
        b = layer.tensor(_ADALORA_B, (layer.out_features, r), hint) * _adalora_scale(config, r)
        return (check_update(LowRank(a.T, b.T.contiguous()), layer.module),) if r else ()

    return layers.compile(ops)


def _adalora_ranks(config: AdaLoraConfig, modules: Iterable[str]) -> dict[str, int]:
    """What is left of each module's rank; ``rank_pattern`` names modules by their ``lora_E``."""
    named = {f"{module}.{_ADALORA_E}": module for module in modules}
    ranks: dict[str, int] = {}
    for name, kept in (config.rank_pattern or {}).items():
        module = named.get(name.removesuffix(".default"))
        if module is None:
            raise PackageError(f"adapter_config.json: rank_pattern names {quote(name)}, of which there are no tensors")
        ranks[module] = sum(kept)
    return ranks


def _adalora_scale(config: AdaLoraConfig, r: int) -> float:
    return (config.lora_alpha if config.lora_alpha > 0 else float(r)) / (config.init_r + 1e-5)


_DELORA_A, _DELORA_B, _BOUND, _NORMS = _DELORA = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
_SMALLEST = 1e-4


def compile_delora(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a DeLoRA package (https://huggingface.co/papers/2503.18225).

    Semantics: ``y += ((x * w_norm) @ A.T * c) @ B.T``, where ``c = lambda / r / (|A[i]| |B[:, i]|)`` for each component
    and norms count at least 1e-4. ``w_norm`` are those of the columns of the weight that the adapter was trained on.
    Shape: ``<module>.delora_A`` [r, in_features]; ``delora_B`` [out_features, r]; ``delora_lambda`` [1];
    ``delora_w_norm`` [in_features].
    """
    config = package.config
    assert isinstance(config, DeloraConfig)
    layers = sort_layers(package, base, _DELORA)

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = layers.matcher.rank(layer.module, config.r)
        a, b = layer.tensor(_DELORA_A, (r, layer.in_features)), layer.tensor(_DELORA_B, (layer.out_features, r))
        lengths = a.norm(dim=1).clamp(min=_SMALLEST) * b.norm(dim=0).clamp(min=_SMALLEST)
        scales = layer.tensor(_BOUND, (1,)) / r / lengths
        inputs = a * layer.tensor(_NORMS, (layer.in_features,))
        update = LowRank(inputs.T, (b * scales).T.contiguous())
        return (check_update(update, layer.module),)

    return layers.compile(ops)


_GRALORA_A, _GRALORA_B = "gralora_A", "gralora_B"
_ACROSS = ("gralora_A_general.weight", "gralora_B_general.weight")


def compile_gralora(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a GraLoRA package (https://huggingface.co/papers/2505.20355).

    Semantics: ``BlockLowRank``, and with ``hybrid_r`` a ``LowRank`` too, both times ``alpha / (r + hybrid_r)``.
    Shape: with k = gralora_k ``<module>.gralora_A`` [k, in_features / k, r], ``gralora_B`` [k, r, out_features / k];
    ``gralora_A_general.weight`` [hybrid_r, in_features], ``gralora_B_general.weight`` [out_features, hybrid_r].
    """
    config = package.config
    assert isinstance(config, GraloraConfig)
    layers = sort_layers(package, base, (_GRALORA_A, _GRALORA_B, *(_ACROSS if config.hybrid_r else ())))
    scale = config.alpha / (config.r + config.hybrid_r)

    def ops(layer: Layer) -> tuple[Op, ...]:
        k, out, in_ = config.gralora_k, layer.out_features, layer.in_features
        if out % k or in_ % k:
            raise PackageError(f"module {quote(layer.module)} [{out}, {in_}] is not made of {k} times {k} blocks")
        a, b = layer.tensor(_GRALORA_A, (k, in_ // k, config.r)), layer.tensor(_GRALORA_B, (k, config.r, out // k))
        made = [check_update(BlockLowRank(a, b * scale), layer.module)]
        if config.hybrid_r:
            a, b = layer.tensor(_ACROSS[0], (config.hybrid_r, in_)), layer.tensor(_ACROSS[1], (out, config.hybrid_r))
            made.append(check_update(LowRank(a.T, b.T.contiguous() * scale), layer.module))
        return tuple(made)

    return layers.compile(ops)
