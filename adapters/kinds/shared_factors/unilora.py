"""Uni-LoRA: low-rank updates all of whose entries are entries of one short vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.dense import BYTES, check_memory, check_update, factor_bytes
from adapters.kinds.layers import Layer, Layers, check_targets, sort_layers, take_biases
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import SavedAdapter, require, tensor_name
from adapters.kinds.shared_factors.config import UniLoraConfig
from adapters.kinds.shared_factors.projections import balanced_indices
from adapters.kinds.shared_factors.shared_tensors import SharedTensors, read_indices
from adapters.ops import Adapter, LowRank, Op
from adapters.quoting import quote

_VECTOR = "unilora_theta_d"
_INDICES = {"A": "unilora_indices_A", "B": "unilora_indices_B"}
_SCALES = {"A": "unilora_scales_A", "B": "unilora_scales_B"}
_INDEX_BYTES = 3 * 8  # the indices, their order while they are shuffled, and a copy
DrawnEntries = tuple[Tensor, Tensor]


def compile_unilora(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a Uni-LoRA package (https://huggingface.co/papers/2506.00799).

    Semantics: ``y += x @ A.T @ B.T``, where ``A = theta_d[indices_A] * scales_A``, and ``B`` likewise. Indices that
    were not saved are drawn again for all modules that the configuration targets, in the order of the base's modules;
    the scale of an entry is one over the root of how often its index was drawn. The factors are made at load: an
    adapter weighs what its low-rank updates do.
    Shape: ``unilora_theta_d`` [theta_d_length]; with ``save_indices`` ``<module>.unilora_indices_A`` and
    ``unilora_scales_A`` [r, in_features], ``unilora_indices_B`` and ``unilora_scales_B`` [out_features, r].
    """
    config = package.config
    assert isinstance(config, UniLoraConfig)
    shared = SharedTensors(package, "unilora_")
    vector = shared.take(_VECTOR, (config.theta_d_length,))
    shared.check_empty("a package shares theta_d alone")
    is_saved = config.save_indices
    if is_saved:
        layers = sort_layers(shared.rest, base, [*_INDICES.values(), *_SCALES.values()])
    else:
        layers = _targeted(shared.rest, base, config)
    sizes = {it.module: factor_bytes(it.out_features, it.in_features, config.r) for it in layers.layers}
    check_memory(sizes, config.KIND, package.limits)
    drawn = {} if is_saved else _drawn(layers, config, package)

    def ops(layer: Layer) -> tuple[Op, ...]:
        factors = []
        for which, shape in _shapes(layer, config).items():
            indices, scales = _saved(layer, which, shape, config) if is_saved else drawn[layer.module, which]
            factors.append(vector[indices] * scales)
        a, b = factors
        return (check_update(LowRank(a.T.contiguous(), b.T.contiguous()), layer.module),)

    return layers.compile(ops)


def _shapes(layer: Layer, config: UniLoraConfig) -> dict[str, tuple[int, int]]:
    return {"A": (config.r, layer.in_features), "B": (layer.out_features, config.r)}


def _saved(layer: Layer, which: str, shape: tuple[int, int], config: UniLoraConfig) -> DrawnEntries:
    name = _INDICES[which]
    given = require(layer.module, layer.found, name)
    indices = read_indices(tensor_name(layer.module, name), given, shape, config.theta_d_length)
    return indices, layer.tensor(_SCALES[which], shape)


def _targeted(package: SavedAdapter, base: BaseSpec, config: UniLoraConfig) -> Layers:
    """The modules that the configuration targets, which have no tensors of their own."""
    rest, biases = take_biases(package, base)
    for name in rest:
        raise PackageError(
            f"tensor {quote(name)} is not expected: adapter_config.json says that indices were not saved (save_indices "
            "is false)"
        )
    matcher = PatternMatcher(config)
    wanted = matcher.targets([*base.linears, *base.routers])
    if wanted is None:
        raise PackageError(
            "adapter_config.json does not name its target_modules one by one, and no tensor does; name them, or save "
            "with save_indices=True"
        )
    if routers := sorted(wanted & base.routers.keys()):
        raise UnsupportedKindError(f"Uni-LoRA on {quote(routers[0])}, which routes to experts, is not served")
    check_targets(wanted, base, config, matcher, _INDICES["A"])
    if not wanted:
        raise PackageError(f"target_modules matches no linear map of the base {quote(base.name)}")
    found = [Layer(name, *shape, {}) for name, shape in base.linears.items() if name in wanted]
    return Layers(config.KIND, base, matcher, tuple(found), biases)


def _drawn(layers: Layers, config: UniLoraConfig, package: SavedAdapter) -> Mapping[tuple[str, str], DrawnEntries]:
    """Indices and scales of each module's factors."""
    shapes = {(it.module, which): shape for it in layers.layers for which, shape in _shapes(it, config).items()}
    counts = [rows * columns for rows, columns in shapes.values()]
    check_memory({"indices": _INDEX_BYTES * sum(counts), "theta_d": BYTES * config.theta_d_length},
                 config.KIND, package.limits)  # fmt: skip
    indices = balanced_indices(sum(counts), config.theta_d_length, config.proj_seed)
    times = torch.bincount(indices, minlength=config.theta_d_length)
    scale = torch.where(times > 0, times.float().rsqrt(), 0.0)
    parts = [part.view(shape) for part, shape in zip(torch.split(indices, counts), shapes.values(), strict=True)]
    return {name: (part, scale[part]) for name, part in zip(shapes, parts, strict=True)}
